"""The report on a compressed network: a page that opens offline in any browser, and its numbers as JSON."""

from __future__ import annotations

import base64
import copy
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import torch
from PIL import Image
from torch import nn

from ..analysis.complexity import count_multiply_adds
from ..analysis.logs import Curve
from ..analysis.plots import draw_curves, draw_stages
from ..analysis.speed import time_in_turn
from ..sharing import fold_layers
from ..version import __version__
from .plan import size_of


@dataclass
class Results:
    """What the report is about.

    Attributes:
        name (str): The name of the network.
        networks (dict[str, dict]): What :func:`measure` says of the ``'plain'`` and the ``'converted'`` network and,
            if there was a fine-tuning, of the ``'finetuned'`` one, each with its ``metrics`` by name.
        metric (str): The most important metric.
        plan (list[dict]): A row for each group: its ``stage``, ``group``, the names of its ``layers``, their
            parameters ``before`` and ``after``, ``bank`` and ``rank`` (empty if it stays plain) and predicted ``cost``
            (or None).
        curves (dict): The scalars of the fine-tuning, as ``read_scalars`` returns them.
        detections (dict[str, list[np.ndarray]]): The same images with the detections of two or more of the networks,
            by the names of ``networks``: RGB, (H, W, 3).
        commands (dict[str, str]): Commands that use the result, by what they do.
    """

    name: str
    networks: dict[str, dict]
    metric: str
    plan: list[dict] = field(default_factory=list)
    curves: dict[str, Curve] = field(default_factory=dict)
    detections: dict[str, list[np.ndarray]] = field(default_factory=dict)
    commands: dict[str, str] = field(default_factory=dict)


def measure(networks: dict[str, nn.Module], batch: dict, rounds: int = 10) -> dict[str, dict]:
    """Measure networks of one config, timed in turn.

    Args:
        networks (dict[str, nn.Module]): The networks by name, on one device. They are left in eval mode.
        batch (dict): A batch of the config's data loader, which is the inference that is timed.
        rounds (int): How often each is timed. Defaults to 10.

    Returns:
        dict[str, dict]: For each network its ``parameters`` and ``bytes`` (of :func:`size_of`), and, folded as it is
        shipped, the ``multiply_adds`` of :func:`count_multiply_adds` for one image and the ``time`` of the batch
        in seconds, the median of the rounds.
    """

    def inference(network: Any) -> None:
        with torch.inference_mode():
            network.test_step(batch)

    for network in networks.values():
        network.eval()
    first: Any = next(iter(networks.values()))
    size = first.data_preprocessor(batch, False)['inputs'].shape[1:]
    device = next(first.parameters()).device
    folded = {name: fold_layers(copy.deepcopy(network)) for name, network in networks.items()}
    timings = time_in_turn({name: partial(inference, each) for name, each in folded.items()}, rounds, device)
    return {
        name: dict(
            **size_of(network)._asdict(),
            multiply_adds=count_multiply_adds(folded[name], size)[''],
            time=timings[name].seconds,
        )
        for name, network in networks.items()
    }


def write_report(results: Results, folder: Path) -> Path:
    """Write ``report.html`` and ``report.json`` into a folder.

    The JSON has the networks' numbers under ``plain``, ``converted`` and ``finetuned``, each with ``parameters``,
    ``bytes``, ``multiply_adds``, ``time`` and ``metrics``, and the rows of the ``plan``. A number that is not finite
    becomes null. The page has no heading for what ``results`` lacks.

    Returns:
        Path: The page.
    """
    numbers = json.dumps(_finite(dict(results.networks, plan=results.plan)), indent=2, allow_nan=False)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True
    )
    environment.globals.update(count='{:,}'.format, percent=_percent, figure=_figure)
    logged = {
        name: results.curves[name]
        for name in ('loss', 'loss_distill', results.metric)
        if len(results.curves.get(name, ())) > 1
    }
    page = environment.get_template('report.html').render(
        name=results.name,
        summary=_summary(results),
        networks=list(results.networks),
        rows=_rows(results),
        plan=results.plan,
        total={key: sum(row[key] for row in results.plan) for key in ('before', 'after')},
        stages=_plotted(draw_stages, _stages(results)) if results.plan else None,
        curves={name: _plotted(draw_curves, {name: curve}, results.metric) for name, curve in logged.items()},
        detections=[
            dict(zip(results.detections, map(_photo, images))) for images in zip(*results.detections.values())
        ],
        commands=results.commands,
        numbers=numbers,
        version=__version__,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'report.json').write_text(f'{numbers}\n')
    (folder / 'report.html').write_text(page, encoding='utf-8')
    return folder / 'report.html'


