from importlib.util import find_spec

from . import cifar, conv_chain, eca, mmdet, mmpretrain, path_net, steerable, wide_resnet
from .twins import SharingMixin, make_twins

if find_spec('mmseg'):
    from . import mmseg  # noqa: F401

__all__ = [
    'SharingMixin',
    'cifar',
    'conv_chain',
    'eca',
    'make_twins',
    'mmdet',
    'mmpretrain',
    'path_net',
    'steerable',
    'wide_resnet',
]
