"""Makes the model tables in the READMEs from the metafiles, and the metafiles' figures from the built models."""

import json
from pathlib import Path

import numpy as np
import yaml
from mmengine.config import Config
from scipy import stats

from .complexity import complexity
from .plots import Point, Tradeoff

INPUT_SIZE = {
    'ImageNet-1k': (224, 224),
    'Tiny-ImageNet': (64, 64),
    'CIFAR-100': (32, 32),
    'CIFAR-10': (32, 32),
    'Rotated MNIST': (1, 29, 29),
}


def measure(metafile: dict, root: Path) -> None:
    """Set the counts of each model of a metafile to those of its built config and of its plain twin."""
    for model in metafile['Models']:
        counts = complexity(Config.fromfile(root / model['Config']), INPUT_SIZE[model['Dataset']])
        model.setdefault('Metadata', {}).update(
            {
                'Parameters': counts['parameters'],
                'Plain Parameters': counts['plain_parameters'],
                'FLOPs': counts['macs'],
                'Plain FLOPs': counts['plain_macs'],
            }
        )


def model_table(models: list[dict], folder: str) -> str:
    """A Markdown table of a metafile's models.

    Args:
        models (list[dict]): Entries of ``Models``.
        folder (str): The folder of the README relative to the root, for the links to the configs; '' for the root.
    """
    head = ['model', 'data set', 'parameters', 'plain', 'fewer', 'multiply-adds', 'plain', 'top-1 error (paper)']
    rows = [head, ['---', '---', *['---:'] * (len(head) - 2)]]
    for model in models:
        data = model['Metadata']
        path = Path(model['Config'])
        link = path.relative_to(folder) if folder else path
        rows.append(
            [
                f'[{model["Name"]}]({link})',
                model['Dataset'],
                f'{data["Parameters"]:,}',
                f'{data["Plain Parameters"]:,}',
                f'{1 - data["Parameters"] / data["Plain Parameters"]:.1%}',
                f'{data["FLOPs"] / 1e9:.3g} G',
                f'{data["Plain FLOPs"] / 1e9:.3g} G',
                f'{model["Paper"]["Top 1 Error"]:.2f} %' if 'Paper' in model else '',
            ]
        )
    return '\n'.join(f'| {" | ".join(row)} |' for row in rows)


def put_table(text: str, table: str, name: str = 'models') -> str:
    """Put a table between the marks ``<!-- name -->`` and ``<!-- end of name -->`` of a README."""
    start, end = f'<!-- {name} -->', f'<!-- end of {name} -->'
    before, found, rest = text.partition(start)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f'The README lacks the marks {start} and {end}.')
    return f'{before}{start}\n{table}\n{end}{after}'


def readmes(root: Path) -> dict[Path, str]:
    """The text of each README with a table: of models, from the metafiles (the root's has those on ImageNet), and of
    the compressed networks, from their results."""
    texts, main = {}, []
    for path in sorted(root.glob('configs/*/metafile.yml')):
        models = yaml.safe_load(path.read_text())['Models']
        main += [model for model in models if model['Dataset'] == 'ImageNet-1k']
        readme = path.with_name('README.md')
        texts[readme] = put_table(readme.read_text(), model_table(models, str(path.parent.relative_to(root))))
    texts[root / 'README.md'] = put_table((root / 'README.md').read_text(), model_table(main, ''))
    project = root / 'projects/compression'
    text = (project / 'README.md').read_text()
    for path in sorted(path for path in (project / 'results').iterdir() if path.is_dir()):
        text = put_table(text, compression_table(path), path.name)
    texts[project / 'README.md'] = text
    return texts


def compression_table(folder: Path) -> str:
    """A Markdown table of the compressed networks whose results are the files of a folder.

    A row is a share of the parameters and a method; a column the steps of each block before any training, or the
    epochs of fine-tuning. Of several seeds it has the mean and the half width of its 95 % interval by Student's t.
    Of what was fine-tuned it has the bytes of the ONNX model, of the one with integers too.
    """
    runs = read_compression(folder)
    rows: dict[tuple[float, str], list[dict]] = {}
    for run in runs:
        rows.setdefault((run['keep'], run['plan']), []).append(run)
    columns = sorted({_training_of(run) for run in runs})
    titles = [f'{epochs} epochs' if epochs else f'{steps} steps' if steps else 'fitted' for epochs, steps in columns]
    forms = [form for form in FORMS if any(form in run for run in runs)]
    for form in forms:
        titles += ['kB'] if form == 'float32' else [form, 'kB']  # its metric is that of the epochs
    plain = runs[0]['plain']
    lines = [['kept', 'method', *titles], ['---:', '---', *['---:'] * len(titles)]]
    for row in sorted(rows, reverse=True):
        found = [(_training_of(run), run.get('finetuned', run['converted'])) for run in rows[row]]
        line = [f'{found[-1][1]["parameters"] / plain["parameters"]:.3f}', row[1]]
        for column in columns:
            line.append(mean_text([metric_of(network) for training, network in found if training == column]))
        for form in forms:
            models = [run[form] for run in rows[row] if form in run]
            line += [] if form == 'float32' else [mean_text([metric_of(model) for model in models])]
            line.append(f'{np.mean([model["bytes"] for model in models]) / 1e3:,.0f}' if models else '')
        lines.append(line)
    caption = (
        f'{next(iter(plain["metrics"]))}; the plain network has {mean_text([metric_of(plain)])}, with '
        f'{plain["parameters"]:,} parameters.'
    )
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines) + f'\n\n{caption}'


def _training_of(run: dict) -> tuple[int, int]:
    """The epochs of fine-tuning; without any, the steps of each block."""
    return run['epochs'], 0 if run['epochs'] else run['steps']


#: The ONNX models of a result.
FORMS = ('float32', 'int8', 'onnxruntime')


def read_compression(folder: Path) -> list[dict]:
    """The results of compressed networks."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob('*.json'))]


def metric_of(network: dict) -> float:
    """The first metric of a network in a result."""
    return next(iter(network['metrics'].values()))


def compression_tradeoff(folder: Path) -> Tradeoff:
    """Accuracy over bytes of the fine-tuned networks whose results are the files of a folder."""
    runs = read_compression(folder)
    cells: dict[tuple, list[dict]] = {}
    for run in runs:
        for form in set(run).intersection(FORMS):
            cells.setdefault((run['plan'], form, run['keep']), []).append(run[form])
    methods: dict[str, dict[str, list[Point]]] = {}
    for (method, form, _), found in sorted(cells.items()):
        mean, width = interval([metric_of(each) for each in found])
        size = np.mean([each['bytes'] for each in found])
        methods.setdefault(method, {}).setdefault(form, []).append(Point(float(size), mean, width))
    return Tradeoff(next(iter(runs[0]['plain']['metrics'])), methods)


def interval(values: list[float]) -> tuple[float, float]:
    """The mean of values, and the half width of its 95 % interval by Student's t, 0 for a single value."""
    width = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values) if len(values) > 1 else 0
    return float(np.mean(values)), float(width)


def mean_text(values: list[float]) -> str:
    """The mean of values, with the half width of its interval if there are several: percents as they are, fractions
    with three digits."""
    if not values:
        return ''
    digits = 3 if max(values) <= 1 else 2
    mean, width = interval(values)
    return f'{mean:.{digits}f}' + (f' ± {width:.{digits}f}' if len(values) > 1 else '')