def _finite(value: Any) -> Any:
    """The value with None for each number that is not finite."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _percent(part: float, whole: float) -> str:
    return f'{100 * part / whole:.1f} %' if whole else '–'


def _figure(value: float | None) -> str:
    return '–' if value is None or not math.isfinite(value) else f'{value:#.4g}'


class Quantity(NamedTuple):
    """A size of a network on the page.

    Attributes:
        label (str): What it is called.
        write (Callable): Its text.
    """

    label: str
    write: Callable[[Any], str]


SIZES = dict(
    parameters=Quantity('parameters', '{:,}'.format),
    bytes=Quantity('bytes of the weights', lambda value: f'{value / 1e6:,.2f} MB'),
    multiply_adds=Quantity('multiply-adds', lambda value: f'{value / 1e9:.4g} G'),
    time=Quantity('time of an inference', lambda value: f'{1e3 * value:,.1f} ms'),
)


def _score(network: dict, metric: str) -> float:
    """A metric of a network; NaN if it has none. (COCO's are -1 where there are no objects.)"""
    score = network['metrics'].get(metric, -1)
    return math.nan if score == -1 else score


def _summary(results: Results) -> str:
    """What came out, in one or two sentences."""
    plain, last = results.networks['plain'], list(results.networks.values())[-1]
    kept = [
        f'{_percent(last[key], plain[key])} of the {key} ({SIZES[key].write(last[key])} of '
        f'{SIZES[key].write(plain[key])})'
        for key in ('parameters', 'bytes')
    ]
    scores = [_score(network, results.metric) for network in (last, plain)]
    told = f' {results.metric}: {_figure(scores[0])}, plain {_figure(scores[1])}.'
    return f'Kept: {" and ".join(kept)}.' + (told if math.isfinite(sum(scores)) else '')


class TableRow(NamedTuple):
    """A row of the table of networks.

    Attributes:
        label (str): What it is about.
        cells (list[tuple[str, str]]): The value of each network, and how it compares to the plain network's.
        main (bool): Whether it is the most important metric.
    """

    label: str
    cells: list[tuple[str, str]]
    main: bool = False


def _rows(results: Results) -> list[TableRow]:
    networks = list(results.networks.values())
    rows = []
    for key, size in SIZES.items():
        values = [network[key] for network in networks]
        notes = ['', *(_percent(value, values[0]) for value in values[1:])]
        rows.append(TableRow(size.label, list(zip(map(size.write, values), notes))))
    for metric in dict.fromkeys(metric for network in networks for metric in network['metrics']):
        scores = [_score(network, metric) for network in networks]
        if not all(map(math.isnan, scores)):
            notes = ['', *('' if math.isnan(gain) else f'{gain:+.3g}' for gain in (s - scores[0] for s in scores[1:]))]
            rows.append(TableRow(metric, list(zip(map(_figure, scores), notes)), metric == results.metric))
    return rows


def _stages(results: Results) -> dict[str, tuple[float, float]]:
    """The bytes of the plan's stages in float32, before and after, and of everything else."""
    size = torch.float32.itemsize
    stages: dict[str, tuple[float, float]] = {}
    for row in results.plan:
        name = row['stage'] or row['group'] or row['layers'][0]
        before, after = stages.get(name, (0, 0))
        stages[name] = before + size * row['before'], after + size * row['after']
    ends = [results.networks[step]['bytes'] for step in ('plain', 'converted')]
    rest = [end - sum(each) for end, each in zip(ends, zip(*stages.values()))]
    return stages | ({'everything else': (rest[0], rest[1])} if min(rest) > 0 else {})


class Embedded(NamedTuple):
    """An image inside the page.

    Attributes:
        kind (str): Its media type.
        data (str): The file in base64.
    """

    kind: str
    data: str


def _plotted(draw: Callable[..., None], *args: Any) -> Embedded:
    """What a function of ``plots`` draws."""
    file = BytesIO()
    draw(*args, file)
    return Embedded('image/png', base64.b64encode(file.getvalue()).decode())


def _photo(image: np.ndarray) -> Embedded:
    file = BytesIO()
    Image.fromarray(image).save(file, 'JPEG', quality=85)
    return Embedded('image/jpeg', base64.b64encode(file.getvalue()).decode())
