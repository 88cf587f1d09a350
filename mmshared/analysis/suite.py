"""Suites of training runs: what they are, what came of them, as one table and one plot."""

import csv
import json
import os
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from mmengine.config import Config

from ..engine.build import build_model
from ..engine.config import load_config, merge_options
from ..sharing import SharingError
from .complexity import count_multiply_adds, parameter_count
from .logs import read_records, read_scalars
from .plots import draw_metric


class Run(NamedTuple):
    """One training run of a suite.

    Attributes:
        name (str): The name of the model.
        seed (int): The seed.
        config (str): The text of its config, options and seed in it.
        work_dir (Path): Where it writes. Its config stands beside, under the same name.
    """

    name: str
    seed: int
    config: str
    work_dir: Path

    @property
    def title(self) -> str:
        return f'{self.name}, seed {self.seed}'

    @property
    def config_file(self) -> Path:
        return self.work_dir.with_name(f'{self.work_dir.name}.py')

    def arguments(self) -> list[str]:
        """The arguments of train.py. With ``--resume`` an interrupted run goes on."""
        return [str(self.config_file), '--work-dir', str(self.work_dir), '--resume']


class Suite(NamedTuple):
    """A list of runs whose results are one table.

    Attributes:
        metric (str): The name of the metric in the log.
        runs (list[Run]): The runs.
        counts (dict): For each model's name its ``parameters`` and ``macs``.
    """

    metric: str
    runs: list[Run]
    counts: dict[str, dict[str, int]]


def read_suite(path: Path, work_dir: Path) -> Suite:
    """Read a suite from a YAML file, and build each of its models once.

    Its keys: ``metric``, the name of the metric in the log; ``configs``, a list of configs, or of mappings with
    ``config`` and where wanted ``name`` and ``options``; and where wanted ``seeds`` (default: 0), ``options`` for all
    configs, and ``shape``, height and width for the multiply-adds, after the number of channels where that is not 3
    (default: 224, 224). Configs are files, relative to the folder that the command is called in, or a library's names;
    options are those of ``--cfg-options``, values as YAML has them.

    Raises:
        SharingError: If the file says something else, or a model cannot be built.
    """
    try:
        suite = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = ' '.join(str(error).split())
        raise SharingError(f'The suite {path} cannot be read: {reason}') from None
    _check(suite, path)
    runs, counts = [], {}
    for entry in suite['configs']:
        entry = dict(config=entry) if isinstance(entry, str) else entry
        name = entry.get('name', Path(entry['config'].rpartition('::')[2]).stem)
        if name in counts:
            raise SharingError(f'The suite {path} has {name} twice: give entries of one config names of their own.')
        cfg = _config(entry['config'], {**(suite.get('options') or {}), **(entry.get('options') or {})})
        try:
            model = build_model(cfg)
            counts[name] = dict(
                parameters=parameter_count(model),
                macs=count_multiply_adds(model, tuple(suite.get('shape', (224, 224))))[''],
            )
        except Exception as error:
            raise SharingError(f'{name} of the suite {path} cannot be built: {str(error).splitlines()[-1]}') from None
        for seed in suite.get('seeds', [0]):
            cfg.merge_from_dict({'randomness.seed': seed})
            runs.append(Run(name, seed, cfg.pretty_text, work_dir / name / f'seed_{seed}'))
    return Suite(suite['metric'], runs, counts)


def _check(suite: Any, path: Path) -> None:
    """Raise a :class:`SharingError` unless a suite's file has the keys and types that it may have."""
    kinds = dict(metric=str, configs=list, seeds=list, options=(dict, type(None)), shape=list)
    if (
        not isinstance(suite, dict)
        or not {'metric', 'configs'} <= set(suite) <= set(kinds)
        or not all(isinstance(value, kinds[key]) for key, value in suite.items())
    ):
        raise SharingError(
            f'The suite {path} has to be a mapping with metric, a name, and configs, a list, and where '
            'wanted seeds, a list, options, a mapping, and shape, a list.'
        )
    seeds, shape = suite.get('seeds', [0]), suite.get('shape', [224, 224])
    if (
        not all(type(number) is int for number in (*seeds, *shape))
        or len(shape) not in (2, 3)
        or len(set(seeds)) < len(seeds)
    ):
        raise SharingError(
            f'The suite {path} has seeds {seeds} and shape {shape}: give different whole numbers, and '
            'height and width, after the channels if not 3.'
        )
    if not suite['configs'] or not seeds:
        raise SharingError(f'The suite {path} has no config or no seed.')
    for entry in suite['configs']:
        fine = (
            isinstance(entry, str)
            or isinstance(entry, dict)
            and isinstance(entry.get('config'), str)
            and set(entry) <= {'config', 'name', 'options'}
            and isinstance(entry.get('options'), (dict, type(None)))
            and re.fullmatch(r'\w[\w.+-]*', str(entry.get('name', 'x')))
        )
        if not fine:
            raise SharingError(
                f'The suite {path} has the entry {entry}: give a config, or a mapping with config and, '
                'where wanted, name (letters, digits and .+-_) and options.'
            )


