"""Parameter sharing in convolutional networks for MMDetection and MMPretrain."""

# First of all: whatever else is imported here reaches for mmcv's operators.
from . import compat  # noqa: F401, I001
from .backbones import SharingMixin
from .engine.checkpoint import refuse_pickles
from .datasets import PathScore, RotatedMNIST, ShortestPaths
from .hooks import (
    BasisHealthHook,
    GradientFlowHook,
    LayerSimilarityHook,
    OrthogonalityLossHook,
    RecurrenceLossHook,
    TrainOnlyHook,
    layer_similarity,
)
from .sharing import (
    KERNEL_TRANSFORMS,
    Bank,
    FilterBasis,
    KernelTransform,
    LoopedTemplates,
    OrthonormalFilterBasis,
    RelaxedTie,
    RepeatedKernel,
    RepeatedLayers,
    SharedLayer,
    SharingError,
    TemplateBank,
    TiedFilters,
    banks,
    deploy,
    fold_layers,
    named_banks,
    repeated_layers,
    share_layers,
)
from .version import __version__

refuse_pickles()

__all__ = [
    'Bank',
    'BasisHealthHook',
    'FilterBasis',
    'GradientFlowHook',
    'KERNEL_TRANSFORMS',
    'KernelTransform',
    'LayerSimilarityHook',
    'LoopedTemplates',
    'OrthogonalityLossHook',
    'OrthonormalFilterBasis',
    'RecurrenceLossHook',
    'PathScore',
    'RelaxedTie',
    'RepeatedKernel',
    'RepeatedLayers',
    'RotatedMNIST',
    'SharedLayer',
    'SharingError',
    'SharingMixin',
    'ShortestPaths',
    'TemplateBank',
    'TiedFilters',
    'TrainOnlyHook',
    '__version__',
    'banks',
    'deploy',
    'fold_layers',
    'layer_similarity',
    'named_banks',
    'repeated_layers',
    'share_layers',
]
