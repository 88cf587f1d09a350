"""The scalars that training runs have logged."""
import json
import re
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Dict, Iterator, List, Tuple

import matplotlib
import numpy as np

matplotlib.use('Agg')
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.lines import Line2D  # noqa: E402
from matplotlib.ticker import MaxNLocator  # noqa: E402

from ..cli import output_picture  # noqa: E402
from ..sharing import SharingError  # noqa: E402

Curve = List[Tuple[int, float]]


def add_runs(parser: ArgumentParser, out: str) -> None:
    """Add what a tool that compares runs is told: their work dirs, their names, the picture to write."""
    parser.add_argument('work_dirs', type=Path, nargs='+', metavar='work_dir',
                        help='the work dir of a run of train.py')
    parser.add_argument('--legend', nargs='+', help='names of the runs (default: those of their folders)')
    parser.add_argument('--out', type=output_picture, default=out, help=f'default: {out}')


def named_runs(parser: ArgumentParser, args: Namespace) -> Dict[str, Path]:
    """The work dirs of :func:`add_runs` by their names; the parser stops if a run has no name of its own."""
    names = args.legend or [path.resolve().name for path in args.work_dirs]
    if len(set(names)) < len(args.work_dirs) or len(names) > len(args.work_dirs):
        parser.error('--legend: give each run a name of its own')
    return dict(zip(names, args.work_dirs))


def read_records(work_dir: Path) -> Iterator[dict]:
    """The lines of a run's logs of scalars, but for one that was cut off as the run was killed."""
    for log in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for line in log.read_text().splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                break


def read_scalars(work_dir: Path) -> Dict[str, Curve]:
    """The logged scalars of a run by name, each as (iteration or, for a metric, epoch, value).

    A resumed run has several logs; where they overlap the later one counts.
    """
    curves: Dict[str, Dict[int, float]] = {}
    for record in read_records(work_dir):
        for name, value in record.items():
            if isinstance(value, (int, float)):
                curves.setdefault(name, {})[record['step']] = value
    return {name: sorted(curve.items()) for name, curve in curves.items()}


def draw_curves(scalars: Dict[str, Curve], metric: str, out: Path) -> None:
    """Draw the loss, the orthogonality loss and a metric of a run, each over its own axis."""
    panels = [('loss', 'iteration', 'linear'), ('loss_orth', 'iteration', 'log'), (metric, 'epoch', 'linear')]
    panels = [panel for panel in panels if scalars.get(panel[0])]
    figure, axes = plt.subplots(1, len(panels), figsize=(4.5 * len(panels), 3.2), squeeze=False)
    for axis, (name, steps, scale) in zip(axes[0], panels):
        x, y = zip(*scalars[name])
        axis.plot(x, y, marker='.' if len(x) < 30 else None)
        axis.set(xlabel=steps, title=name, yscale=scale)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(out, dpi=120)
    plt.close(figure)


def draw_runs(runs: Dict[str, Dict[str, Curve]], pattern: str, out: Path, scale: str = 'log') -> List[str]:
    """Draw scalars of several runs over each other: a panel for each scalar, a row for each last part of their names.

    Args:
        runs (dict): The scalars of each run, from :func:`read_scalars`, by the name of the run.
        pattern (str): Regular expression for the whole name of a scalar.
        out (Path): The picture to write.
        scale (str): Of the values, ``'log'`` or ``'linear'``.

    Returns:
        list[str]: The names of the scalars drawn.

    Raises:
        SharingError: If no scalar matches, or if the pattern is none.
    """
    try:
        wanted = re.compile(pattern)
    except re.error as error:
        raise SharingError(f'{pattern!r} is no regular expression: {error}.') from None
    there = list(dict.fromkeys(name for scalars in runs.values() for name in scalars))
    rows: Dict[str, List[str]] = {}
    for name in there:
        if wanted.fullmatch(name):
            rows.setdefault(name.rpartition('/')[2], []).append(name)
    if not rows:
        raise SharingError(f'No scalar of these runs matches {pattern!r}: they have {", ".join(there)}.')
    columns = max(map(len, rows.values()))
    figure, axes = plt.subplots(len(rows), columns, figsize=(4.2 * columns, 2.8 * len(rows)), squeeze=False,
                                layout='constrained')
    for row, names in zip(axes, rows.values()):
        for axis in row[len(names):]:
            axis.axis('off')
        for axis, name in zip(row, names):
            for index, scalars in enumerate(runs.values()):
                if name in scalars:
                    _draw_smoothed(axis, scalars[name], f'C{index}')
            axis.set_title(name, fontsize=9)
            axis.set_yscale(scale)
            axis.grid(alpha=0.3)
    figure.legend([Line2D([], [], color=f'C{index}') for index in range(len(runs))], list(runs), fontsize=9,
                  loc='outside upper center', ncols=len(runs))
    figure.savefig(out, dpi=110)
    plt.close(figure)
    return [name for names in rows.values() for name in names]


def _draw_smoothed(axis: plt.Axes, curve: Curve, colour: str) -> None:
    """A curve, pale where it has many points, and over it the mean of each 25th part of them."""
    x, y = np.array(curve).T
    if len(x) < 50:
        axis.plot(x, y, color=colour, marker='.')
    else:
        axis.plot(x, y, color=colour, alpha=0.25, linewidth=0.6)
        means = [[part.mean() for part in np.array_split(values, 25)] for values in (x, y)]
        axis.plot(*means, color=colour)