def _config(name: str, options: dict) -> Config:
    """A config with options, that of the data set's root among them."""
    try:
        cfg = load_config(name)
        merge_options(cfg, options)
    except SharingError:
        raise
    except Exception as error:
        raise SharingError(f'The config {name} cannot be read: {str(error).splitlines()[-1]}') from None
    return cfg


def finished(run: Run, suite: Suite) -> bool:
    """Whether a run has been finished by an earlier call.

    Raises:
        SharingError: If its folder holds a run with another config.
    """
    if run.config_file.is_file() and run.config_file.read_text() != run.config:
        raise SharingError(
            f'{run.work_dir} holds a run with other settings: remove it and {run.config_file.name} '
            'beside it, or name another --work-dir.'
        )
    result = run.work_dir / 'result.json'
    return result.is_file() and read_result(result)['metric_name'] == suite.metric


def read_result(path: Path) -> dict:
    """What came of a run, from its ``result.json``.

    Raises:
        SharingError: If the file is damaged.
    """
    try:
        result = json.loads(path.read_text())
        return {**result, 'metric': float(result['metric']), 'metric_name': str(result['metric_name'])}
    except (KeyError, TypeError, ValueError):
        raise SharingError(f'{path} is damaged: remove it, and call tools/benchmark.py again.') from None


def collect(run: Run, suite: Suite, resident_bytes: int) -> None:
    """Write ``result.json`` into the folder of a run that has ended well.

    Args:
        run (Run): The run.
        suite (Suite): Its suite.
        resident_bytes (int): The most memory that its process held, taken where no GPU memory was logged.
    """
    scalars = read_scalars(run.work_dir)
    if suite.metric not in scalars:
        raise SharingError(
            f'The log of {run.title} has no {suite.metric}: its metrics are '
            f'{", ".join(name for name in scalars if "/" in name) or "none"}.'
        )
    records = read_records(run.work_dir)
    checkpoint = Path((run.work_dir / 'last_checkpoint').read_text().strip())
    partial = run.work_dir / 'result.json.partial'
    partial.write_text(
        json.dumps(
            dict(
                metric_name=suite.metric,
                metric=scalars[suite.metric][-1][1],
                checkpoint_bytes=(run.work_dir / checkpoint.name).stat().st_size,
                seconds_per_iteration=statistics.median(record['time'] for record in records if 'loss' in record),
                memory_bytes=max(
                    (int(value * 2**20) for _, value in scalars.get('memory', [])), default=resident_bytes
                ),
            )
        )
    )
    os.replace(partial, run.work_dir / 'result.json')


def rows(suite: Suite) -> list[dict]:
    """A row for each model with a finished run: mean and standard deviation of its metric over the seeds, and the
    medians of the rest."""
    results: dict[str, list[dict]] = {}
    for run in suite.runs:
        if finished(run, suite):
            results.setdefault(run.name, []).append(read_result(run.work_dir / 'result.json'))
    return [
        dict(
            model=name,
            runs=len(found),
            mean=statistics.mean(result['metric'] for result in found),
            deviation=statistics.stdev(result['metric'] for result in found) if len(found) > 1 else None,
            **suite.counts[name],
            **{key: statistics.median_low(result[key] for result in found) for key in found[0] if 'metric' not in key},
        )
        for name, found in results.items()
    ]


def write_tables(suite: Suite, folder: Path) -> str:
    """Write the table of a suite as results.json, results.csv and results.md, and as results.png the metric over the
    parameters. Returns the Markdown."""
    table = rows(suite)
    (folder / 'results.json').write_text(json.dumps(dict(metric=suite.metric, models=table), indent=1))
    with open(folder / 'results.csv', 'w', newline='') as file:
        writer = csv.DictWriter(file, table[0])
        writer.writeheader()
        writer.writerows(table)
    head = [
        'model',
        'runs',
        suite.metric,
        'parameters',
        'multiply-adds',
        'training checkpoint',
        'time per iteration',
        'memory',
    ]
    lines: list[Sequence[str]] = [head, ['---', *['---:'] * (len(head) - 1)]]
    for row in table:
        spread = '' if row['deviation'] is None else f' ± {row["deviation"]:.2g}'
        lines.append(
            [
                row['model'],
                str(row['runs']),
                f'{row["mean"]:.4g}{spread}',
                f'{row["parameters"]:,}',
                f'{row["macs"] / 1e9:.3g} G',
                f'{row["checkpoint_bytes"] / 1e6:.2f} MB',
                f'{row["seconds_per_iteration"]:.3g} s',
                f'{row["memory_bytes"] / 1e6:,.0f} MB',
            ]
        )
    text = '\n'.join(f'| {" | ".join(line)} |' for line in lines) + '\n'
    (folder / 'results.md').write_text(text)
    draw_metric(table, suite.metric, folder / 'results.png')
    return text
