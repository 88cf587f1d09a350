"""Draws figures of runs, banks, detections and timings."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import mmcv
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from torch import Tensor, nn

from ..hooks import basis_health
from ..sharing import SharingError
from .logs import Curve, Scores


def _frame(axis: Axes, x: Sequence[float], y: Sequence[float], scale: str = 'linear') -> None:
    """Set the grid, scale and limits of an axis for some values. If there is only one value, the limits start from 0,
    because matplotlib's would be too narrow. A logarithmic scale needs a value above 0."""
    axis.grid(alpha=0.3)
    if min(x) == max(x):
        axis.set_xlim(0, 2 * x[0] or 1)
    if scale == 'log' and max(y) > 0:
        axis.set_yscale('log')
    elif min(y) == max(y):
        end = 2 * y[0] or 1
        axis.set_ylim(sorted((-0.05 * end, end)))


def draw_curves(scalars: dict[str, Curve], metric: str, out: Path | BinaryIO, step: str = 'epoch') -> None:
    """Draw the loss, the losses of our hooks and a metric of a run, each in its own panel.

    Args:
        scalars (dict): The scalars of the run, from :func:`read_scalars`.
        metric (str): The name of the metric.
        out (Path | BinaryIO): The image to write.
        step (str): What the steps of the metric count. Defaults to ``'epoch'``.
    """
    losses = [('loss', 'linear'), ('loss_orth', 'log'), ('loss_distill', 'linear')]
    panels = [*((name, 'iteration', scale) for name, scale in losses), (metric, step, 'linear')]
    panels = [panel for panel in panels if scalars.get(panel[0])]
    figure = Figure(figsize=(4.5 * len(panels), 3.2))
    axes = figure.subplots(1, len(panels), squeeze=False)
    for axis, (name, steps, scale) in zip(axes[0], panels):
        x, y = zip(*scalars[name])
        axis.plot(x, y, marker='.' if len(x) < 30 else None)
        axis.set(xlabel=steps, title=name)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        _frame(axis, x, y, scale)
    figure.tight_layout()
    figure.savefig(out, dpi=120)


def draw_runs(runs: dict[str, dict[str, Curve]], pattern: str, out: Path, scale: str = 'log') -> list[str]:
    """Draw scalars of several runs in the same axes: a panel for each scalar, a row for each last part of their names.

    Args:
        runs (dict): The scalars of each run, from :func:`read_scalars`, by the name of the run.
        pattern (str): Regular expression for the whole name of a scalar.
        out (Path): The image to write.
        scale (str): The scale of the values, ``'log'`` or ``'linear'``.

    Returns:
        list[str]: The names of the drawn scalars.

    Raises:
        SharingError: If no scalar matches, or if the pattern is not a regular expression.
    """
    try:
        wanted = re.compile(pattern)
    except re.error as error:
        raise SharingError(f'{pattern!r} is not a regular expression: {error}.') from None
    there = list(dict.fromkeys(name for scalars in runs.values() for name in scalars))
    rows: dict[str, list[str]] = {}
    for name in there:
        if wanted.fullmatch(name):
            rows.setdefault(name.rpartition('/')[2], []).append(name)
    if not rows:
        raise SharingError(f'No scalar of these runs matches {pattern!r}: they have {", ".join(there)}.')
    columns = max(map(len, rows.values()))
    figure = Figure(figsize=(4.2 * columns, 2.8 * len(rows)), layout='constrained')
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for row, names in zip(axes, rows.values()):
        for axis in row[len(names) :]:
            axis.axis('off')
        for axis, name in zip(row, names):
            for index, scalars in enumerate(runs.values()):
                if name in scalars:
                    _draw_smoothed(axis, scalars[name], f'C{index}')
            axis.set_title(name, fontsize=9)
            points = [point for scalars in runs.values() for point in scalars.get(name, [])]
            _frame(axis, *zip(*points), scale)
    figure.legend(
        [Line2D([], [], color=f'C{index}') for index in range(len(runs))],
        list(runs),
        fontsize=9,
        loc='outside upper center',
        ncols=len(runs),
    )
    figure.savefig(out, dpi=110)
    return [name for names in rows.values() for name in names]


