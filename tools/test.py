"""Evaluate a checkpoint of a detector or a classifier.

The config is a file, or the name of a config of mmshared, mmdet or mmpretrain: mmshared::faster_rcnn_r50_shared.py.
"""

from __future__ import annotations

import argparse
import copy
import os
from typing import TYPE_CHECKING

from mmshared_cli import (
    add_cfg_options,
    add_launcher,
    add_loader_switch,
    end_run,
    errors_in_a_sentence,
    interrupts_in_a_sentence,
    load_run,
)

if TYPE_CHECKING:
    from mmengine.config import Config

# The defaults of --tta for a config that does not set it up: the model, and the transform that packs its images.
TTA = dict(
    mmdet=(
        dict(type='DetTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)),
        dict(
            type='PackDetInputs',
            meta_keys=(
                'img_id',
                'img_path',
                'ori_shape',
                'img_shape',
                'scale_factor',
                'flip',
                'flip_direction',
            ),
        ),
    ),
    mmpretrain=(dict(type='AverageClsScoreTTA'), None),  # as the pipeline packs them
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='the config file, or its name')
    parser.add_argument('checkpoint')
    parser.add_argument('--work-dir', help='folder for the log (default: work_dirs/ and the name of the config)')
    parser.add_argument('--out', metavar='FILE', help='write the predictions to this file, .pkl or .pickle')
    parser.add_argument(
        '--out-item', choices=['metrics', 'pred'], help='what --out writes: metrics can also go to .json or .yaml'
    )
    parser.add_argument('--amp', action='store_true', help='test in mixed precision')
    parser.add_argument('--show', action='store_true', help='show images with their predictions in a window')
    parser.add_argument('--show-dir', metavar='FOLDER', help='write images with their predictions to this folder')
    parser.add_argument('--wait-time', type=float, default=2, metavar='SECONDS', help='how long to show an image')
    parser.add_argument('--interval', type=int, default=1, metavar='N', help='for a classifier, show every N-th image')
    parser.add_argument('--tta', action='store_true', help='average over flipped images, or according to tta_pipeline')
    add_loader_switch(parser, 'pin_memory', 'do not pin the memory of the data loaders')
    add_cfg_options(parser)
    add_launcher(parser)
    args = parser.parse_args()
    if args.out_item and not args.out:
        parser.error('--out-item needs --out')
    if args.out and args.out_item != 'metrics' and not args.out.endswith(('.pkl', '.pickle')):
        parser.error(f'--out {args.out}: predictions go into a .pkl or .pickle file')
    if args.out and not args.out.endswith(('.pkl', '.pickle', '.json', '.yaml', '.yml')):
        parser.error(f'--out {args.out}: metrics go into a .json, .yaml, .pkl or .pickle file')
    return args


def show_images(cfg: Config, args: argparse.Namespace) -> None:
    """Turn on the hook that draws predictions."""
    from mmshared import SharingError

    hook = cfg.default_hooks.get('visualization')
    if hook is None:
        raise SharingError('--show and --show-dir: the default_hooks of the config have no visualization.')
    hook.update(show=args.show, wait_time=args.wait_time)
    if cfg.default_scope == 'mmpretrain':
        hook.update(enable=True, out_dir=args.show_dir, interval=args.interval)
    elif cfg.default_scope == 'mmdet':
        hook.update(draw=True, test_out_dir=args.show_dir and os.path.abspath(args.show_dir))
    else:
        hook.update(draw=True)
        cfg.visualizer.save_dir = args.show_dir


def average_over_flips(cfg: Config) -> None:
    """Wrap the model in one that averages its predictions, and give it a pipeline that makes several images."""
    from mmshared import SharingError

    scope, dataset = cfg.default_scope, cfg.test_dataloader.dataset
    if scope not in TTA and not {'tta_model', 'tta_pipeline'} <= set(cfg):
        raise SharingError('--tta: the config has no tta_model and tta_pipeline.')
    model, pack = TTA.get(scope, (None, None))
    while 'dataset' in dataset:
        dataset = dataset.dataset
    if 'tta_pipeline' not in cfg:
        flips = [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)]
        last = dict(type='TestTimeAug', transforms=[flips, [pack or dataset.pipeline[-1]]])
        cfg.tta_pipeline = [*copy.deepcopy(dataset.pipeline[:-1]), last]
    cfg.model = dict(cfg.get('tta_model') or model, module=cfg.model)
    dataset.pipeline = cfg.tta_pipeline


def main() -> None:
    args = parse_args()
    # Imported after the arguments are parsed: --help should not wait for PyTorch.
    import mmengine
    from mmengine.registry import METRICS, RUNNERS

    from mmshared.engine.runner import check_config

    with errors_in_a_sentence(), interrupts_in_a_sentence():
        cfg = load_run(args)
        cfg.load_from = args.checkpoint
        if args.amp:
            cfg.test_cfg.fp16 = True
        if args.show or args.show_dir:
            show_images(cfg, args)
        if args.tta:
            average_over_flips(cfg)
        check_config(cfg, ['test_dataloader'])
        runner = RUNNERS.build(cfg)
        if args.out and args.out_item != 'metrics':
            dump = 'mmdet.DumpDetResults' if cfg.default_scope == 'mmdet' else 'DumpResults'
            runner.test_evaluator.metrics.append(METRICS.build(dict(type=dump, out_file_path=args.out)))
        metrics = runner.test()
        if args.out and args.out_item == 'metrics':
            mmengine.dump(metrics, args.out)
    end_run()


if __name__ == '__main__':
    main()
