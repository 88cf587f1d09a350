"""Whole detectors as ONNX find what mmdet's own ``predict`` finds."""


import pytest
import torch
from mmengine.config import Config
from torch import nn

from helpers import evaluating, randomise_norms
from mmshared.engine.build import build_model
from mmshared.engine.config import config_path

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')

from mmshared.convert.detector import WholeDetector, same_detections  # noqa: E402
from mmshared.convert.onnx import exported, onnx_forms, open_session  # noqa: E402


class Stem(nn.Module):
    """Maps of two levels, of strides 16 and 32, after a stage of blocks that may share."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 16, stride=16, padding=8)
        self.blocks = nn.Sequential(*[nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()) for _ in range(3)])
        self.down = nn.Conv2d(16, 16, 3, stride=2, padding=1)

    def forward(self, images):
        maps = self.blocks(self.stem(images))
        return maps, self.down(maps)


ONE = dict(in_channels=16, feat_channels=16)
HEAD = dict(ONE, num_classes=5, stacked_convs=1)
ANCHORS = dict(octave_base_scale=2, scales_per_octave=1, ratios=[1.0, 2.0], strides=[16, 32])
GROUPS = dict(type='GN', num_groups=4)
BOXES = dict(in_channels=16, fc_out_channels=32, num_classes=5)
REGIONS = dict(out_channels=16, featmap_strides=[16, 32], finest_scale=32)
#: Small detectors, as changes of stock configs.
FAMILIES = {
    'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py': dict(
        rpn_head=dict(ONE, anchor_generator=dict(scales=[2], strides=[16, 32])),
        roi_head=dict(bbox_roi_extractor=REGIONS, bbox_head=BOXES),
        test_cfg=dict(rpn=dict(nms_pre=50, max_per_img=40)),
    ),
    'retinanet/retinanet_r50_fpn_1x_coco.py': dict(bbox_head=dict(HEAD, anchor_generator=ANCHORS)),
    'atss/atss_r50_fpn_1x_coco.py': dict(
        bbox_head=dict(HEAD, norm_cfg=GROUPS, anchor_generator=dict(octave_base_scale=2, strides=[16, 32]))
    ),
    'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py': dict(
        bbox_head=dict(HEAD, norm_cfg=GROUPS, strides=[16, 32], regress_ranges=((-1, 64), (64, 1e8)))
    ),
    'yolox/yolox_tiny_8xb8-300e_coco.py': dict(bbox_head=dict(HEAD, strides=[16, 32])),
    'rtmdet/rtmdet_tiny_8xb32-300e_coco.py': dict(
        bbox_head=dict(HEAD, anchor_generator=dict(strides=[16, 32])), test_cfg=dict(nms_pre=300)
    ),
    'detr/detr_r50_8xb2-150e_coco.py': dict(
        encoder=dict(num_layers=1), decoder=dict(num_layers=1), num_queries=20, test_cfg=dict(max_per_img=15)
    ),
}
FASTER, RETINANET, *_, DETR = FAMILIES


def config(family: str) -> Config:
    cfg = Config.fromfile(config_path(f'mmdet::{family}'))
    cfg.merge_from_dict(dict(model=FAMILIES[family]))
    cfg.model.backbone = dict(type=Stem)
    cfg.model.neck = None
    if family == DETR:
        cfg.model.neck = dict(type='ChannelMapper', in_channels=[16, 16], out_channels=256, num_outs=1)
    return cfg


def detector(cfg: Config, spread: float = 1.0) -> nn.Module:
    """A detector with random weights whose scores differ by a factor."""
    network = randomise_norms(build_model(cfg))
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and 'head' in name:
            for word, size in (('cls', spread), ('obj', spread), ('reg', 0.1)):
                if word in name.rsplit('.')[-1] or word in name.rsplit('.')[-2]:
                    nn.init.normal_(module.weight, std=size / module.weight[0].numel() ** 0.5)
    return evaluating(network)


def run(content: bytes, images: torch.Tensor) -> list[torch.Tensor]:
    return [torch.from_numpy(each) for each in open_session(content).run(None, {'images': images.numpy()})]


def found_by(run, network: nn.Module, size: tuple[int, ...]) -> tuple[int, int, int]:
    """How many detections of a function are those of the network, of how many; and how many the network has."""
    case = exported(network)
    with torch.no_grad():
        images = case.images(size)
        expected = case.outputs(images)
        found = run(images)
    return *same_detections(found, expected, max(size), near=1e-4), len(expected[1])


SIZES = [(1, 3, 64, 96), (1, 3, 131, 75)]  # the second is no multiple of the strides


@pytest.mark.slow
@pytest.mark.parametrize('family', FAMILIES)
def test_results_of_fixed_length_are_those_of_predict(family):
    network = detector(config(family))
    for size in SIZES:
        same, total, count = found_by(WholeDetector(network), network, size)
        assert same == total and count > 2


@pytest.mark.slow
@pytest.mark.parametrize('family', FAMILIES)
def test_onnx_finds_what_predict_finds_in_images_of_any_size(family):
    network = detector(config(family))
    (model,) = onnx_forms(network, network, (3, 96, 64), False, None).values()
    content = model.SerializeToString()
    for size in SIZES:
        same, total, count = found_by(lambda images: run(content, images), network, size)
        assert same == total and count > 2
