from . import cifar, eca, mmdet, mmpretrain, wide_resnet
from .shared_backbone import SharedBackboneMixin, share_backbones

__all__ = ['SharedBackboneMixin', 'cifar', 'eca', 'mmdet', 'mmpretrain', 'share_backbones', 'wide_resnet']
