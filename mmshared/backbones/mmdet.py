"""MMDetection's networks with shared layers: ``SharedResNet``, ``SharedFPN``, ``SharedRetinaNet`` and so on."""

from mmdet.models import backbones, dense_heads, detectors, mot, necks, reid, roi_heads, seg_heads, tracking_heads, vis
from mmdet.registry import MODELS

from .twins import classes_of, make_twins

found = classes_of(
    MODELS, backbones, dense_heads, detectors, mot, necks, reid, roi_heads, seg_heads, tracking_heads, vis
)
# Of its arguments DETRHead reads bg_cls_weight only if it is of exactly this class: share its layers in SharedDETR.
globals().update(make_twins([each for each in found if each is not dense_heads.DETRHead], MODELS, __name__))
