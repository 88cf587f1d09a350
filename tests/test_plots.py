"""Figures that could be misread: they say what is not in them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from mmshared.analysis.plots import detections_in, draw_curves


@pytest.fixture
def figures(monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, 'savefig', lambda figure, *args, **kwargs: drawn.append(figure))
    return drawn


@pytest.mark.parametrize(
    'scores, limit, title',
    [
        ([0.1, 0.2], 0.5, 'no detection scores above 0.5, the highest is 0.2'),
        ([], 0.5, 'no detection scores above 0.5, the highest is 0'),
        ([0.1, 0.2], 0.15, ''),
    ],
)
@pytest.mark.parametrize('masked', [False, True])
def test_images_without_detections_say_so(monkeypatch, tmp_path, scores, limit, title, masked):
    import mmdet.apis
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    boxes, labels = torch.tensor([[2.0, 2, 9, 9]]).repeat(len(scores), 1), torch.zeros(len(scores), dtype=torch.long)
    found = DetDataSample(pred_instances=InstanceData(bboxes=boxes, scores=torch.tensor(scores), labels=labels))
    if masked:
        found.pred_instances.masks = torch.ones(len(scores), 20, 20, dtype=torch.bool)
    monkeypatch.setattr(mmdet.apis, 'inference_detector', lambda *args: found)
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / 'image.png')
    model = SimpleNamespace(dataset_meta=dict(classes=('cat',), palette=[(255, 0, 0)]))
    found = detections_in(model, [tmp_path / 'image.png'], limit)
    assert found.highest == pytest.approx(max(scores, default=0))
    assert found.note == title


def test_a_metric_is_drawn_over_what_its_steps_count(figures):
    scalars = dict(loss=[(1, 2.0), (4, 1.0)], map=[(2, 0.1), (4, 0.2)])
    draw_curves(scalars, 'map', 'curves.png', 'iteration')
    assert [axis.get_xlabel() for axis in figures[0].axes] == ['iteration', 'iteration']
