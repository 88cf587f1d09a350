"""Train a detector or a classifier.

The config is a file, or the name of a config of mmshared, mmdet or mmpretrain: mmshared::faster_rcnn_r50_shared.py.
"""

import argparse

from mmshared_cli import (
    add_cfg_options,
    add_launcher,
    add_loader_switch,
    end_run,
    errors_in_a_sentence,
    interrupts_in_a_sentence,
    load_run,
    stdout_if,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='the config file, or its name')
    parser.add_argument(
        '--work-dir', help='folder for logs and checkpoints (default: work_dirs/ and the name of the config)'
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='resume from this checkpoint or, without a name, from the last one in the work dir if there is one',
    )
    parser.add_argument('--amp', action='store_true', help='train in mixed precision')
    parser.add_argument('--no-validate', action='store_true', help='do not evaluate during training')
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help='scale the learning rate with the batch size of all processes'
    )
    add_loader_switch(parser, 'pin_memory', 'do not pin the memory of the data loaders')
    add_loader_switch(parser, 'persistent_workers', 'restart the workers of the data loaders in each epoch')
    parser.add_argument(
        '--quiet', action='store_true', help='print a line for each epoch; the log goes into the work dir only'
    )
    add_cfg_options(parser)
    add_launcher(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    # Imported after the arguments are parsed: --help should not wait for PyTorch.
    from mmengine.device import get_device
    from mmengine.registry import RUNNERS

    from mmshared import SharingError
    from mmshared.engine.runner import check_config, go_on

    hint = ' The same command with --resume continues from the last checkpoint.'
    with errors_in_a_sentence(), interrupts_in_a_sentence(hint), stdout_if(not args.quiet):
        cfg = load_run(args)
        if args.quiet:
            cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), dict(type='ProgressHook')]
        if args.no_validate:
            cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
        if args.amp:
            if get_device() == 'cpu':
                raise SharingError('--amp needs a GPU, and there is none: leave it out.')
            cfg.optim_wrapper.type = 'AmpOptimWrapper'
            cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
        if args.auto_scale_lr:
            if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
                raise SharingError('--auto-scale-lr: the config has no auto_scale_lr.base_batch_size to scale from.')
            cfg.auto_scale_lr.enable = True
        check_config(cfg, ['train_dataloader', 'val_dataloader'])
        if args.resume == 'auto':
            go_on(cfg)
        elif args.resume:
            cfg.update(resume=True, load_from=args.resume)
        RUNNERS.build(cfg).train()
    end_run()


if __name__ == '__main__':
    main()
