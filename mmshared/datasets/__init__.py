"""The papers' own data sets: rotated MNIST, shortest paths on grids."""

from .shortest_paths import PathScore, ShortestPaths

__all__ = ['PathScore', 'ShortestPaths']
