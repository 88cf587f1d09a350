from .base import Bank, SharedConv2d, SharingError
from .deployment import deploy
from .filter_basis import FilterBasis, OrthonormalFilterBasis, TiedFilters
from .looped_templates import LoopedTemplates
from .repeated_kernel import KERNEL_TRANSFORMS, KernelTransform, RepeatedKernel
from .surgery import fold_convs, share_convs, shared_stages
from .template_bank import TemplateBank

__all__ = [
    'Bank', 'FilterBasis', 'KERNEL_TRANSFORMS', 'KernelTransform', 'LoopedTemplates', 'OrthonormalFilterBasis',
    'RepeatedKernel', 'SharedConv2d', 'SharingError', 'TemplateBank', 'TiedFilters', 'deploy', 'fold_convs',
    'share_convs', 'shared_stages'
]
