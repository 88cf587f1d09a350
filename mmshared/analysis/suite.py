"""Suites of training runs: their definition, and their results as one table and one plot."""

from __future__ import annotations

import csv
import json
import re
import statistics
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

import yaml

from ..engine.build import build_empty
from ..engine.checkpoint import write_text
from ..engine.config import load_config, reason_in
from ..sharing import SharingError
from .complexity import count_multiply_adds, parameter_count
from .logs import detected_nothing, read_records, read_scalars, read_validations
from .markdown import markdown_table
from .plots import draw_metric

T = TypeVar('T')


@dataclass
class Entry:
    """A model in the file of a suite.

    Attributes:
        config (str): A file, relative to the current folder, or the name of a config in a library.
        name (str): The name of the model. Defaults to the name of the file.
        options (dict, optional): Changes to the config.
        script (str): A script with its arguments, called with the config as the first and the folder of the run as
            ``--work-dir``, in place of training once per seed. It keeps its own results, and skips what is done.
    """

    config: str
    name: str = ''
    options: dict | None = None
    script: str = ''

    def __post_init__(self):
        self.name = self.name or Path(self.config.rpartition('::')[2]).stem
        if not re.fullmatch(r'\w[\w.+-]*', self.name):
            raise ValueError(f'a name is made of letters, digits and .+-_, and {self.name!r} is not')
        if self.script and self.options is not None:
            raise ValueError('options are for training: give its script --cfg-options')


@dataclass
class SuiteFile:
    """The file of a suite.

    Attributes:
        metric (str): The name of the metric in the log.
        configs (list): The models: configs, or mappings with the keys of :class:`Entry`.
        seeds (list[int]): The seeds of each model. Defaults to 0.
        options (dict, optional): Changes to all configs, which are trained. Those of an entry take precedence.
        shape (list[int]): Image height and width for counting multiply-adds, preceded by the number of channels if
            not 3. Defaults to 224, 224.
    """

    metric: str
    configs: list[str | dict]
    seeds: list[int] = field(default_factory=lambda: [0])
    options: dict | None = None
    shape: list[int] = field(default_factory=lambda: [224, 224])

    def __post_init__(self):
        if not self.configs or not self.seeds:
            raise ValueError('it has no config or no seed')
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f'its seeds {self.seeds} are not different')
        if len(self.shape) not in (2, 3):
            raise ValueError(f'its shape {self.shape} is not height and width, or these after the channels')


def _from_yaml(kind: type[T], values: Any, what: str) -> T:
    """Make a dataclass from the content of a YAML file. Raises a :class:`SharingError` for other keys or types."""
    types = get_type_hints(kind)
    needed = [each.name for each in fields(kind) if each.default is MISSING and each.default_factory is MISSING]
    if not isinstance(values, dict) or not set(needed) <= set(values) <= set(types):
        others = [name for name in types if name not in needed]
        raise SharingError(
            f'{what} has to be a mapping with {" and ".join(needed)} and, if you want them, {", ".join(others)}.'
        )
    for key, value in values.items():
        if not _is(value, types[key]):
            wanted = getattr(types[key], '__name__', '') if isinstance(types[key], type) else str(types[key])
            raise SharingError(f'{what} has {key}: {value!r}, and that has to be of the type {wanted}.')
    try:
        return kind(**values)
    except ValueError as error:
        raise SharingError(f'{what} is wrong: {error}.') from None


def _is(value: Any, kind: Any) -> bool:
    """Whether a value is of a type such as ``list[int]`` or ``dict | None``."""
    if get_origin(kind) is UnionType:
        return any(_is(value, each) for each in get_args(kind))
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_is(each, *get_args(kind)) for each in value)
    return type(value) is kind  # true is not a number


class Run(NamedTuple):
    """One run of a suite: a training, or a script.

    Attributes:
        name (str): The name of the model.
        seed (int, optional): The seed of a training.
        config (str): The text of its config, with the options and the seed; of a script, the file or name.
        work_dir (Path): Where it writes. The config of a training is beside this folder, under the same name.
        script (str): The script with its arguments; '' for a training.
    """

    name: str
    seed: int | None
    config: str
    work_dir: Path
    script: str = ''

    @property
    def title(self) -> str:
        return self.name if self.script else f'{self.name}, seed {self.seed}'

    @property
    def config_file(self) -> Path:
        return self.work_dir.with_name(f'{self.work_dir.name}.py')

    @property
    def log(self) -> Path:
        return self.work_dir / 'run.log'


class Suite(NamedTuple):
    """A list of runs whose results are one table.

    Attributes:
        metric (str): The name of the metric in the log.
        runs (list[Run]): The runs.
        counts (dict): The ``parameters`` and ``multiply_adds`` of each model that is trained, by name.
    """

    metric: str
    runs: list[Run]
    counts: dict[str, dict[str, int]]


