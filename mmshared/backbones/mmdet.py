"""MMDetection's networks with shared layers: ``SharedResNet``, ``SharedFPN``, ``SharedRetinaNet`` and so on."""

from mmdet.models import backbones, dense_heads, detectors, necks, roi_heads, seg_heads
from mmdet.registry import MODELS

from .twins import classes_of, make_twins

globals().update(
    make_twins(classes_of(backbones, necks, dense_heads, roi_heads, seg_heads, detectors), MODELS, __name__)
)
