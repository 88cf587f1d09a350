from .rotated_mnist import RotatedMNIST
from .shortest_paths import PathScore, ShortestPaths

__all__ = ['PathScore', 'RotatedMNIST', 'ShortestPaths']
