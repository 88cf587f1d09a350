"""Fold the similar layers of a network with template banks into loops.

Layers of a bank whose coefficient vectors agree then share one kernel, each with its own factor. This changes the
kernels as little as possible in the sum of squares. Any two layers that share a kernel are more alike than the
threshold (complete linkage). Prints what each stage runs, as a program of loops, and writes the checkpoint and, beside
it, its config. A network without similar layers is not changed.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from mmshared_cli import (
    add_cfg_options,
    add_threshold,
    check_files,
    errors_in_a_sentence,
    output_checkpoint,
    own_files,
)

if TYPE_CHECKING:
    from mmengine.config import Config


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='the config of the network')
    parser.add_argument('checkpoint', help='its checkpoint')
    parser.add_argument('out', type=output_checkpoint, help='the checkpoint to write; its config gets the same name')
    add_threshold(parser)
    parser.add_argument(
        '--recalibrate',
        type=int,
        metavar='N',
        help='estimate the statistics of the batch norms again, on N batches of the training set',
    )
    parser.add_argument('--no-test', action='store_true', help='do not evaluate on the test set before and after')
    add_cfg_options(parser)
    args = parser.parse_args()
    if args.recalibrate is not None and args.recalibrate < 1:
        parser.error(f'--recalibrate {args.recalibrate}: give a number of batches above 0')
    args.out_config = args.out.with_suffix('.py')
    check_files(parser, args.config, args.checkpoint, args.out, args.out_config)
    return args


def can_test(cfg: Config) -> bool:
    """Whether a config has a test set and its data are there. Prints a line if not."""
    from mmshared import SharingError
    from mmshared.engine.config import check_data

    if not cfg.get('test_dataloader'):
        print('The config has no test set: nothing is evaluated.')
        return False
    try:
        check_data(cfg, ['test_dataloader'], skip_downloads=False)
    except SharingError as error:
        print(f'Nothing is evaluated: {error}')
        return False
    return True


@errors_in_a_sentence()
def main() -> None:
    args = parse_args()
    from mmshared.analysis.complexity import parameter_count
    from mmshared.analysis.speed import checkpoint_bytes
    from mmshared.convert.loops import evaluate, fold_loops, recalibrate, stage_programs
    from mmshared.engine.build import load_model
    from mmshared.engine.checkpoint import converted, save_checkpoint
    from mmshared.engine.config import check_data, dump_config, load_config

    cfg = load_config(args.config, args.cfg_options)
    if args.recalibrate:
        check_data(cfg, ['train_dataloader'])
    model = load_model(cfg, args.checkpoint)
    folded_cfg, folded, conversions = fold_loops(cfg, model, args.threshold)
    if not conversions:
        print(
            f'No two layers of a bank have a similarity above {args.threshold:g}: the network is not changed, and '
            'nothing was written.'
        )
        return
    for conversion in conversions:
        print(conversion)
    for stage, program in stage_programs(folded).items():
        print(f'{stage}: {program}')

    print(f'parameters: {parameter_count(model):,} before, {parameter_count(folded):,} after')
    sizes = [checkpoint_bytes(each) / 1e6 for each in (model, folded)]
    print('weights on disk: {:.2f} MB before, {:.2f} MB after'.format(*sizes))
    networks = {'before': (cfg, model), 'after': (folded_cfg, folded)}
    if args.recalibrate:
        folded = recalibrate(folded_cfg, folded, args.recalibrate)
        networks['after, recalibrated'] = folded_cfg, folded
    save_checkpoint(converted(folded.state_dict(), args.checkpoint, folded_cfg), args.out)
    with own_files():
        dump_config(folded_cfg, args.out_config)
    print(f'wrote {args.out} and {args.out_config}')
    if not args.no_test and can_test(cfg):
        metrics = {name: evaluate(*network) for name, network in networks.items()}
        for metric in metrics['before']:
            print(f'{metric}: ' + ', '.join(f'{values[metric]:.4g} {name}' for name, values in metrics.items()))


if __name__ == '__main__':
    main()
