"""Convert a checkpoint of a plain network to one of a config's shared network.

A shared network does the same when such a checkpoint is loaded. This tool also prints what each stage loses, and saves
the result. With --images, it fits what the layers compute on images of the training set instead of their weights,
which loses much less, corrects the statistics of the batch norms on them, and lets each block learn what the plain
network's block gives.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mmshared_cli import (
    STEPS,
    add_cfg_options,
    add_steps,
    check_files,
    errors_in_a_sentence,
    output_checkpoint,
    print_table,
)

if TYPE_CHECKING:
    from mmshared.sharing.state_dict import Conversion


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='the config of a shared network')
    parser.add_argument('src', help='a checkpoint of the whole plain network, or of its backbone')
    parser.add_argument('dst', type=output_checkpoint, help='the checkpoint to write')
    parser.add_argument(
        '--images',
        type=int,
        metavar='N',
        help='fit what the layers compute on N images of the training set, some hundred, instead of their weights',
    )
    parser.add_argument(
        '--rank-for-energy',
        type=float,
        metavar='SHARE',
        help='also print how many filters would keep this share of the energy, for example 0.95',
    )
    add_steps(parser)
    parser.set_defaults(steps=None)
    add_cfg_options(parser)
    args = parser.parse_args()
    if args.steps is not None and args.images is None:
        parser.error('--steps needs --images')
    if args.rank_for_energy is not None and not 0 < args.rank_for_energy <= 1:
        parser.error(f'--rank-for-energy {args.rank_for_energy}: give a share above 0 and up to 1')
    check_files(parser, args.config, args.src, args.dst)
    return args


def print_conversions(conversions: list[Conversion], args: argparse.Namespace) -> None:
    """Print what each group of layers loses."""
    from mmshared.convert.dense import rank_for_energy

    numbers, rows = ['kernels', 'shared filters', 'dimensions', 'relative error'], []
    numbers.append('energy kept' if args.images is None else 'of the outputs')
    if args.rank_for_energy:
        numbers.append(f'filters for {args.rank_for_energy:.0%}')
    for conversion in conversions:
        filters = conversion.bank.basis()
        cells = [
            conversion.name,
            type(conversion.bank).__name__,
            str(len(conversion.kernels)),
            '' if filters is None else str(len(filters)),
            str(conversion.kernels[0][0].numel()),
            f'{conversion.error:.4f}',
        ]
        if args.images is None:  # a fit to outputs is no projection of the weights, of whose energy it keeps a part
            cells.append(f'{1 - conversion.error**2:.1%}')
        else:
            cells.append('' if conversion.output_error is None else f'{conversion.output_error:.4f}')
        if args.rank_for_energy:
            rank = rank_for_energy(conversion, args.rank_for_energy)
            cells.append('' if rank is None else str(rank))
        rows.append(cells)
    title = f'{Path(args.src).name} in the network of {Path(args.config).stem}'
    print_table(title, ['stage', 'bank'], numbers, rows)


@errors_in_a_sentence()
def main() -> None:
    args = parse_args()
    from mmshared.compress.fit import fit_checkpoint
    from mmshared.convert.dense import share_checkpoint
    from mmshared.engine.build import build_model
    from mmshared.engine.checkpoint import converted, load_checkpoint_file, save_checkpoint, state_dict_of
    from mmshared.engine.config import load_config

    cfg = load_config(args.config, args.cfg_options)
    state_dict = state_dict_of(load_checkpoint_file(args.src))
    if args.images is None:
        conversions = share_checkpoint(build_model(cfg), state_dict, args.src)
    else:
        model, conversions = fit_checkpoint(
            cfg, state_dict, args.src, args.images, STEPS if args.steps is None else args.steps
        )
        state_dict = model.cpu().state_dict()
    save_checkpoint(converted(state_dict, args.src, cfg), args.dst)
    print_conversions(conversions, args)
    part = any(key.startswith('backbone.') for key in state_dict)
    print(f'wrote {args.dst}' + ('' if part else ', for the init_cfg of the backbone: it holds nothing else'))


if __name__ == '__main__':
    main()
