from .base import Bank, SharedConv2d, SharingError
from .filter_basis import FilterBasis, TiedFilters
from .surgery import fold_convs, share_convs, shared_stages

__all__ = [
    'Bank', 'FilterBasis', 'SharedConv2d', 'SharingError', 'TiedFilters', 'fold_convs', 'share_convs', 'shared_stages'
]
