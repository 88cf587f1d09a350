"""MMPretrain's backbones with shared filters: ``SharedResNet`` and so on."""
from mmpretrain.models import backbones
from mmpretrain.registry import MODELS

from .shared_backbone import share_backbones

globals().update(share_backbones(vars(backbones).values(), MODELS, __name__))
