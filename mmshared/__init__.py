"""Parameter sharing in convolutional networks for MMDetection and MMPretrain."""
# First of all: whatever else is imported here reaches for mmcv's operators.
from . import compat  # noqa: F401, I001
from .backbones import SharedBackboneMixin
from .hooks import BasisHealthHook, GradientFlowHook, OrthogonalityLossHook, TrainOnlyHook
from .sharing import (KERNEL_TRANSFORMS, Bank, FilterBasis, KernelTransform, OrthonormalFilterBasis, RepeatedKernel,
                      SharedConv2d, SharingError, TemplateBank, TiedFilters, fold_convs, share_convs, shared_stages)
from .version import __version__

__all__ = [
    'Bank', 'BasisHealthHook', 'FilterBasis', 'GradientFlowHook', 'KERNEL_TRANSFORMS', 'KernelTransform',
    'OrthogonalityLossHook', 'OrthonormalFilterBasis', 'RepeatedKernel', 'SharedBackboneMixin', 'SharedConv2d',
    'SharingError', 'TemplateBank', 'TiedFilters', 'TrainOnlyHook', '__version__', 'fold_convs', 'share_convs',
    'shared_stages'
]
