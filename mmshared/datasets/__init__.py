from .rotated_mnist import RotatedMNIST

__all__ = ['RotatedMNIST']
