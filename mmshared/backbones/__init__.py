from . import cifar, eca, mmdet, mmpretrain, steerable, wide_resnet
from .shared_backbone import SharedBackboneMixin, share_backbones

__all__ = [
    'SharedBackboneMixin', 'cifar', 'eca', 'mmdet', 'mmpretrain', 'share_backbones', 'steerable', 'wide_resnet'
]