def _draw_smoothed(axis: Axes, curve: Curve, colour: str) -> None:
    """Draw a curve. If it has many points, draw it pale, with the means of 25 equal parts over it."""
    x, y = np.array(curve).T
    if len(x) < 50:
        axis.plot(x, y, color=colour, marker='.')
    else:
        axis.plot(x, y, color=colour, alpha=0.25, linewidth=0.6)
        means = [[part.mean() for part in np.array_split(values, 25)] for values in (x, y)]
        axis.plot(*means, color=colour)


def draw_scores(panels: dict[str, dict[str, Scores]], longest: int, out: Path) -> None:
    """Draw scores by distance, a panel for each kind with all runs in it, with the trained distances shaded.

    Args:
        panels (dict): The scores of each run by its name, for each kind of score by name.
        longest (int): The longest distance in training.
        out (Path): The image to write.
    """
    figure = Figure(figsize=(5.2 * len(panels), 3.6), layout='constrained')
    axes = figure.subplots(1, len(panels), squeeze=False)
    for axis, (title, runs) in zip(axes[0], panels.items()):
        shade = axis.axvspan(0, longest + 0.5, color='0.9', label=f'distances of training, up to {longest}')
        lines = [
            axis.plot([sum(ends) / 2 for ends in scores], list(scores.values()), marker='o', label=run)[0]
            for run, scores in runs.items()
        ]
        axis.set(xlabel='distance in steps', title=title, xlim=(0, None), ylim=(-0.03, 1.03))
        axis.grid(alpha=0.3)
    figure.legend(handles=[*lines, shade], fontsize=9, loc='outside upper center', ncols=len(lines) + 1)
    figure.savefig(out, dpi=110)


def draw_gram_matrices(spaces: dict[str, Tensor], out: Path) -> None:
    """Draw the absolute values of Gram matrices side by side. For orthonormal filters they are the identity.

    Args:
        spaces (dict[str, Tensor]): The filters of each space by name, (N, ...) each.
        out (Path): The image to write.
    """
    matrices = {}
    for name, filters in spaces.items():
        b = filters.flatten(1).float().cpu()
        cosine = basis_health(filters)['cosine']
        matrices[f'{name}\n{len(b)} filters, cosines up to {cosine:.2g}'] = (b @ b.T).abs()
    _draw_heat_maps(matrices, LogNorm(1e-3, 1, clip=True), 'absolute inner product of two filters', out)


def draw_similarities(similarities: dict[str, Tensor], layers: dict[str, list[str]], out: Path) -> None:
    """Draw layer similarity matrices side by side.

    Args:
        similarities (dict[str, Tensor]): The matrix of each bank by name, (layers, layers).
        layers (dict[str, list[str]]): The names of each bank's layers.
        out (Path): The image to write.
    """
    _draw_heat_maps(similarities, Normalize(0, 1), 'absolute cosine of the coefficients', out, layers)


