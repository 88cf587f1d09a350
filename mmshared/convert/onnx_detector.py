"""Detectors as modules that ``torch.export`` can trace as a whole: an image in, detections out.

What is traced is mmdet's own ``predict``. A few of its functions have results of as many rows as boxes were found, and
ask for that number. While it runs they are replaced by functions whose results have the same number of rows for every
image: those that are not there have the score 0, and are removed at the end. NMS and RoIAlign are torchvision's
operators, for which the exporter has those of ONNX.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import FunctionType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import onnx
import torch
from mmcv.ops import batched_nms
from mmdet.models.dense_heads import RPNHead, YOLOXHead
from mmdet.models.layers import multiclass_nms
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.models.utils import filter_scores_and_topk
from mmdet.structures import DetDataSample
from onnx import ModelProto
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional as F

from ..sharing import SharingError
from .onnx import OUTPUTS, Exported
from .onnx_shared import to_onnx

#: A logit whose sigmoid is 0.
NEVER = -1e4

#: By how much corners of boxes, as a part of the image's side, and scores of the same detection may differ, and how
#: many detections have to be the same: NMS turns a rounding error into another box now and then.
NEAR, LEAST = 1e-3, 0.95
#: The same where weights are integers.
INTEGER_NEAR, INTEGER_LEAST = 0.1, 0.25
#: Random images of which one is taken on which the detector finds something.
TRIES = 8
#: What a config may ask of NMS; ``min_size`` is ours.
NMS_OPTIONS = {'type', 'iou_threshold', 'class_agnostic', 'split_thr', 'min_size'}
Detections = tuple[Tensor, Tensor, Tensor]


class WholeDetector(nn.Module):
    """A detector whose input is an image and whose outputs are detections, as its ``predict`` finds them.

    Args:
        detector (nn.Module): One of mmdet's detectors. It is copied.
    """

    def __init__(self, detector: Any):
        super().__init__()
        detector = copy.deepcopy(detector)
        detector.add_pred_to_datasample = lambda samples, results: results
        for module in detector.modules():
            if hasattr(module, 'use_torchvision'):
                module.use_torchvision = True
            cfg = getattr(module, 'test_cfg', None) or {}
            if cfg.get('min_bbox_size', -1) >= 0 and 'nms' in cfg:
                cfg.nms.min_size = cfg.pop('min_bbox_size')
        self.detector = detector

    def forward(self, images: Tensor) -> Detections:
        """Detect objects.

        Args:
            images (Tensor): One image, (1, C, H, W), normalised. It is padded to the size that the detector takes.

        Returns:
            tuple[Tensor, Tensor, Tensor]: Boxes by two corners in pixels, (N, 4), scores and labels, (N,), best
                first.
        """
        with rows_of_every_image():
            (found,) = self.detector.predict(*prepared(self.detector, images), rescale=False)
        there = torch.nonzero(found.scores > 0).squeeze(1)
        return found.bboxes[there], found.scores[there], found.labels[there]


class ExportedDetector(Exported):
    """A whole detector: ``images``, (1, C, H, W), in; ``boxes``, (N, 4), ``scores`` and ``labels``, (N,), out."""

    def model(self, shape: Sequence[int], opset: int | None, any_size: bool) -> ModelProto:
        whole = WholeDetector(self.network)
        whole.eval()
        program = traced(whole, shape, {2: Dim.DYNAMIC, 3: Dim.DYNAMIC} if any_size else {})
        model = to_onnx(program, (), input_names=['images'], output_names=OUTPUTS, opset_version=opset)
        onnx.helper.set_model_props(model, {'classes': str(number_of_classes(self.network))})
        return model

    def images(self, size: Sequence[int]) -> Tensor:
        """Blobs of random contrast on which the detector finds something, if there is such an image among a few."""
        for contrast in range(1, TRIES + 1):
            blobs = F.interpolate(torch.randn(1, size[1], 8, 8), tuple(size[2:]), mode='bilinear')
            images = contrast * blobs + torch.randn(1, *size[1:]) / 4
            if len(self.outputs(images)[1]):
                break
        return images

    def outputs(self, images: Tensor) -> Detections:
        (sample,) = self.network.predict(*prepared(self.network, images), rescale=False)
        found = sample.pred_instances
        return found.bboxes, found.scores, found.labels

    def check(
        self, found: Sequence[Tensor], expected: Sequence[Tensor], images: Tensor, integers: bool
    ) -> tuple[str, bool]:
        near, least = (INTEGER_NEAR, INTEGER_LEAST) if integers else (NEAR, LEAST)
        same, total = same_detections(found, expected, max(images.shape[-2:]), near)
        if not total:
            return 'nothing is detected in random images, so that only a test on data compares them', True
        return f'{same} of the {total} detections of both are the same within {near:g}', same >= least * total


def traced(whole: WholeDetector, shape: Sequence[int], sides: dict[int, Any]) -> ExportedProgram:
    """Trace a detector with sides of images that may be open."""
    images = torch.randn(1, *shape)
    return torch.export.export(whole, (images,), dynamic_shapes=(sides,), strict=False)


def number_of_classes(detector: Any) -> int:
    head = getattr(detector, 'roi_head', detector).bbox_head
    return (head[-1] if isinstance(head, nn.ModuleList) else head).num_classes


def same_detections(found: Sequence[Tensor], expected: Sequence[Tensor], side: float, near: float) -> tuple[int, int]:
    """Count the detections of two results, and those that the other has too: with the same label, and corners, as a
    part of the side of the image, and score that differ by no more than ``near``."""
    (boxes, scores, labels), (others, other_scores, other_labels) = found, expected
    same = (boxes[:, None] - others).abs().amax(2) <= near * side
    same &= (scores[:, None] - other_scores).abs() <= near
    same &= labels[:, None] == other_labels
    return int(same.any(0).sum() + same.any(1).sum()), sum(same.shape)


def prepared(detector: Any, image: Tensor) -> tuple[Tensor, list[DetDataSample]]:
    """Pad a normalised image, (1, C, H, W), and note its size, as the data preprocessor of a detector does."""
    size, divisor = image.shape[-2:], detector.data_preprocessor.pad_size_divisor
    if divisor > 1:
        bottom, right = (-side % divisor for side in size)
        image = F.pad(image, (0, right, 0, bottom), value=detector.data_preprocessor.pad_value)
    sample = DetDataSample()
    for name, value in (('img_shape', size), ('pad_shape', image.shape[-2:]), ('batch_input_shape', image.shape[-2:])):
        sample.set_field(tuple(value), name, field_type='metainfo')  # unlike set_metainfo, this copies no symbols
    return image, [sample]


@contextmanager
def rows_of_every_image() -> Iterator[None]:
    """Let mmdet's detectors compute results of as many rows for each image."""
    functions: dict[Any, FunctionType] = {
        filter_scores_and_topk: best_scores,
        batched_nms: nms_of_all,
        multiclass_nms: nms_of_classes,
    }
    methods = (
        (RPNHead, '_predict_by_feat_single', proposals),
        (YOLOXHead, 'predict_by_feat', yolox_detections),
        (BBoxHead, '_predict_by_feat_single', detections_of_proposals),
        (SingleRoIExtractor, 'forward', extract_levels),
        (torch.onnx, 'is_in_onnx_export', lambda: False),  # what mmdet does then is for an exporter of the past
    )
    with ExitStack() as stack:
        for owner, name, function in methods:
            stack.enter_context(patch.object(owner, name, function))
        for module in [module for name, module in list(sys.modules.items()) if name.startswith('mmdet.')]:
            for name, value in list(vars(module).items()):
                if isinstance(value, FunctionType) and value in functions:
                    stack.enter_context(patch.object(module, name, functions[value]))
        yield


