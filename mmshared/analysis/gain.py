"""Computes how much of one model's gain over a baseline another model reaches."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..sharing import SharingError
from .suite import read_result

DRAWS = 20_000


class Interval(NamedTuple):
    """A value with the bounds that hold 95 % of its draws; the bounds are NaN if there is nothing to draw from."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        bounds = '' if math.isnan(self.low) else f' ({self.low:.2f} to {self.high:.2f})'
        return f'{self.value:.2f}{bounds}'


class Comparison(NamedTuple):
    """A model between a baseline and a better model.

    Attributes:
        gain (Interval): The gain of the better model over the baseline, in percentage points.
        share (Interval, optional): The share of that gain that the model reaches: (model - baseline) / gain. None if
            the gain is 0 or its interval contains 0, because the quotient could then be anything.
    """

    gain: Interval
    share: Interval | None


def read_accuracies(folder: Path, metric: str) -> list[float]:
    """The metric of each finished run of a model in a suite, from ``seed_*/result.json`` in its folder.

    Raises:
        SharingError: If there is no finished run, or one with another metric, or a damaged result.
    """
    results = [read_result(path) for path in sorted(folder.glob('seed_*/result.json'))]
    if not results:
        raise SharingError(f'{folder} has no finished run: name the folder of a model that `mmshared benchmark` ran.')
    others = {result['metric_name'] for result in results} - {metric}
    if others:
        raise SharingError(f'The runs in {folder} were measured by {", ".join(sorted(others))}, not by {metric}.')
    return [result['metric'] for result in results]


def compare(baseline: Sequence[float], model: Sequence[float], better: Sequence[float]) -> Comparison:
    """Compare the mean accuracies of three models on one test set, with the uncertainty from the spread of their runs:
    each mean is drawn from Student's distribution around it. A single run says nothing about the spread.

    Args:
        baseline, model, better (Sequence[float]): The accuracies of their runs, in percent.
    """
    random = np.random.default_rng(0)
    lower, upper, between = [_draw_means(runs, random) for runs in (baseline, better, model)]
    start, reached, end = np.mean(baseline), np.mean(model), np.mean(better)
    gain = _interval(end - start, upper - lower)
    if end == start or gain.low <= 0 <= gain.high:
        return Comparison(gain, None)
    return Comparison(gain, _interval((reached - start) / (end - start), (between - lower) / (upper - lower)))


def _draw_means(runs: Sequence[float], random: np.random.Generator) -> np.ndarray:
    if len(runs) == 1:
        return np.full(DRAWS, math.nan)
    error = np.std(runs, ddof=1) / math.sqrt(len(runs))
    return np.mean(runs) + error * random.standard_t(len(runs) - 1, DRAWS)  # (DRAWS, )


def _interval(value: float, draws: np.ndarray) -> Interval:
    return Interval(float(value), *map(float, np.quantile(draws, (0.025, 0.975))))
