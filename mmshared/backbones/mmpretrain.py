"""MMPretrain's networks with shared layers: ``SharedResNet``, ``SharedImageClassifier``, ``SharedMAE`` and so on."""

from mmpretrain.models import backbones, classifiers, heads, necks, selfsup
from mmpretrain.registry import MODELS

from .twins import classes_of, make_twins

found = make_twins(classes_of(MODELS, backbones, necks, heads, classifiers, selfsup), MODELS, __name__)
globals().update(found)


def load_as_plain(self, *args, **kwargs):
    """``SwinTransformer`` takes old names of weights only if it is of exactly its class."""
    kind = type(self)
    self.__class__ = backbones.SwinTransformer
    try:
        self._load_from_state_dict(*args, **kwargs)
    finally:
        self.__class__ = kind


found['SharedSwinTransformer']._load_from_state_dict = load_as_plain