def best_scores(scores: Tensor, score_thr: float, topk: int, results: dict[str, Tensor] | None = None) -> tuple:
    """Stands for ``filter_scores_and_topk``, with ``topk`` rows."""
    classes = scores.size(1)
    best, index = F.pad(scores.flatten(), (0, topk)).topk(topk)
    best = torch.where(best > score_thr, best, 0)
    index = torch.where(best > 0, index, 0)
    boxes, labels = index // classes, index % classes
    return best, labels, boxes, results and {name: values[boxes] for name, values in results.items()}


def nms_of_all(
    boxes: Tensor, scores: Tensor, labels: Tensor, nms_cfg: dict, class_agnostic: bool = False
) -> tuple[Tensor, Tensor]:
    """Stands for ``batched_nms``, with as many rows as boxes."""
    kind, unknown = nms_cfg.get('type', 'nms'), set(nms_cfg) - NMS_OPTIONS
    if kind != 'nms' or unknown:
        options = ', '.join(f'{name}={nms_cfg[name]}' for name in nms_cfg if name not in ('type', 'min_size'))
        raise SharingError(f'ONNX has no operator for the NMS of type {kind} with {options}.')
    there = scores > 0
    if 'min_size' in nms_cfg:
        there = there & (boxes[:, 2:] - boxes[:, :2] > nms_cfg['min_size']).all(1)
    rows = torch.nonzero(there).squeeze(1)
    corners = boxes[rows]
    if not nms_cfg.get('class_agnostic', class_agnostic):
        apart = F.pad(corners.flatten(), (0, 1)).max() + 1  # boxes of two labels do not overlap
        corners = corners + (labels[rows] * apart)[:, None]
    kept = rows[torch.ops.torchvision.nms(corners, scores[rows], nms_cfg['iou_threshold'])]
    count = scores.size(0)
    kept_scores = F.pad(scores[kept], (0, count))[:count]
    kept = F.pad(kept, (0, count))[:count]
    return torch.cat([boxes[kept], kept_scores[:, None]], 1), kept


