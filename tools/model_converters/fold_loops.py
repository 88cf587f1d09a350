"""Fold the layers of a network with template banks that are alike into loops.

Those layers of a bank whose coefficient vectors agree share one kernel from then on, each with a factor of its own:
the changes of all kernels are the least, in the sum of squares, that this can do with. Every two layers that share a
kernel are more alike than the threshold (complete linkage). Prints what each stage runs, as a program of loops, and
writes the checkpoint and beside it its config. A network without layers that are alike is left as it is.
"""

import argparse
import copy
import tempfile
from pathlib import Path

from mmengine.config import Config, DictAction
from mmengine.runner import Runner
from mmpretrain.engine.hooks.precise_bn_hook import update_bn_stats
from torch import Tensor

import mmshared  # noqa: F401  (before mmpretrain: it supplies mmcv's operators)
from mmshared import SharingError
from mmshared.analysis.complexity import parameter_count
from mmshared.analysis.speed import checkpoint_bytes
from mmshared.cli import check_files, errors_in_a_sentence, output_file, own_files
from mmshared.convert.loops import fold_loops, stage_programs
from mmshared.engine.build import load_model
from mmshared.engine.checkpoint import converted, save_checkpoint
from mmshared.engine.config import check_data, load_config, merge_options

State = dict[str, Tensor]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='the config of the network')
    parser.add_argument('checkpoint', help='its checkpoint')
    parser.add_argument('out', type=output_file, help='the checkpoint to write; its config gets the same name')
    parser.add_argument(
        '--threshold',
        type=float,
        default=0.95,
        help='the similarity that layers of one kernel exceed, below 1 (default: 0.95)',
    )
    parser.add_argument(
        '--recalibrate',
        type=int,
        metavar='N',
        help='estimate the statistics of the batch norms anew, on N batches of the training set',
    )
    parser.add_argument('--no-test', action='store_true', help='do not evaluate on the test set before and after')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        help='override settings of the config; data_root=FOLDER moves its data set',
    )
    args = parser.parse_args()
    if not 0 <= args.threshold < 1:
        parser.error(f'--threshold {args.threshold}: give a similarity from 0 up to below 1')
    if args.recalibrate is not None and args.recalibrate < 1:
        parser.error(f'--recalibrate {args.recalibrate}: give a number of batches above 0')
    args.out_config = args.out.with_suffix('.py')
    check_files(parser, args.config, args.checkpoint, args.out, args.out_config)
    return args


def make_runner(cfg: Config, state_dict: State, work_dir: str) -> Runner:
    """A runner with the model of a config, and its weights."""
    cfg = copy.deepcopy(cfg)
    cfg.merge_from_dict(
        dict(
            work_dir=work_dir,
            experiment_name=Path(work_dir).name,
            log_level='ERROR',
            load_from=None,
            resume=False,
            custom_hooks=[],
        )
    )
    cfg.setdefault('randomness', dict(seed=0))
    runner = Runner.from_cfg(cfg)
    runner.model.load_state_dict(state_dict, strict=True)
    return runner


def evaluate(cfg: Config, state_dict: State) -> dict[str, float]:
    """The metrics of a model on the test set of its config."""
    with tempfile.TemporaryDirectory() as work_dir:
        return make_runner(cfg, state_dict, work_dir).test()


def recalibrate(cfg: Config, state_dict: State, batches: int) -> State:
    """A model whose batch norms have the mean statistics of some batches of the training set."""
    with tempfile.TemporaryDirectory() as work_dir:
        runner = make_runner(cfg, state_dict, work_dir)
        loader = Runner.build_dataloader(copy.deepcopy(cfg.train_dataloader), seed=runner.seed)
        runner.model.train()
        update_bn_stats(runner.model, loader, batches * loader.batch_size)
        return {key: tensor.cpu() for key, tensor in runner.model.state_dict().items()}


def can_test(cfg: Config) -> bool:
    """Whether a config has a test set, and it is there; says so if not."""
    if not cfg.get('test_dataloader'):
        print('The config has no test set: nothing is evaluated.')
        return False
    try:
        check_data(cfg, ['test_dataloader'], download=False)
    except SharingError as error:
        print(f'Nothing is evaluated: {error}')
        return False
    return True


@errors_in_a_sentence()
def main() -> None:
    args = parse_args()
    cfg = load_config(args.config)
    merge_options(cfg, args.cfg_options)
    if args.recalibrate:
        check_data(cfg, ['train_dataloader'])
    model = load_model(cfg, args.checkpoint)
    folded_cfg, folded, conversions = fold_loops(cfg, model, args.threshold)
    if not conversions:
        print(
            f'No two layers of a bank have a similarity above {args.threshold:g}: the network is left as it is, and '
            'nothing was written.'
        )
        return
    for conversion in conversions:
        print(conversion)
    for stage, program in stage_programs(folded).items():
        print(f'{stage}: {program}')

    before, after = model.state_dict(), folded.state_dict()
    print(f'parameters: {parameter_count(model):,} before, {parameter_count(folded):,} after')
    sizes = [checkpoint_bytes(each) / 1e6 for each in (model, folded)]
    print('weights on disk: {:.2f} MB before, {:.2f} MB after'.format(*sizes))
    stages = {'before': (cfg, before), 'after': (folded_cfg, after)}
    if args.recalibrate:
        after = recalibrate(folded_cfg, after, args.recalibrate)
        stages['after, recalibrated'] = folded_cfg, after
    if not args.no_test and can_test(cfg):
        metrics = {stage: evaluate(*network) for stage, network in stages.items()}
        for name in metrics['before']:
            print(f'{name}: ' + ', '.join(f'{values[name]:.4g} {stage}' for stage, values in metrics.items()))
    save_checkpoint(converted(after, args.checkpoint), args.out)
    with own_files():
        folded_cfg.dump(args.out_config)
    print(f'wrote {args.out} and {args.out_config}')


if __name__ == '__main__':
    main()
