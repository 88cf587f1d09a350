from .shortest_paths import PathScore, ShortestPaths

__all__ = ['PathScore', 'ShortestPaths']