def _draw_heat_maps(
    matrices: dict[str, Tensor], norm: Normalize, label: str, out: Path, ticks: dict[str, list[str]] | None = None
) -> None:
    """Draw matrices side by side under their titles, on one colour scale, with the names of their rows and columns if
    given."""
    columns = min(4, len(matrices))
    rows = -(-len(matrices) // columns)
    figure = Figure(figsize=(3.4 * columns + 0.8, 3.6 * rows), layout='constrained')
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat[len(matrices) :]:
        axis.axis('off')
    for axis, (title, matrix) in zip(axes.flat, matrices.items()):
        image = axis.imshow(matrix, norm=norm, interpolation='nearest')
        axis.set_title(title, fontsize=9)
        if ticks:
            places = range(len(ticks[title]))
            axis.set_xticks(places, ticks[title], fontsize=7, rotation=90)
            axis.set_yticks(places, ticks[title], fontsize=7)
    figure.colorbar(image, ax=axes, label=label, shrink=0.8)
    figure.savefig(out, dpi=110)


class Detections(NamedTuple):
    """Images with what a detector found in them.

    Attributes:
        images (list[np.ndarray]): The images with boxes, RGB, (H, W, 3) each. Small ones are enlarged.
        highest (float): The highest score of all boxes, 0 if there is none.
        score (float): Boxes with a higher score are drawn.
    """

    images: list[np.ndarray]
    highest: float
    score: float

    @property
    def note(self) -> str:
        """A sentence if no box is drawn."""
        if self.highest > self.score:
            return ''
        return f'no detection scores above {self.score:g}, the highest is {self.highest:.2g}'


def detections_in(model: nn.Module, images: Sequence[Path], score: float = 0.5) -> Detections:
    """Draw what a detector finds into images.

    Args:
        model (nn.Module): A detector from ``mmdet.apis.init_detector``.
        images (Sequence[Path]): The files of the images.
        score (float): Boxes with a higher score are drawn. Defaults to 0.5.
    """
    from mmdet.apis import inference_detector
    from mmdet.visualization import DetLocalVisualizer

    visualizer = DetLocalVisualizer()
    visualizer.dataset_meta = model.dataset_meta
    drawn, highest = [], 0.0
    for path in images:
        image = mmcv.imread(str(path), channel_order='rgb')
        # Enlarge small images, so that boxes and labels are readable.
        factor = max(1, 480 // max(image.shape[:2]))
        found = inference_detector(model, str(path)).cpu()
        found.pred_instances.bboxes *= factor
        if 'masks' in found.pred_instances:
            masks = found.pred_instances.masks.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
            found.pred_instances.masks = masks  # (N, H, W)
        highest = max([highest, *found.pred_instances.scores.tolist()])
        visualizer.add_datasample('', mmcv.imrescale(image, factor), found, draw_gt=False, pred_score_thr=score)
        drawn.append(visualizer.get_image())
    return Detections(drawn, highest, score)


def draw_images(images: Sequence[np.ndarray], out: Path, title: str = '') -> None:
    """Draw images side by side, in rows of four.

    Args:
        images (Sequence[np.ndarray]): The images, RGB, (H, W, 3) each.
        out (Path): The image to write.
        title (str): A line above them.
    """
    height, width = images[0].shape[:2]
    columns = min(4, len(images))
    rows = -(-len(images) // columns)
    size = (3.2 * columns, 3.2 * rows * height / width)
    figure = Figure(figsize=size)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.axis('off')
    for axis, image in zip(axes.flat, images):
        axis.imshow(image)
    if title:
        figure.suptitle(title, fontsize=9)
    figure.tight_layout(pad=0.3)
    figure.savefig(out, dpi=110)


def draw_stages(stages: dict[str, tuple[float, float]], out: Path | BinaryIO) -> None:
    """Draw how many bytes the stages of a network have before and after it is compressed.

    Args:
        stages (dict): Bytes before and after by the name of the stage.
        out (Path | BinaryIO): The image to write.
    """
    figure = Figure(figsize=(4.5, 0.8 + 0.6 * len(stages)), layout='constrained')
    axis = figure.subplots()
    places = np.arange(len(stages))
    for values, label, shift in zip(zip(*stages.values()), ('before', 'after'), (0, 0.25)):
        bars = axis.barh(places + shift, [value / 1e6 for value in values], 0.25, label=label)
        axis.bar_label(bars, fmt='%.3g', padding=2, fontsize=7)
    for place, name in zip(places, stages):
        axis.annotate(name, (0, place - 0.18), (3, 0), textcoords='offset points', fontsize=8)
    axis.set_yticks([])
    axis.set_ylim(len(stages) - 0.55, -0.6)
    axis.spines[['top', 'right']].set_visible(False)
    axis.margins(x=0.12)
    axis.set_xlabel('MB', fontsize=8)
    axis.tick_params(labelsize=8)
    figure.legend(loc='outside upper right', ncols=2, fontsize=8)
    figure.savefig(out, dpi=150)


def draw_growth(growth: dict[str, list[dict]], out: Path) -> None:
    """Draw how time and memory grow: a row of plots for each work, a column for each quantity.

    Args:
        growth (dict): The rows of each quantity by name, each with ``value``, ``work``, ``network`` and either
            ``seconds`` or ``bytes``.
        out (Path): The image to write.
    """
    works = list(dict.fromkeys(row['work'] for rows in growth.values() for row in rows))
    figure = Figure(figsize=(4.2 * len(growth) + 0.6, 2.9 * len(works)), layout='constrained')
    axes = figure.subplots(len(works), len(growth), squeeze=False)
    for column, (quantity, rows) in zip(axes.T, growth.items()):
        for axis, work in zip(column, works):
            lines: dict[str, list] = {}
            for row in rows:
                if row['work'] == work:
                    size, unit = (row['bytes'] / 1e6, 'MB') if 'bytes' in row else (row['seconds'] * 1e3, 'ms')
                    lines.setdefault(row['network'], []).append((row['value'], size))
            for name, points in lines.items():
                axis.plot(*zip(*sorted(points)), marker='o', label=name)
            axis.set(title=work, xlabel=quantity, ylabel=unit, xticks=sorted({row['value'] for row in rows}))
            _frame(axis, *zip(*(point for points in lines.values() for point in points)))
            axis.set_ylim(bottom=0)
    axes[0, 0].legend()
    figure.savefig(out, dpi=110)


def draw_metric(table: list[dict], metric: str, out: Path) -> None:
    """Draw the metric of models over their parameters, with its standard deviation.

    Args:
        table (list[dict]): A row for each model, with ``model``, ``parameters``, ``mean`` and ``deviation``.
        metric (str): The name of the metric.
        out (Path): The image to write.
    """
    figure = Figure(figsize=(8, 4.2), layout='constrained')
    axis = figure.subplots()
    for row in table:
        axis.errorbar(
            row['parameters'] / 1e6, row['mean'], yerr=row['deviation'], fmt='o', capsize=4, label=row['model']
        )
    axis.margins(0.1)
    axis.set(xlabel='parameters in millions', ylabel=metric)
    _frame(axis, [row['parameters'] / 1e6 for row in table], [row['mean'] for row in table])
    figure.legend(loc='outside right upper', fontsize=8)
    figure.savefig(out, dpi=120)


class Point(NamedTuple):
    """A network whose size and metric are known.

    Attributes:
        size (float): Its bytes.
        mean (float): The metric.
        width (float): The half width of its interval.
    """

    size: float
    mean: float
    width: float


class Tradeoff(NamedTuple):
    """Points of accuracy over bytes.

    Attributes:
        metric (str): The name of the metric.
        methods (dict): The points of each method and form by name, smallest first.
    """

    metric: str
    methods: dict[str, dict[str, list[Point]]]


def draw_tradeoff(panels: dict[str, Tradeoff], out: Path) -> None:
    """Draw metrics over bytes: a panel for each network, a colour for each method, a line for each of its forms.

    Args:
        panels (dict): The points by the title of the panel.
        out (Path): The image to write.
    """
    places = Counter(method for panel in panels.values() for method in panel.methods)
    methods = sorted(places, key=lambda method: (-places[method], method))  # those of most panels differ most
    forms = sorted({form for panel in panels.values() for lines in panel.methods.values() for form in lines})
    palette = colormaps['tab20'].colors
    colours = dict(zip(methods, palette[::2] + palette[1::2]))
    looks = dict(zip(forms, (dict(marker='o', linestyle='-'), dict(marker='s', linestyle='--'), dict(marker='^'))))
    rows = math.ceil(len(panels) / 2)
    figure = Figure(figsize=(11.4, 4.6 * rows), layout='constrained')
    for place, (title, panel) in enumerate(panels.items(), 1):
        axis = figure.add_subplot(rows, 2, place)
        for method, lines in panel.methods.items():
            for form, points in lines.items():
                sizes, means, widths = zip(*points)
                axis.errorbar(
                    np.array(sizes) / 1e3, means, yerr=widths, color=colours[method], capsize=3, ms=5, **looks[form]
                )
        axis.set(title=title, xlabel='kB of the ONNX model', ylabel=panel.metric, xscale='log')
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter('{x:,.0f}')
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.3)
        named = [Line2D([], [], color=colours[each], label=each) for each in panel.methods]
        below = dict(loc='upper center', bbox_to_anchor=(0.5, -0.14), ncols=2)
        axis.legend(handles=named, fontsize=8, frameon=False, **below)
    handles = [Line2D([], [], color='grey', label=form, **look) for form, look in looks.items()]
    figure.legend(handles=handles, loc='outside upper center', ncols=len(handles), fontsize=8)
    figure.savefig(out, dpi=120, bbox_inches='tight')  # a legend may be wider than its panel
