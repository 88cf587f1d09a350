"""Print which layers of a config's model share what: parameters and multiply-adds by group, and against the plain
network."""

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mmshared.analysis.complexity import complexity, sharing_groups
from mmshared.cli import add_shape, errors_in_a_sentence, output_file, own_files
from mmshared.engine.build import build_model
from mmshared.engine.config import load_config


@errors_in_a_sentence()
@own_files()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='a config file, or the name of one of mmdet or mmpretrain')
    add_shape(parser)
    parser.add_argument('--json', type=output_file, help='a file to write the same to')
    args = parser.parse_args()
    cfg = load_config(args.config)
    groups, totals = sharing_groups(build_model(cfg), args.shape), complexity(cfg, args.shape)

    table = Table(title=Path(args.config).stem, caption='parameters, and multiply-adds in millions')
    for name in ('stage', 'group', 'bank', 'layers'):
        table.add_column(name, overflow='fold')
    for name in ('shared', 'own', 'plain', 'M', 'plain M'):
        table.add_column(name, justify='right')
    for row in groups:
        table.add_row(
            row['stage'],
            row['group'],
            row['bank'],
            ' '.join(row['layers']),
            *[f'{row[key]:,}' for key in ('shared', 'own', 'plain')],
            *[f'{row[key] / 1e6:,.0f}' for key in ('macs', 'plain_macs')],
        )
    Console(width=max(110, Console().width)).print(table)
    for name, key in (('parameters', 'parameters'), ('multiply-adds', 'macs')):
        here, there = totals[key], totals[f'plain_{key}']
        print(f'{name} of the whole model: {here:,}, plain {there:,} ({here / there - 1:+.1%})')
    if args.json:
        args.json.write_text(json.dumps(dict(groups=groups, totals=totals), indent=1))


if __name__ == '__main__':
    main()
