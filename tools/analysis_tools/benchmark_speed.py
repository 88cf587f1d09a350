"""Time a config's shared network against the plain one, alternating in one process.

Measures a training step with and without the orthogonality loss, inference as trained and as shipped (plain convs in
their fastest form, with fused batch norms), the loss by itself, the memory of a training step and the size of the
weights. Ratios are taken within a round; their median and quartiles over the rounds are printed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from mmshared_cli import (
    add_cfg_options,
    add_shape,
    errors_in_a_sentence,
    output_file,
    output_image,
    own_files,
    print_table,
)

if TYPE_CHECKING:
    import torch


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='the config of a shared classifier or detector (its backbone and neck)')
    parser.add_argument(
        '--reference',
        nargs=2,
        metavar=('FILE', 'CALL'),
        help="also time a network from an author's repository: a file of a checkout and a call, "
        "Net_RL2/models/ilsvrc/resnet.py 'ResNet34_DoubleShared(48, 1)'",
    )
    parser.add_argument('--batch', type=int, default=8, help='batch size of a training step (default: 8)')
    parser.add_argument(
        '--inference-batch', type=int, nargs='+', default=[1, 32], help='batch sizes of inference (default: 1 32)'
    )
    add_shape(parser)
    parser.add_argument('--rounds', type=int, default=10, help='number of rounds (default: 10)')
    parser.add_argument('--device', help='default: cuda if there is one')
    parser.add_argument('--autocast', choices=['bfloat16', 'float16'], help='use mixed precision')
    parser.add_argument('--channels-last', action='store_true', help='use the channels-last memory format')
    parser.add_argument('--compile', action='store_true', help='compile all networks with torch.compile')
    parser.add_argument('--json', type=output_file, help='also write the results to this file')
    parser.add_argument(
        '--plot', type=output_image, help='instead of the table, draw how time and memory grow with these options:'
    )
    parser.add_argument('--batches', type=int, nargs='+', default=[], help='batch sizes')
    parser.add_argument('--depths', type=int, nargs='+', default=[], help='depths of the backbone')
    parser.add_argument('--ranks', type=int, nargs='+', default=[], help='shared ranks of its bank')
    add_cfg_options(parser)
    args = parser.parse_args()
    if min(args.batch, args.rounds, *args.inference_batch, *args.batches) < 1:
        parser.error('--batch, --batches, --inference-batch and --rounds must be 1 or more')
    if bool(args.plot) != bool(args.batches or args.depths or args.ranks):
        parser.error('--plot needs --batches, --depths or --ranks, and they need --plot')
    return args


def usable_device(name: str | None) -> torch.device:
    """A device by its name, if it works on this machine. None is a GPU if there is one."""
    import torch

    from mmshared import SharingError
    from mmshared.engine.config import first_line

    name = name or ('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        torch.ones(1, device=name).cpu()
        return torch.device(name)
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        raise SharingError(f'--device {name} cannot be used here: {first_line(error)}') from None


def cells(row: dict) -> list[str]:
    """A row of the table."""
    size = f'{row["bytes"] / 1e6:.1f} MB' if 'bytes' in row else f'{row["seconds"] * 1e3:.1f} ms'
    quartiles = f'{row["low"]:.3f} to {row["high"]:.3f}' if 'low' in row else ''
    return [row['work'], row['network'], size, f'{row["ratio"]:.3f}', quartiles]


@errors_in_a_sentence()
@own_files()
def main() -> None:
    args = parse_args()
    from mmshared.analysis.plots import draw_growth
    from mmshared.analysis.speed import Setting, benchmark, growth
    from mmshared.engine.config import load_config

    cfg, device = load_config(args.config, args.cfg_options), usable_device(args.device)
    setting = Setting(args.shape, args.rounds, device, args.autocast, args.channels_last, args.compile, args.reference)
    if args.plot:
        found = growth(cfg, setting, args.batch, args.batches, args.depths, args.ranks)
        draw_growth(found, args.plot)
        print(f'wrote {args.plot}')
    else:
        found = benchmark(cfg, setting, args.batch, args.inference_batch)
        title, numbers = f'{Path(args.config).stem} on {device}', ['', 'ratio', 'quartiles']
        print_table(title, ['work', 'network'], numbers, list(map(cells, found)))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == '__main__':
    main()
