"""Time a config's shared network against the plain one, in one process and in turn.

A training step with and without the orthogonality loss, inference as trained and as shipped (folded, batch norms fused
into the convs), the loss alone, what the forward pass keeps for the backward pass, and the size of the weights. Ratios
are medians over the rounds of the ratios within a round, with their quartiles.
"""
import argparse
import json
from pathlib import Path

import torch
from mmengine.config import Config
from rich.console import Console
from rich.table import Table

from mmshared.analysis.models import build_model, build_plain
from mmshared.analysis.speed import (checkpoint_bytes, deployed, inference_of, kept_bytes, loss_of, ratio_rows,
                                     step_of, time_in_turn)
from mmshared.cli import config_path
from mmshared.hooks import orthogonality_loss, orthogonality_spaces


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='the config of a shared classifier or detector (its backbone and neck)')
    parser.add_argument('--batch', type=int, default=8, help='pictures of a training step (default: 8)')
    parser.add_argument('--inference-batch', type=int, nargs='+', default=[1, 32], help='default: 1 32')
    parser.add_argument('--shape', type=int, nargs='+', default=(224, 224), metavar='SIZE',
                        help='height and width of the pictures, after their channels if not 3 (default: 224 224)')
    parser.add_argument('--rounds', type=int, default=10, help='default: 10')
    parser.add_argument('--device', type=torch.device, default='cuda' if torch.cuda.is_available() else 'cpu',
                        help='default: cuda where there is one')
    parser.add_argument('--autocast', choices=['bfloat16', 'float16'], help='mixed precision')
    parser.add_argument('--channels-last', action='store_true', help='memory format')
    parser.add_argument('--json', type=Path, help='a file to write the same to')
    args = parser.parse_args()
    if min(args.batch, args.rounds, *args.inference_batch, *args.shape) < 1:
        parser.error('--batch, --inference-batch, --shape and --rounds are 1 or more')
    return args


def main() -> None:
    args = parse_args()
    cfg = Config.fromfile(config_path(args.config))
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    plain, shared = [build(cfg).to(args.device, memory_format=layout) for build in (build_plain, build_model)]
    means = orthogonality_spaces(shared)
    if not means:
        raise SystemExit('The model of this config has no filter basis: there is nothing to compare.')
    autocast = dict(enabled=bool(args.autocast), dtype=getattr(torch, args.autocast or 'bfloat16'))

    def pictures(batch: int) -> torch.Tensor:
        return torch.randn(batch, *(3, *args.shape)[-3:], device=args.device).to(memory_format=layout)

    batch = pictures(args.batch)
    training = {
        'plain': step_of(plain, batch, autocast=autocast),
        'shared': step_of(shared, batch, autocast=autocast),
        'shared, with the loss': step_of(shared, batch, 10., autocast),
        'the loss alone': lambda: orthogonality_loss(means).backward(),
    }
    rows = ratio_rows(f'training step, batch {args.batch}', time_in_turn(training, args.rounds, args.device))
    forms = {'plain': plain.eval(), 'shared': shared.eval()}
    for number in args.inference_batch:
        batch = pictures(number)
        for kind, networks in (('as trained', forms), ('as shipped', {k: deployed(v) for k, v in forms.items()})):
            variants = {name: inference_of(network, batch, autocast) for name, network in networks.items()}
            rows += ratio_rows(f'inference {kind}, batch {number}', time_in_turn(variants, args.rounds, args.device))
    batch = pictures(args.batch)
    sizes = {name: dict(kept_bytes=kept_bytes(loss_of(network, batch, autocast=autocast)),
                        checkpoint_bytes=checkpoint_bytes(network)) for name, network in forms.items()}

    table = Table(title=f'{Path(args.config).stem} on {args.device}')
    for name in ('work', 'network', 'ms', 'ratio', 'quartiles'):
        table.add_column(name, justify='right' if name in ('ms', 'ratio') else 'left')
    for row in rows:
        table.add_row(row['work'], row['network'], f'{row["seconds"] * 1e3:.1f}', f'{row["ratio"]:.3f}',
                      f'{row["low"]:.3f} to {row["high"]:.3f}')
    for key, name in (('kept_bytes', 'kept for the backward pass'), ('checkpoint_bytes', 'weights on disk')):
        for network, size in sizes.items():
            table.add_row(name, network, f'{size[key] / 1e6:.1f} MB', f'{size[key] / sizes["plain"][key]:.3f}', '')
    Console(width=max(110, Console().width)).print(table)
    if args.json:
        args.json.write_text(json.dumps(dict(times=rows, sizes=sizes), indent=1))


if __name__ == '__main__':
    main()
