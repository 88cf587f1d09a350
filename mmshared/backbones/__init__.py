from . import cifar, conv_chain, eca, mmdet, mmpretrain, path_net, steerable, wide_resnet
from .shared_backbone import SharedBackboneMixin, share_backbones

__all__ = [
    'SharedBackboneMixin', 'cifar', 'conv_chain', 'eca', 'mmdet', 'mmpretrain', 'path_net', 'share_backbones',
    'steerable', 'wide_resnet'
]
