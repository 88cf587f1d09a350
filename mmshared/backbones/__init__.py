from . import cifar, eca, mmdet, mmpretrain, path_net, wide_resnet
from .shared_backbone import SharedBackboneMixin, share_backbones

__all__ = ['SharedBackboneMixin', 'cifar', 'eca', 'mmdet', 'mmpretrain', 'path_net', 'share_backbones', 'wide_resnet']
