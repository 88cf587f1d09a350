"""Parameter sharing in convolutional networks for MMDetection and MMPretrain."""
# First of all: whatever else is imported here reaches for mmcv's operators.
from . import compat  # noqa: F401, I001
from .backbones import SharedBackboneMixin
from .datasets import PathScore, ShortestPaths
from .hooks import BasisHealthHook, GradientFlowHook, OrthogonalityLossHook
from .sharing import (Bank, FilterBasis, OrthonormalFilterBasis, SharedConv2d, SharingError, TemplateBank, TiedFilters,
                      fold_convs, share_convs, shared_stages)
from .version import __version__

__all__ = [
    'Bank', 'BasisHealthHook', 'FilterBasis', 'GradientFlowHook', 'OrthogonalityLossHook', 'OrthonormalFilterBasis',
    'PathScore', 'SharedBackboneMixin', 'SharedConv2d', 'SharingError', 'ShortestPaths', 'TemplateBank', 'TiedFilters',
    '__version__', 'fold_convs', 'share_convs', 'shared_stages'
]
