from . import cifar, conv_chain, eca, mmdet, mmpretrain, steerable, wide_resnet
from .shared_backbone import SharedBackboneMixin, share_backbones

__all__ = [
    'SharedBackboneMixin', 'cifar', 'conv_chain', 'eca', 'mmdet', 'mmpretrain', 'share_backbones', 'steerable',
    'wide_resnet'
]
