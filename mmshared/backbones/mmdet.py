"""MMDetection's networks with shared layers: ``SharedResNet``, ``SharedFPN``, ``SharedRetinaNet`` and so on."""

from mmdet.models import backbones, dense_heads, detectors, mot, necks, reid, roi_heads, seg_heads, tracking_heads, vis
from mmdet.registry import MODELS

from .twins import classes_of, make_twins

globals().update(
    make_twins(
        classes_of(
            MODELS, backbones, dense_heads, detectors, mot, necks, reid, roi_heads, seg_heads, tracking_heads, vis
        ),
        MODELS,
        __name__,
    )
)
