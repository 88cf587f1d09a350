"""Tables and plots of the results of small networks: those of projects/compression, a file for each run."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import yaml
from scipy import stats

from ..sharing import SharingError
from .markdown import markdown_table
from .plots import Point, Tradeoff

#: The ONNX models of a result.
FORMS = ('float32', 'int8', 'onnxruntime')


def folders_in(results: Path) -> list[Path]:
    """The folders of results, one for each table."""
    return sorted({file.parent for file in results.glob('*/*.json')})


def read_results(folder: Path) -> list[dict]:
    """The results in a folder. Of compressed networks only those after the longest training have ONNX models.

    Raises:
        SharingError: If some of them are no runs of one table: there are two for one seed, or they differ in the plain
            network, or those of one row in the steps before fine-tuning.
    """
    runs = [json.loads(path.read_text(encoding='utf-8')) for path in sorted(folder.glob('*.json'))]
    count = Counter((run['method'], run['keep'], *_training_of(run), run['seed']) for run in runs)
    for (method, keep, *_, seed), number in count.items():
        if number > 1:
            raise SharingError(f'{folder} has {number} results of {method} at {keep} with seed {seed}: keep one.')
    steps = {(run['method'], run['keep'], run['epochs'], run['steps']) for run in runs if run['epochs']}
    for (method, keep, _), number in Counter(row[:3] for row in steps).items():
        if number > 1:
            raise SharingError(
                f'{folder} has results of {method} at {keep} after {number} numbers of steps: keep one.'
            )
    plain = {(run['plain']['parameters'], metric_of(run['plain'])) for run in runs if 'plain' in run}
    if len(plain) > 1:
        raise SharingError(f'{folder} has results of {len(plain)} plain networks: keep those of one.')
    most = max(run['epochs'] for run in runs)
    for run in runs:
        row = [each for each in runs if (each['method'], each['keep']) == (run['method'], run['keep'])]
        if 'plain' in run and (run['epochs'] < most or _training_of(run) < max(map(_training_of, row))):
            for form in FORMS:
                run.pop(form, None)
    return runs


def result_table(folder: Path) -> str:
    """A Markdown table of the networks whose results are the files of a folder: compressed ones, or ones trained from
    scratch. Of several seeds it has the mean and the half width of its 95 % interval by Student's t."""
    runs = read_results(folder)
    return _compressed(runs) if 'plain' in runs[0] else _from_scratch(runs)


def _compressed(runs: list[dict]) -> str:
    """A table of compressed networks.

    A row is a share of the parameters and a method; a column the steps of each block before any training, or the
    epochs of fine-tuning. What was fine-tuned is in both, and has the bytes of the ONNX models.
    """
    rows: dict[tuple[float, str], list[dict]] = {}
    for run in runs:
        rows.setdefault((run['keep'], run['method']), []).append(run)
    columns = sorted({training for run in runs for training in (_training_of(run), (0, run['steps']))})
    titles = [f'{epochs} epochs' if epochs else f'{steps} steps' if steps else 'fitted' for epochs, steps in columns]
    heads, forms = _forms_of(runs)
    titles = ['multiply-adds', *titles, *heads]
    plain = runs[0]['plain']
    digits = _digits([metric_of(plain)])
    lines = []
    for row in sorted(rows, reverse=True):
        networks = [run.get('finetuned', run['converted']) for run in rows[row]]
        line = [f'{networks[-1]["parameters"] / plain["parameters"]:.3f}', row[1]]
        work = {network['multiply_adds'] for network in networks if 'multiply_adds' in network}
        line.append(f'{max(work) / 1e6:,.1f} M' if work else '')
        line += [mean_text(_metrics_in(rows[row], *column), digits) for column in columns]
        lines.append(line + _cells_of(rows[row], forms, digits))
    caption = (
        f'{next(iter(plain["metrics"]))}; the plain network has {mean_text([metric_of(plain)], digits)}, with '
        f'{plain["parameters"]:,} parameters.'
    )
    return markdown_table(['kept', 'method', *titles], lines, text=(1,)) + f'\n\n{caption}'


def _metrics_in(runs: list[dict], epochs: int, steps: int) -> list[float]:
    """The metrics of a row's runs in a column. Their seeds are of the fine-tuning: before it there is one network, the
    one that was fine-tuned if any was."""
    if epochs:
        return [metric_of(run['finetuned']) for run in runs if run['epochs'] == epochs]
    begun = [run for run in runs if run['steps'] == steps]
    return [metric_of(max(begun, key=lambda run: run['epochs'])['converted'])] if begun else []


def _training_of(run: dict) -> tuple[int, int]:
    """The epochs of fine-tuning; without any, the steps of each block."""
    return run['epochs'], 0 if run['epochs'] else run['steps']


def _from_scratch(runs: list[dict]) -> str:
    """A table of networks trained from scratch."""
    rows: dict[tuple[int, int, str], list[dict]] = {}
    for run in runs:
        rows.setdefault((-run['epochs'], -run['trained']['parameters'], run['method']), []).append(run)
    heads, forms = _forms_of(runs)
    titles = ['network', 'parameters', 'multiply-adds', 'epochs', 'seeds', 'accuracy', *heads]
    digits = _digits(metric_of(run['trained']) for run in runs)
    lines = []
    for (epochs, _, name), found in sorted(rows.items()):
        network = found[0]['trained']
        counts = [f'{network["parameters"]:,}', f'{network["multiply_adds"] / 1e6:,.1f} M', str(-epochs)]
        metrics = [metric_of(run['trained']) for run in found]
        lines.append([name, *counts, str(len(found)), mean_text(metrics, digits), *_cells_of(found, forms, digits)])
    return markdown_table(titles, lines) + f'\n\n{next(iter(runs[0]["trained"]["metrics"]))} after the last epoch.'


