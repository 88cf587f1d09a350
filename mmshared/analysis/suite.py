"""Suites of training runs: what they are, what came of them, as one table and one plot."""
import csv
import json
import statistics
from pathlib import Path
from typing import Dict, List, NamedTuple

import matplotlib
import yaml
from mmengine.config import Config

from ..cli import config_path
from ..sharing import SharingError
from .complexity import count_multiply_adds, parameter_count
from .models import build_model
from .training import read_scalars

matplotlib.use('Agg')
from matplotlib import pyplot as plt  # noqa: E402


class Run(NamedTuple):
    """One training run of a suite.

    Attributes:
        name (str): The name of the model.
        config (str): Its config, a file or a library's name for one.
        seed (int): The seed.
        options (dict): What ``--cfg-options`` changes in the config.
        work_dir (Path): Where it writes.
    """

    name: str
    config: str
    seed: int
    options: dict
    work_dir: Path

    @property
    def title(self) -> str:
        return f'{self.name}, seed {self.seed}'

    @property
    def settings(self) -> dict:
        """What has to be the same for a finished run to count."""
        return dict(config=self.config, seed=self.seed, options=self.options)

    def arguments(self) -> List[str]:
        """The arguments of train.py. With ``--resume`` an interrupted run goes on."""
        options = {**self.options, 'randomness.seed': self.seed}
        return [self.config, '--work-dir', str(self.work_dir), '--resume', '--cfg-options',
                *(f'{key}={value}' for key, value in options.items())]


class Suite(NamedTuple):
    """A list of runs whose results are one table.

    Attributes:
        metric (str): The name of the metric in the log.
        shape (list[int]): Height and width of the picture that multiply-adds are counted for.
        runs (list[Run]): The runs.
    """

    metric: str
    shape: List[int]
    runs: List[Run]


def read_suite(path: Path, work_dir: Path) -> Suite:
    """Read a suite from a YAML file.

    Its keys: ``metric``, the name of the metric in the log; ``configs``, a list of configs, or of mappings with
    ``config`` and where wanted ``name`` and ``options``; and where wanted ``seeds`` (default: 0), ``options`` for all
    configs, and ``shape``, height and width for the multiply-adds (default: 224, 224).

    Raises:
        SharingError: If the file says something else.
    """
    try:
        suite = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = ' '.join(str(error).split())
        raise SharingError(f'The suite {path} cannot be read: {reason}') from None
    known = {'metric', 'configs', 'seeds', 'options', 'shape'}
    if not isinstance(suite, dict) or not {'metric', 'configs'} <= set(suite) <= known:
        raise SharingError(f'The suite {path} has to be a mapping with metric and configs and, where wanted, seeds, '
                           'options and shape.')
    runs = []
    for entry in suite['configs']:
        entry = dict(config=entry) if isinstance(entry, str) else entry
        if not isinstance(entry, dict) or 'config' not in entry or set(entry) - {'config', 'name', 'options'}:
            raise SharingError(f'The suite {path} has the entry {entry}: give a config, or a mapping with config and, '
                               'where wanted, name and options.')
        name = entry.get('name', Path(entry['config'].rpartition('::')[2]).stem)
        for seed in suite.get('seeds', [0]):
            runs.append(Run(name, entry['config'], seed, {**suite.get('options', {}), **entry.get('options', {})},
                            work_dir / name / f'seed_{seed}'))
    titles = [run.title for run in runs]
    twice = next((title for title in titles if titles.count(title) > 1), None)
    if twice:
        raise SharingError(f'The suite {path} has {twice} twice: give entries of one config names of their own.')
    return Suite(suite['metric'], suite.get('shape', [224, 224]), runs)


def finished(run: Run) -> bool:
    """Whether a run has been finished by an earlier call.

    Raises:
        SharingError: If its folder holds a run with other settings.
    """
    record = run.work_dir / 'settings.json'
    if not record.is_file():
        return False
    if json.loads(record.read_text()) != json.loads(json.dumps(run.settings)):
        raise SharingError(f'{run.work_dir} holds a run with other settings: remove it, or name another --work-dir.')
    return (run.work_dir / 'result.json').is_file()


