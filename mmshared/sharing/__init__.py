from .base import Bank, SharedConv2d, SharingError
from .filter_basis import FilterBasis, OrthonormalFilterBasis, TiedFilters
from .surgery import fold_convs, share_convs, shared_stages

__all__ = [
    'Bank', 'FilterBasis', 'OrthonormalFilterBasis', 'SharedConv2d', 'SharingError', 'TiedFilters', 'fold_convs',
    'share_convs', 'shared_stages'
]