def _forms_of(runs: list[dict]) -> tuple[list[str], list[str]]:
    """The titles of the columns of ONNX models, and the forms that runs have."""
    forms = [form for form in FORMS if any(form in run for run in runs)]
    titles = [title for form in forms for title in (['kB'] if form == 'float32' else [form, 'kB'])]
    return titles, forms  # the metric of float32 has its column already


def _cells_of(runs: list[dict], forms: list[str], digits: int) -> list[str]:
    """The metrics, with so many digits, and the sizes of the ONNX models of runs."""
    cells = []
    for form in forms:
        models = [run[form] for run in runs if form in run]
        cells += [] if form == 'float32' else [mean_text([metric_of(model) for model in models], digits)]
        cells.append(f'{np.mean([model["bytes"] for model in models]) / 1e3:,.0f}' if models else '')
    return cells


def claims_table(file: Path, results: Path) -> str:
    """A Markdown table of claims that one network is better than another, with what the results say: the mean of the
    differences of runs with the same seed and its 95 % interval, by Student's t.

    Args:
        file (Path): A YAML file: a list of mappings with ``claim``, ``table``, ``better``, ``than`` and ``epochs``;
            of compressed networks also ``keep``.
        results (Path): The folder of the tables.
    """
    lines, claims = [], yaml.safe_load(file.read_text(encoding='utf-8'))
    tables = {table: read_results(results / table) for table in {claim['table'] for claim in claims}}
    for claim in claims:
        runs = [
            run
            for run in tables[claim['table']]
            if (run['epochs'], run['keep']) == (claim['epochs'], claim.get('keep', 1))
        ]
        one, other = (
            {run['seed']: metric_of(run.get('trained', run.get('finetuned'))) for run in runs if run['method'] == name}
            for name in (claim['better'], claim['than'])
        )
        differences = [one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())]
        verdict = 'open at this budget' if differences else 'not run'
        if len(differences) > 1:
            mean, width = interval(differences)
            verdict = 'holds' if mean > width else 'does not hold' if mean < -width else verdict
        compared = f'{claim["better"]} − {claim["than"]}'
        numbers = [str(claim['epochs']), str(len(differences)), mean_text(differences, _digits(one.values()))]
        lines.append([claim['claim'], compared, *numbers, verdict])
    return markdown_table(['claim', 'compared', 'epochs', 'seeds', 'difference', ''], lines, text=(0, 1, 5))


def metric_of(network: dict) -> float:
    """The first metric of a network in a result."""
    return next(iter(network['metrics'].values()))


def tradeoff_of(folder: Path) -> Tradeoff:
    """Accuracy over bytes of the networks whose results are the files of a folder."""
    runs = read_results(folder)
    cells: dict[tuple, list[dict]] = {}
    for run in runs:
        method = run['method'] if 'plain' in run else f'{run["method"]}, {run["epochs"]} epochs'
        for form in set(run).intersection(FORMS):
            cells.setdefault((method, form, run['keep']), []).append(run[form])
    methods: dict[str, dict[str, list[Point]]] = {}
    for (method, form, _), found in sorted(cells.items()):
        mean, width = interval([metric_of(each) for each in found])
        size = np.mean([each['bytes'] for each in found])
        methods.setdefault(method, {}).setdefault(form, []).append(Point(float(size), mean, width))
    return Tradeoff(next(iter(runs[0].get('plain', runs[0].get('trained'))['metrics'])), methods)


def tradeoffs_of(readme: Path, results: Path) -> dict[str, Tradeoff]:
    """Accuracy over bytes of the networks in the tables of a README, by the headings of these, in their order. A table
    without ONNX models has none.

    Args:
        readme (Path): It has the mark of each table, see :func:`~mmshared.analysis.tables.put_tables`.
        results (Path): The folder of the tables.
    """
    text = readme.read_text(encoding='utf-8')
    places = sorted((text.index(f'<!-- {folder.name} -->'), folder) for folder in folders_in(results))
    found = {text[:place].rpartition('\n## ')[2].partition('\n')[0]: tradeoff_of(folder) for place, folder in places}
    return {heading: each for heading, each in found.items() if each.methods}


def interval(values: list[float]) -> tuple[float, float]:
    """The mean of values, and the half width of its 95 % interval by Student's t, 0 for a single value."""
    width = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values) if len(values) > 1 else 0
    return float(np.mean(values)), float(width)


def mean_text(values: list[float], digits: int) -> str:
    """The mean of values, with the half width of its interval if there are several."""
    if not values:
        return ''
    mean, width = interval(values)
    return f'{mean:.{digits}f}' + (f' ± {width:.{digits}f}' if len(values) > 1 else '')


def _digits(values: Iterable[float]) -> int:
    """The digits of metrics: fractions have three, percents two."""
    return 3 if max(values, default=0) <= 1 else 2
