"""Parameter sharing in convolutional networks for MMDetection and MMPretrain."""
# First of all: whatever else is imported here reaches for mmcv's operators.
from . import compat  # noqa: F401, I001
from .backbones import SharedBackboneMixin
from .checkpoint import refuse_pickles
from .datasets import PathScore, RotatedMNIST, ShortestPaths
from .hooks import (BasisHealthHook, GradientFlowHook, LayerSimilarityHook, OrthogonalityLossHook, RecurrenceLossHook,
                    TrainOnlyHook, layer_similarity)
from .sharing import (KERNEL_TRANSFORMS, Bank, FilterBasis, KernelTransform, LoopedTemplates, OrthonormalFilterBasis,
                      RepeatedKernel, SharedConv2d, SharingError, TemplateBank, TiedFilters, deploy, fold_convs,
                      share_convs, shared_stages)
from .version import __version__

refuse_pickles()

__all__ = [
    'Bank', 'BasisHealthHook', 'FilterBasis', 'GradientFlowHook', 'KERNEL_TRANSFORMS', 'KernelTransform',
    'LayerSimilarityHook', 'LoopedTemplates', 'OrthogonalityLossHook', 'OrthonormalFilterBasis', 'RecurrenceLossHook',
    'PathScore', 'RepeatedKernel', 'RotatedMNIST', 'SharedBackboneMixin', 'SharedConv2d', 'SharingError',
    'ShortestPaths', 'TemplateBank', 'TiedFilters', 'TrainOnlyHook', '__version__', 'deploy', 'fold_convs',
    'layer_similarity', 'share_convs', 'shared_stages'
]
