"""Reads the scalars that training runs have logged."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from .markdown import markdown_table

#: What mmdet logs in place of metrics if a detector finds nothing at all.
NOTHING_DETECTED = 'The testing results of the whole dataset is empty'

Curve = list[tuple[int, float]]
Scores = dict[tuple[int, int], float]


def read_records(work_dir: Path) -> Iterator[dict]:
    """The records in a run's logs of scalars, without a last line that was cut off when the run was killed.

    mmengine logs a validation at its epoch, which is 0 in a run that only counts iterations. There its step becomes
    the last logged iteration before it.
    """
    iteration = 0
    for log in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for line in log.read_text().splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                break
            if 'iter' in record:
                iteration = record['step']
            yield {**record, 'step': record['step'] or iteration}


def config_of(work_dir: Path) -> Path | None:
    """The config of the last training in a work dir, which lies beside its log: tests there have configs too. None if
    there is no such log with a config."""
    logs = sorted(work_dir.glob('*/vis_data/scalars.json'))
    trainings = [log for log in logs if '"iter"' in log.read_text()]  # as in read_records
    configs = [path for path in (log.with_name('config.py') for log in trainings) if path.is_file()]
    return configs[-1] if configs else None


def read_scalars(work_dir: Path) -> dict[str, Curve]:
    """The logged scalars of a run by name, each as (iteration, value). A metric has the epoch in its place, unless the
    run only counts iterations.

    A resumed run has several logs; where they overlap, the later one counts.
    """
    curves: dict[str, dict[int, float]] = {}
    for record in read_records(work_dir):
        for name, value in record.items():
            if isinstance(value, (int, float)):
                curves.setdefault(name, {})[record['step']] = value
    return {name: sorted(curve.items()) for name, curve in curves.items()}


def read_validations(work_dir: Path) -> list[dict[str, float]]:
    """The metrics of each validation of a run, in order. A validation without detections has none."""
    return [
        {name: value for name, value in record.items() if '/' in name}
        for record in read_records(work_dir)
        if 'time' in record and 'iter' not in record  # 'iter' is logged in training, 'time' not by hooks
    ]


def detected_nothing(work_dir: Path) -> bool:
    """Whether a run has validations without metrics because the detector found nothing, and for no other reason."""
    return any(NOTHING_DETECTED in log.read_text() for log in work_dir.glob('*/*.log'))


def last_scores(scalars: dict[str, Curve], score: str) -> Scores:
    """The last value of a score of ``PathScore`` for each range of distances, from :func:`read_scalars`."""
    found = ((re.fullmatch(rf'paths/{score}/(\d+)-(\d+)', name), curve) for name, curve in scalars.items())
    return {(int(match[1]), int(match[2])): curve[-1][1] for match, curve in found if match}


def score_table(runs: dict[str, Scores], longest: int) -> list[str]:
    """The lines of a Markdown table: a row for each run, a column for each range, with the trained ranges in bold."""
    ranges = list(next(iter(runs.values())))
    heads = [f'**{low}-{high}**' if high <= longest else f'{low}-{high}' for low, high in ranges]
    rows = [[run, *(f'{100 * scores[ends]:.1f}' for ends in ranges)] for run, scores in runs.items()]
    return markdown_table(['distance', *heads], rows).splitlines()