def nms_of_classes(
    boxes: Tensor, scores: Tensor, score_thr: float, nms_cfg: dict, max_num: int = -1, box_dim: int = 4
) -> tuple[Tensor, Tensor]:
    """Stands for ``multiclass_nms``, with ``max_num`` rows."""
    count, classes = scores.size(0), scores.size(1) - 1
    boxes = boxes.view(count, -1, box_dim).expand(count, classes, box_dim).reshape(-1, box_dim)
    scores = scores[:, :-1].flatten()
    labels = torch.arange(classes).repeat(count)
    found, kept = nms_of_all(boxes, torch.where(scores > score_thr, scores, 0), labels, nms_cfg)
    return found[:max_num], labels[kept[:max_num]]


def proposals(
    head: Any,
    cls_score_list: list[Tensor],
    bbox_pred_list: list[Tensor],
    score_factor_list: list[Tensor],
    mlvl_priors: list[Tensor],
    img_meta: dict,
    cfg: Any,
    original: Any = RPNHead._predict_by_feat_single,
    **kwargs: Any,
) -> Any:
    """Stands for the method of ``RPNHead``: each level has more cells than are taken from it, of which some are
    nowhere. A proposal that is not there is a box without area."""
    more = (cfg or head.test_cfg).nms_pre

    def widened(maps: Tensor, value: float) -> Tensor:
        return F.pad(maps.flatten(1)[:, None], (0, more), value=value)  # (A C, 1, H W + more)

    found = original(
        head,
        [widened(maps, NEVER) for maps in cls_score_list],
        [widened(maps, 0) for maps in bbox_pred_list],
        score_factor_list,
        [F.pad(priors, (0, 0, 0, more * head.num_base_priors)) for priors in mlvl_priors],
        img_meta,
        cfg,
        **kwargs,
    )
    found.bboxes = torch.where(found.scores[:, None] > 0, found.bboxes, 0)
    return found


def detections_of_proposals(
    head: Any,
    roi: Tensor,
    cls_score: Tensor,
    *args: Any,
    original: Any = BBoxHead._predict_by_feat_single,
    **kwargs: Any,
) -> Any:
    """Stands for the method of ``BBoxHead``: a proposal without area is of no class."""
    return original(head, roi, torch.where(roi[:, 3:4] > roi[:, 1:2], cls_score, torch.nan), *args, **kwargs)


def extract_levels(
    extractor: Any, feats: tuple[Tensor, ...], rois: Tensor, roi_scale_factor: float | None = None
) -> Tensor:
    """Stands for the method of ``SingleRoIExtractor``: a level may have no region."""
    levels = extractor.map_roi_levels(rois, len(feats))
    if roi_scale_factor is not None:
        rois = extractor.roi_rescale(rois, roi_scale_factor)
    layers = extractor.roi_layers
    result = feats[0].new_zeros(rois.size(0), extractor.out_channels, *layers[0].output_size)
    for level, (maps, layer) in enumerate(zip(feats, layers)):
        rows = torch.nonzero(levels == level).squeeze(1)
        result = result.index_put((rows,), layer(maps, rois[rows]))
    return result


def yolox_detections(
    head: Any, cls_scores: list[Tensor], bbox_preds: list[Tensor], objectnesses: list[Tensor], **kwargs: Any
) -> list[SimpleNamespace]:
    """Stands for the method of ``YOLOXHead``."""
    sizes = [maps.shape[2:] for maps in cls_scores]
    priors = torch.cat(head.prior_generator.grid_priors(sizes, device=cls_scores[0].device, with_stride=True))
    logits, deltas, objectness = (
        torch.cat([maps[0].flatten(1).T for maps in levels]) for levels in (cls_scores, bbox_preds, objectnesses)
    )
    scores, labels = logits.sigmoid().max(1)
    scores = scores * objectness.sigmoid()[:, 0]
    cfg = head.test_cfg
    scores = torch.where(scores >= cfg.score_thr, scores, 0)
    found, kept = nms_of_all(head._bbox_decode(priors, deltas), scores, labels, cfg.nms)
    return [SimpleNamespace(bboxes=found[:, :4], scores=found[:, 4], labels=labels[kept])]
