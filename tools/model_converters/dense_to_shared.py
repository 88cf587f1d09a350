"""Turn a checkpoint of a plain network into one of the network of a config that shares, and print what it loses.

A network that shares does the same when such a checkpoint is loaded: this shows it, and keeps the result.
"""

import argparse
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from mmshared import SharingError, banks
from mmshared.cli import check_files, errors_in_a_sentence, output_file
from mmshared.engine.build import build_model, load_whole
from mmshared.engine.checkpoint import converted, load_checkpoint_file, save_checkpoint, state_dict_of
from mmshared.engine.config import load_config
from mmshared.sharing.state_dict import Conversion, share_state_dict


def rank_for_energy(conversion: Conversion, energy: float) -> int:
    """The least number of filters whose span holds a share of the energy of a group's kernels (Eckart and Young)."""
    rows = torch.cat([kernel.flatten(1) for kernel in conversion.kernels])
    shares = torch.linalg.svdvals(rows).square().cumsum(0)
    return int((shares < energy * shares[-1]).sum()) + 1


@errors_in_a_sentence()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='a config whose backbone shares')
    parser.add_argument('src', help='a checkpoint of the plain backbone, or of the whole plain model')
    parser.add_argument('dst', type=output_file, help='the checkpoint to write')
    parser.add_argument(
        '--rank-for-energy',
        type=float,
        metavar='SHARE',
        help='also tell how many filters would keep this share of the energy, 0.95 say',
    )
    args = parser.parse_args()
    if args.rank_for_energy is not None and not 0 < args.rank_for_energy <= 1:
        parser.error(f'--rank-for-energy {args.rank_for_energy}: give a share above 0 and up to 1')
    check_files(parser, args.config, args.src, args.dst)
    model = build_model(load_config(args.config))
    if not banks(model):
        raise SharingError('The network of this config shares nothing: give a config whose backbone shares.')
    state_dict = state_dict_of(load_checkpoint_file(args.src))
    prefix = 'backbone.' if any(key.startswith('backbone.') for key in state_dict) else ''
    conversions = share_state_dict(model.backbone, state_dict, prefix)
    if not conversions:
        raise SharingError(f'{args.src} is shared already, as the network of the config is.')
    if args.rank_for_energy and any(
        len({kernel[0].shape for kernel in conversion.kernels}) > 1 for conversion in conversions
    ):
        raise SharingError(
            '--rank-for-energy is about filters of one space, and kernels of a group differ in '
            'shape here: leave it out.'
        )

    table = Table(title=f'{Path(args.src).name} in the network of {Path(args.config).stem}')
    wanted = [f'filters for {args.rank_for_energy:.0%}'] if args.rank_for_energy else []
    for name in ('stage', 'bank', 'kernels', 'shared filters', 'dimensions', 'energy kept', 'relative error', *wanted):
        table.add_column(name, justify='left' if name in ('stage', 'bank') else 'right')
    for conversion in conversions:
        filters = conversion.bank.basis()
        cells = [
            conversion.name,
            type(conversion.bank).__name__,
            str(len(conversion.kernels)),
            '' if filters is None else str(len(filters)),
            str(conversion.kernels[0][0].numel()),
            f'{1 - conversion.error**2:.1%}',
            f'{conversion.error:.4f}',
        ]
        table.add_row(*cells, *([str(rank_for_energy(conversion, args.rank_for_energy))] if wanted else []))
    Console(width=max(110, Console().width)).print(table)
    load_whole(model if prefix else model.backbone, state_dict, args.src, 'the plain network of the config')
    save_checkpoint(converted(state_dict, args.src), args.dst)
    print(f'wrote {args.dst}')


if __name__ == '__main__':
    main()