def collect(run: Run, suite: Suite, resident_bytes: int) -> None:
    """Write ``result.json`` into the folder of a run that has ended well.

    Args:
        run (Run): The run.
        suite (Suite): Its suite.
        resident_bytes (int): The most memory that its process held, taken where no GPU memory was logged.
    """
    scalars = read_scalars(run.work_dir)
    if suite.metric not in scalars:
        raise SharingError(f'The log of {run.title} has no {suite.metric}: its metrics are '
                           f'{", ".join(name for name in scalars if "/" in name) or "none"}.')
    cfg = Config.fromfile(config_path(run.config))
    cfg.merge_from_dict(run.options)
    model = build_model(cfg)
    times = [record['time'] for record in _records(run.work_dir) if 'loss' in record]
    checkpoint = Path((run.work_dir / 'last_checkpoint').read_text().strip())
    (run.work_dir / 'result.json').write_text(json.dumps(dict(
        metric=scalars[suite.metric][-1][1],
        parameters=parameter_count(model),
        macs=count_multiply_adds(model, tuple(suite.shape))[''],
        checkpoint_bytes=(run.work_dir / checkpoint.name).stat().st_size,
        seconds_per_iteration=statistics.median(times),
        memory_bytes=max((value * 2**20 for _, value in scalars.get('memory', [])), default=resident_bytes),
    )))


def _records(work_dir: Path) -> List[dict]:
    """The records of a run's logs, in their order."""
    return [json.loads(line) for log in sorted(work_dir.glob('*/vis_data/scalars.json'))
            for line in log.read_text().splitlines()]


def rows(suite: Suite) -> List[dict]:
    """A row for each model with a finished run: mean and standard deviation of its metric over the seeds, and the
    medians of the rest."""
    results: Dict[str, List[dict]] = {}
    for run in suite.runs:
        if finished(run):
            results.setdefault(run.name, []).append(json.loads((run.work_dir / 'result.json').read_text()))
    return [dict(
        model=name,
        runs=len(found),
        mean=statistics.mean(result['metric'] for result in found),
        deviation=statistics.stdev(result['metric'] for result in found) if len(found) > 1 else None,
        **{key: statistics.median_low(result[key] for result in found) for key in found[0] if key != 'metric'},
    ) for name, found in results.items()]


def write_tables(suite: Suite, folder: Path) -> str:
    """Write the table of a suite as results.json, results.csv and results.md, and as results.png the metric over the
    parameters. Returns the Markdown."""
    table = rows(suite)
    (folder / 'results.json').write_text(json.dumps(dict(metric=suite.metric, models=table), indent=1))
    with open(folder / 'results.csv', 'w', newline='') as file:
        writer = csv.DictWriter(file, table[0])
        writer.writeheader()
        writer.writerows(table)
    head = ['model', 'runs', suite.metric, 'parameters', 'multiply-adds', 'checkpoint', 'time per iteration', 'memory']
    lines = [head, ['---', *['---:'] * (len(head) - 1)]]
    for row in table:
        spread = '' if row['deviation'] is None else f' ± {row["deviation"]:.2g}'
        lines.append([row['model'], str(row['runs']), f'{row["mean"]:.4g}{spread}', f'{row["parameters"]:,.0f}',
                      f'{row["macs"] / 1e9:.3g} G', f'{row["checkpoint_bytes"] / 1e6:.2f} MB',
                      f'{row["seconds_per_iteration"]:.3g} s', f'{row["memory_bytes"] / 1e6:,.0f} MB'])
    text = '\n'.join(f'| {" | ".join(line)} |' for line in lines) + '\n'
    (folder / 'results.md').write_text(text)
    _draw(table, suite.metric, folder / 'results.png')
    return text


def _draw(table: List[dict], metric: str, out: Path) -> None:
    figure, axis = plt.subplots(figsize=(8, 4.2), layout='constrained')
    for row in table:
        axis.errorbar(row['parameters'] / 1e6, row['mean'], yerr=row['deviation'], fmt='o', capsize=4,
                      label=row['model'])
    axis.margins(0.1)
    axis.set(xlabel='parameters in millions', ylabel=metric)
    axis.grid(alpha=0.3)
    figure.legend(loc='outside right upper', fontsize=8)
    figure.savefig(out, dpi=120)
    plt.close(figure)
