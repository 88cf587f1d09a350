"""How layers share parameters: banks, the layers that share them, and how they get in and out of a network."""

from .bank import Bank, SharedLayer, SharingError, banks, named_banks
from .deployment import deploy
from .filter_basis import FilterBasis, OrthonormalFilterBasis
from .kernel_transforms import KERNEL_TRANSFORMS, KernelTransform
from .layers import RepeatedLayers, repeated_layers
from .looped_templates import LoopedTemplates
from .relaxed_tie import RelaxedTie
from .repeated_kernel import RepeatedKernel
from .surgery import fold_layers, share_layers
from .template_bank import TemplateBank
from .tied_filters import TiedFilters

__all__ = [
    'Bank',
    'FilterBasis',
    'KERNEL_TRANSFORMS',
    'KernelTransform',
    'LoopedTemplates',
    'OrthonormalFilterBasis',
    'RelaxedTie',
    'RepeatedKernel',
    'RepeatedLayers',
    'SharedLayer',
    'SharingError',
    'TemplateBank',
    'TiedFilters',
    'banks',
    'deploy',
    'fold_layers',
    'named_banks',
    'repeated_layers',
    'share_layers',
]
