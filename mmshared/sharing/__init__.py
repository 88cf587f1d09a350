from .base import Bank, SharedConv2d, SharingError
from .deployment import deploy
from .filter_basis import FilterBasis, OrthonormalFilterBasis, TiedFilters
from .looped_templates import LoopedTemplates
from .surgery import fold_convs, share_convs, shared_stages
from .template_bank import TemplateBank

__all__ = [
    'Bank', 'FilterBasis', 'LoopedTemplates', 'OrthonormalFilterBasis', 'SharedConv2d', 'SharingError', 'TemplateBank',
    'TiedFilters', 'deploy', 'fold_convs', 'share_convs', 'shared_stages'
]
