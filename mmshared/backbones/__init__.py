from . import cifar, mmdet, mmpretrain
from .shared_backbone import SharedBackboneMixin, share_backbones

__all__ = ['SharedBackboneMixin', 'cifar', 'mmdet', 'mmpretrain', 'share_backbones']
