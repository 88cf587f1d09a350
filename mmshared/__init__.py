"""Parameter sharing in convolutional networks for MMDetection and MMPretrain."""
# First of all: whatever else is imported here reaches for mmcv's operators.
from . import compat  # noqa: F401, I001
from .backbones import SharedBackboneMixin
from .hooks import OrthogonalityLossHook
from .sharing import (Bank, FilterBasis, SharedConv2d, SharingError, TiedFilters, fold_convs, share_convs,
                      shared_stages)
from .version import __version__

__all__ = [
    'Bank', 'FilterBasis', 'OrthogonalityLossHook', 'SharedBackboneMixin', 'SharedConv2d', 'SharingError',
    'TiedFilters', '__version__', 'fold_convs', 'share_convs', 'shared_stages'
]
