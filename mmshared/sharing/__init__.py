from .base import Bank, SharedConv2d, SharingError
from .filter_basis import FilterBasis, OrthonormalFilterBasis, TiedFilters
from .repeated_kernel import KERNEL_TRANSFORMS, KernelTransform, RepeatedKernel
from .surgery import fold_convs, share_convs, shared_stages
from .template_bank import TemplateBank

__all__ = [
    'Bank', 'FilterBasis', 'KERNEL_TRANSFORMS', 'KernelTransform', 'OrthonormalFilterBasis', 'RepeatedKernel',
    'SharedConv2d', 'SharingError', 'TemplateBank', 'TiedFilters', 'fold_convs', 'share_convs', 'shared_stages'
]
