"""MMPretrain's networks with shared layers: ``SharedResNet``, ``SharedImageClassifier``, ``SharedMAE`` and so on."""

from mmpretrain.models import backbones, classifiers, heads, necks, selfsup
from mmpretrain.registry import MODELS

from .twins import classes_of, make_twins

globals().update(make_twins(classes_of(MODELS, backbones, necks, heads, classifiers, selfsup), MODELS, __name__))
