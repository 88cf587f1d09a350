"""Print which layers of a config's model share what, or could share.

Parameters and multiply-adds by group, and compared with the plain network. For a plain network, the layers that could
share.
"""

import argparse
import json
from pathlib import Path

from mmshared_cli import add_cfg_options, add_shape, errors_in_a_sentence, output_file, own_files, print_table


@errors_in_a_sentence()
@own_files()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='the config file, or its name')
    add_shape(parser)
    parser.add_argument('--json', type=output_file, help='also write the report to this file')
    add_cfg_options(parser)
    args = parser.parse_args()
    from mmshared import banks, repeated_layers
    from mmshared.analysis.complexity import complexity, sharing_groups
    from mmshared.engine.build import build_empty
    from mmshared.engine.config import load_config

    cfg = load_config(args.config, args.cfg_options)
    model, title = build_empty(cfg), Path(args.config).stem
    totals, groups = complexity(cfg, args.shape), []
    if banks(model):
        groups = sharing_groups(model, args.shape)
        rows = [
            [
                row['stage'],
                row['group'],
                row['bank'],
                ' '.join(row['layers']),
                *[f'{row[key]:,}' for key in ('shared', 'own', 'plain')],
                *[
                    '' if row[key] is None else f'{row[key] / 1e6:,.0f}'
                    for key in ('multiply_adds', 'plain_multiply_adds')
                ],
            ]
            for row in groups
        ]
        text, numbers = ['stage', 'group', 'bank', 'layers'], ['shared', 'own', 'plain', 'M', 'plain M']
        print_table(title, text, numbers, rows, 'parameters, and multiply-adds in millions (M)')
    else:
        found = repeated_layers(model)
        print(
            'Nothing is shared in this network' + (': these layers could be.' if found else ', and nothing repeats.')
        )
        if found:
            rows = [
                [each.stage, each.group, 'x'.join(map(str, each.shape)), str(len(each.layers)), f'{each.parameters:,}']
                for each in found
            ]
            text, numbers = ['stage', 'group', 'shape'], ['layers', 'parameters of each']
            print_table(title, text, numbers, rows, 'layers outside of the first block of each stage')
    for name, key in (('parameters', 'parameters'), ('multiply-adds', 'multiply_adds')):
        here, there = totals[key], totals[f'plain_{key}']
        print(f'{name} of the whole model: {here:,}, plain {there:,} ({here / there - 1:+.1%})')
    if args.json:
        args.json.write_text(json.dumps(dict(groups=groups, totals=totals), indent=1))


if __name__ == '__main__':
    main()
