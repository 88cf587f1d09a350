"""MMSegmentation's networks with shared layers, if it is installed: ``SharedEncoderDecoder`` and so on."""

from mmseg.models import backbones, decode_heads, necks, segmentors
from mmseg.registry import MODELS

from .twins import classes_of, make_twins

globals().update(make_twins(classes_of(MODELS, backbones, necks, decode_heads, segmentors), MODELS, __name__))
