"""Draw and print the results of a detector's training run.

Writes detections.png (the detections of its last checkpoint in images of the validation set) and curves.png (loss,
orthogonality loss and AP over training) into the run's folder, and prints its AP and its parameter counts.
"""

import argparse
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from mmshared_cli import add_cfg_options, errors_in_a_sentence, own_files


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('work_dir', type=Path, help='the work dir of a run of train.py')
    parser.add_argument('--images', type=int, default=8, help='number of validation images (default: 8)')
    parser.add_argument('--score', type=float, default=0.5, help='draw detections that score higher (default: 0.5)')
    parser.add_argument('--metric', help="name of the metric (default: the run's box AP)")
    add_cfg_options(parser)
    args = parser.parse_args()
    if args.images < 1:
        parser.error(f'--images {args.images}: give 1 or more')
    return args


@errors_in_a_sentence()
def main() -> None:
    args = parse_args()
    from mmengine.runner import find_latest_checkpoint

    from mmshared import SharingError  # before mmdet: it supplies mmcv's operators
    from mmshared.analysis.complexity import parameter_count
    from mmshared.analysis.logs import config_of, read_scalars, read_validations
    from mmshared.analysis.plots import detections_in, draw_curves, draw_images
    from mmshared.engine.build import build_empty, build_plain
    from mmshared.engine.config import check_data, load_config

    config, checkpoint = config_of(args.work_dir), find_latest_checkpoint(str(args.work_dir))
    if config is None or checkpoint is None:
        lack = 'checkpoint' if config else 'log of a training: */vis_data with scalars.json and config.py is not there'
        raise SharingError(f'{args.work_dir} is not the work dir of a finished run: it has no {lack}.')
    # The run noted the path of the checkpoint at that time: the folder may have been moved since.
    checkpoint = args.work_dir / Path(checkpoint).name
    cfg = load_config(str(config), args.cfg_options)
    if cfg.default_scope != 'mmdet':
        raise SharingError(
            f'{args.work_dir} is of a run of {cfg.default_scope}: the report is about detectors. '
            '`mmshared compare-runs` draws the scalars of any run.'
        )
    if not cfg.get('val_dataloader'):
        raise SharingError(f'{args.work_dir} is of a run without validation: its config has no images to show.')
    scalars = read_scalars(args.work_dir)
    metrics = list(dict.fromkeys(name for validation in read_validations(args.work_dir) for name in validation))
    metric = args.metric or next((name for name in metrics if name.endswith(('bbox_mAP', '/mAP'))), '')
    if args.metric and not any(name.startswith(args.metric) for name in metrics):
        raise SharingError(f'The run has no metric {args.metric}: it has {", ".join(metrics) or "none"}.')
    check_data(cfg, ['val_dataloader'])
    from mmdet.apis import init_detector
    from mmdet.registry import DATASETS

    model = init_detector(cfg, str(checkpoint), device='cpu')

    with redirect_stdout(StringIO()):  # pycocotools reports every step
        dataset = DATASETS.build(cfg.val_dataloader.dataset)
    images = [Path(dataset.get_data_info(i)['img_path']) for i in range(min(args.images, len(dataset)))]
    with own_files():
        step = 'epoch' if 'max_epochs' in cfg.train_cfg else 'iteration'
        draw_curves(scalars, metric, args.work_dir / 'curves.png', step)
    found = detections_in(model, images, args.score)
    draw_images(found.images, args.work_dir / 'detections.png', found.note)

    for name, curve in scalars.items():
        if metric and name.startswith(metric) and curve[-1][1] >= 0:  # -1: no object of that size
            print(f'{name}: {curve[-1][1]:.3f}')
    plain = build_empty(cfg, build_plain)  # for counting
    for name, counted, twin in (('detector', model, plain), ('backbone', model.backbone, plain.backbone)):
        here, there = parameter_count(counted), parameter_count(twin)
        print(f'parameters of the {name}: {here:,} shared, {there:,} plain ({1 - here / there:.1%} fewer)')
    if found.note:
        print(f'{found.note} (see --score)')
    print(f'images: {args.work_dir}/detections.png, {args.work_dir}/curves.png\ncheckpoint: {checkpoint}')


if __name__ == '__main__':
    main()
