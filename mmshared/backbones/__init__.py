from . import mmdet, mmpretrain
from .shared_backbone import SharedBackboneMixin, share_backbones

__all__ = ['SharedBackboneMixin', 'mmdet', 'mmpretrain', 'share_backbones']
