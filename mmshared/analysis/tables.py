"""Makes the model tables in the READMEs from the metafiles, and the metafiles' figures from the built models."""

from pathlib import Path

import yaml
from mmengine.config import Config

from ..sharing import SharingError
from .complexity import complexity
from .markdown import markdown_table
from .results import claims_table, folders_in, result_table

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
        if model['Dataset'] not in INPUT_SIZE:
            raise SharingError(f'How large are the images of {model["Dataset"]}? Add it to INPUT_SIZE in {__file__}.')
        counts = complexity(Config.fromfile(root / model['Config']), INPUT_SIZE[model['Dataset']])
        model.setdefault('Metadata', {}).update(
            {
                'Parameters': counts['parameters'],
                'Plain Parameters': counts['plain_parameters'],
                'FLOPs': counts['multiply_adds'],
                'Plain FLOPs': counts['plain_multiply_adds'],
            }
        )


def model_table(models: list[dict], folder: str) -> str:
    """A Markdown table of a metafile's models.

    Args:
        models (list[dict]): Entries of ``Models``.
        folder (str): The folder of the README relative to the root, for the links to the configs; '' for the root.
    """
    head = ['model', 'data set', 'parameters', 'plain', 'fewer', 'multiply-adds', 'plain', 'top-1 error (authors)']
    rows = []
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
    return markdown_table(head, rows, text=(0, 1))


def put_tables(readme: Path, tables: dict[str, str]) -> str:
    """The text of a README with tables between their marks, ``<!-- name -->`` and ``<!-- end of name -->``.

    Raises:
        SharingError: If it lacks the marks of a table.
    """
    text = readme.read_text(encoding='utf-8')
    for name, table in tables.items():
        start, end = f'<!-- {name} -->', f'<!-- end of {name} -->'
        before, found, rest = text.partition(start)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise SharingError(f'{readme} lacks the marks {start} and {end} where its table goes: add them.')
        text = f'{before}{start}\n{table}\n{end}{after}'
    return text


def readmes(root: Path) -> dict[Path, str]:
    """The text of each README with a table: of models, from the metafiles (the root's has those on ImageNet), and of
    small networks, from their results."""
    texts, main = {}, []
    for path in sorted(root.glob('configs/*/metafile.yml')):
        models = yaml.safe_load(path.read_text(encoding='utf-8'))['Models']
        main += [model for model in models if model['Dataset'] == 'ImageNet-1k']
        readme = path.with_name('README.md')
        texts[readme] = put_tables(readme, dict(models=model_table(models, str(path.parent.relative_to(root)))))
    texts[root / 'README.md'] = put_tables(root / 'README.md', dict(models=model_table(main, '')))
    project = root / 'projects/compression'
    tables = {folder.name: result_table(folder) for folder in folders_in(project / 'results')}
    tables['claims'] = claims_table(project / 'claims.yaml', project / 'results')
    texts[project / 'README.md'] = put_tables(project / 'README.md', tables)
    return texts
