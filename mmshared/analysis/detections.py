"""What a detector finds, as a picture."""
from pathlib import Path
from typing import Sequence

import matplotlib
import mmcv
from mmdet.apis import inference_detector
from mmdet.visualization import DetLocalVisualizer
from torch import nn

matplotlib.use('Agg')
from matplotlib import pyplot as plt  # noqa: E402


def draw_detections(model: nn.Module, pictures: Sequence[Path], out: Path, score: float = 0.5) -> None:
    """Draw what a detector finds in some pictures, side by side.

    Args:
        model (nn.Module): A detector from ``mmdet.apis.init_detector``.
        pictures (Sequence[Path]): The files of the pictures.
        out (Path): The picture to write.
        score (float): The least score of a box that is drawn. Defaults to 0.5.
    """
    visualizer = DetLocalVisualizer()
    visualizer.dataset_meta = model.dataset_meta
    height, width = mmcv.imread(str(pictures[0])).shape[:2]
    columns = min(4, len(pictures))
    rows = -(-len(pictures) // columns)
    size = (3.2 * columns, 3.2 * rows * height / width)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    for axis in axes.flat:
        axis.axis('off')
    for axis, path in zip(axes.flat, pictures):
        picture = mmcv.imread(str(path), channel_order='rgb')
        # Enlarged, so that boxes and labels of small pictures can be read.
        factor = max(1, 480 // max(picture.shape[:2]))
        found = inference_detector(model, str(path)).cpu()
        found.pred_instances.bboxes *= factor
        visualizer.add_datasample(
            '', mmcv.imrescale(picture, factor), found, draw_gt=False, pred_score_thr=score)
        axis.imshow(visualizer.get_image())
    figure.tight_layout(pad=0.3)
    figure.savefig(out, dpi=110)
    plt.close(figure)
