"""MMDetection's backbones with shared filters: ``SharedResNet`` and so on."""
from mmdet.models import backbones
from mmdet.registry import MODELS

from .shared_backbone import share_backbones

globals().update(share_backbones(vars(backbones).values(), MODELS, __name__))