def read_suite(path: Path, work_dir: Path) -> Suite:
    """Read a suite from a YAML file, and build each of its models once.

    Its keys are the attributes of :class:`SuiteFile`. Options have the values that YAML gives them.

    Raises:
        SharingError: If the file has other content, or if a model cannot be built.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = ' '.join(str(error).split())
        raise SharingError(f'The suite {path} cannot be read: {reason}') from None
    suite = _from_yaml(SuiteFile, content, f'The suite {path}')
    runs, counts = [], {}
    for each in suite.configs:
        given = dict(config=each) if isinstance(each, str) else each
        entry = _from_yaml(Entry, given, f'The entry {each} of the suite {path}')
        if entry.script and suite.options:
            raise SharingError(
                f'The suite {path} has options, which are for training, and {entry.name} is a script: give that '
                '--cfg-options.'
            )
        if entry.name in {run.name for run in runs}:
            raise SharingError(
                f'The suite {path} has {entry.name} twice: give entries of one config names of their own.'
            )
        cfg = load_config(entry.config, {**(suite.options or {}), **(entry.options or {})})
        try:
            model = build_empty(cfg)
            if not entry.script:
                multiply_adds = count_multiply_adds(model, tuple(suite.shape))['']
                counts[entry.name] = dict(parameters=parameter_count(model), multiply_adds=multiply_adds)
        except Exception as error:
            raise SharingError(f'{entry.name} of the suite {path} cannot be built: {reason_in(error)}') from None
        if entry.script:
            runs.append(Run(entry.name, None, entry.config, work_dir / entry.name, entry.script))
            continue
        for seed in suite.seeds:
            cfg.merge_from_dict({'randomness.seed': seed})
            runs.append(Run(entry.name, seed, cfg.pretty_text, work_dir / entry.name / f'seed_{seed}'))
    return Suite(suite.metric, runs, counts)


def finished(run: Run, suite: Suite) -> bool:
    """Whether an earlier call finished a training. Scripts see themselves what is left to do.

    Raises:
        SharingError: If its folder holds a run with another config.
    """
    if run.script:
        return False
    if run.config_file.is_file() and run.config_file.read_text() != run.config:
        raise SharingError(
            f'{run.work_dir} holds a run with other settings: remove it and {run.config_file.name} '
            'beside it, or train in another folder.'
        )
    result = run.work_dir / 'result.json'
    return result.is_file() and read_result(result)['metric_name'] == suite.metric


def read_result(path: Path) -> dict:
    """The result of a run, from its ``result.json``.

    Raises:
        SharingError: If the file is damaged.
    """
    try:
        result = json.loads(path.read_text())
        return {**result, 'metric': float(result['metric']), 'metric_name': str(result['metric_name'])}
    except (KeyError, TypeError, ValueError):
        raise SharingError(f'{path} is damaged: remove it, and train this run again.') from None


def collect(run: Run, suite: Suite, resident_bytes: int) -> None:
    """Write ``result.json`` into the folder of a training that succeeded.

    Args:
        run (Run): The run.
        suite (Suite): Its suite.
        resident_bytes (int): The peak memory of its process, used if no GPU memory was logged.
    """
    scalars, records = read_scalars(run.work_dir), read_records(run.work_dir)
    metric = _last_metric(run, suite.metric)
    checkpoint = Path((run.work_dir / 'last_checkpoint').read_text().strip())
    result = dict(
        metric_name=suite.metric,
        metric=metric,
        checkpoint_bytes=(run.work_dir / checkpoint.name).stat().st_size,
        seconds_per_iteration=statistics.median(record['time'] for record in records if 'loss' in record),
        memory_bytes=max((int(value * 2**20) for _, value in scalars.get('memory', [])), default=resident_bytes),
    )
    write_text(run.work_dir / 'result.json', json.dumps(result))


def _last_metric(run: Run, metric: str) -> float:
    """The value of a metric in the last validation of a run, or of another scalar at its end. It is 0 for a detector
    that found nothing: mmdet then logs no metric."""
    scalars, validations = read_scalars(run.work_dir), read_validations(run.work_dir)
    names = list(dict.fromkeys(name for metrics in validations for name in metrics))
    is_metric = metric in names or ('/' in metric and not names)
    if is_metric and validations and not validations[-1] and detected_nothing(run.work_dir):
        return 0.0
    if metric not in scalars:
        raise SharingError(f'The log of {run.title} has no {metric}: its metrics are {", ".join(names) or "none"}.')
    return scalars[metric][-1][1]


def rows(suite: Suite) -> list[dict]:
    """A row for each model with a finished run: mean and standard deviation of its metric over the seeds, and medians
    of the other values."""
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
    """Write the table of a suite as results.json, results.csv and results.md, and a plot of the metric over the
    parameters as results.png. Returns the Markdown."""
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
    lines = []
    for row in table:
        spread = '' if row['deviation'] is None else f' ± {row["deviation"]:.2g}'
        lines.append(
            [
                row['model'],
                str(row['runs']),
                f'{row["mean"]:.4g}{spread}',
                f'{row["parameters"]:,}',
                f'{row["multiply_adds"] / 1e9:.3g} G',
                f'{row["checkpoint_bytes"] / 1e6:.2f} MB',
                f'{row["seconds_per_iteration"]:.3g} s',
                f'{row["memory_bytes"] / 1e6:,.0f} MB',
            ]
        )
    text = markdown_table(head, lines) + '\n'
    (folder / 'results.md').write_text(text)
    draw_metric(table, suite.metric, folder / 'results.png')
    return text
