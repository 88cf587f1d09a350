"""Tests ONNX models by the evaluators of configs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.structures import InstanceData
from torch import Tensor

from ..engine.build import is_detector
from ..sharing import SharingError
from .onnx import OUTPUTS, open_session


def evaluate_onnx(cfg: Config, file: str) -> dict[str, float]:
    """Run the test of a config with an ONNX model in place of the network.

    Args:
        cfg (Config): The config of a detector or a classifier, shared or plain.
        file (str): The ONNX model, as :func:`~mmshared.convert.onnx.export_onnx` writes it.

    Returns:
        dict[str, float]: The metrics.

    Raises:
        SharingError: If the file cannot be loaded, or is of another kind of network, other classes or another size.
    """
    session = load_session(file)
    cfg.load_from, cfg.resume = None, False
    runner = RUNNERS.build(cfg)
    put_session(runner.model, session, file)
    wanted = runner.test_loop.dataloader.dataset.metainfo.get('classes')
    there = number_of_classes(session)
    if wanted and there != len(wanted):
        raise SharingError(f'The ONNX model {file} knows {there} classes, and the test data have {len(wanted)}.')
    return runner.test()


def load_session(file: str) -> Any:
    """Load an ONNX model."""
    try:
        return open_session(Path(file).read_bytes())
    except OSError as error:
        raise SharingError(f'The ONNX model {file} cannot be read: {error.strerror}.') from error
    except Exception as error:  # onnxruntime's are of no common class
        raise SharingError(f'{file} is not an ONNX model that onnxruntime can load: {error}') from error


def number_of_classes(session: Any) -> int:
    return int(session.get_modelmeta().custom_metadata_map.get('classes') or session.get_outputs()[0].shape[-1])


def put_session(model: Any, session: Any, file: str) -> None:
    """Let a model predict by an ONNX model.

    Raises:
        SharingError: If it is of another kind of network.
    """
    inputs = [each.name for each in session.get_inputs()]
    outputs = [each.name for each in session.get_outputs()]
    ranks = [len(each.shape) for each in session.get_outputs()]
    detector = is_detector(model)
    if inputs != ['images'] or (outputs != OUTPUTS if detector else ranks != [2] or not hasattr(model, 'head')):
        wanted = (
            'detector, from images to boxes, scores and labels' if detector else 'classifier, from images to logits'
        )
        raise SharingError(f'{file} is not the ONNX model of a {wanted}, but from {inputs} to {outputs}.')
    taken = session.get_inputs()[0].shape

    def run(images: Tensor) -> list[Tensor]:
        if any(isinstance(side, int) and side != given for side, given in zip(taken, images.shape)):
            sizes = [' x '.join(map(str, size)) for size in (taken[1:], images.shape[1:])]
            raise SharingError(f'The ONNX model {file} takes images of {sizes[0]}, and an image is of {sizes[1]}.')
        found = session.run(None, {'images': images.cpu().numpy()})
        return [torch.from_numpy(each).to(images.device) for each in found]

    def detect(images: Tensor, samples: list[Any], **kwargs: Any) -> list[Any]:
        for image, sample in zip(images, samples):
            height, width = sample.img_shape
            boxes, scores, labels = run(image[None, :, :height, :width])
            boxes = boxes / boxes.new_tensor(sample.scale_factor).repeat(2)
            sample.pred_instances = InstanceData(bboxes=boxes, scores=scores, labels=labels)
        return samples

    if detector:
        model.predict = detect
    else:
        model.extract_feat = lambda images: run(images)[0]
        model.head.forward = lambda logits: logits
