"""Scores by distance, inside and beyond the distances of training."""
import re
from pathlib import Path
from typing import Dict, List, Tuple

import matplotlib

from .training import Curve

matplotlib.use('Agg')
from matplotlib import pyplot as plt  # noqa: E402

Scores = Dict[Tuple[int, int], float]


def last_scores(scalars: Dict[str, Curve], score: str) -> Scores:
    """The last value of a score of ``PathScore`` for each range of distances, from
    :func:`~mmshared.analysis.training.read_scalars`."""
    found = ((re.fullmatch(rf'paths/{score}/(\d+)-(\d+)', name), curve) for name, curve in scalars.items())
    return {(int(match[1]), int(match[2])): curve[-1][1] for match, curve in found if match}


def draw_scores(panels: Dict[str, Dict[str, Scores]], longest: int, out: Path) -> None:
    """Draw scores by distance, a panel for each kind and runs over each other, with the trained distances shaded.

    Args:
        panels (dict): For each kind of score by its name the scores of the runs by theirs.
        longest (int): The longest distance of training.
        out (Path): The picture to write.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(5.2 * len(panels), 3.6), squeeze=False, layout='constrained')
    for axis, (title, runs) in zip(axes[0], panels.items()):
        shade = axis.axvspan(0, longest + 0.5, color='0.9', label=f'distances of training, up to {longest}')
        lines = [axis.plot([sum(ends) / 2 for ends in scores], list(scores.values()), marker='o', label=run)[0]
                 for run, scores in runs.items()]
        axis.set(xlabel='distance in steps', title=title, xlim=(0, None), ylim=(-0.03, 1.03))
        axis.grid(alpha=0.3)
    figure.legend(handles=[*lines, shade], fontsize=9, loc='outside upper center', ncols=len(lines) + 1)
    figure.savefig(out, dpi=110)
    plt.close(figure)


def score_table(runs: Dict[str, Scores], longest: int) -> List[str]:
    """The lines of a table in Markdown: a row for each run, a column for each range, trained ones in bold."""
    ranges = list(next(iter(runs.values())))
    heads = [f'**{low}-{high}**' if high <= longest else f'{low}-{high}' for low, high in ranges]
    rows = [[run, *(f'{100 * scores[ends]:.1f}' for ends in ranges)] for run, scores in runs.items()]
    lines = [['distance', *heads], ['---', *['---:'] * len(ranges)], *rows]
    return [f'| {" | ".join(line)} |' for line in lines]
