"""Make a trained network smaller, to a budget: its layers share parameters.

The result is evaluated, fine-tuned, folded and reported.

The config is a file, or the name of a config of mmshared, mmdet or mmpretrain: mmdet::yolox/yolox_s_8xb8-300e_coco.py.
Everything is written to the work dir. What is there is not made again: the same command goes on where it was
interrupted, and a fine-tuning after its last whole epoch. With another budget nothing is measured again, and its
network gets a folder in the work dir.

Networks are compared by mAP (of boxes, if masks are evaluated too), mIoU, PQ or top-1, or else by the first metric,
of which more has to be better.
"""

import argparse
import math
import re
from pathlib import Path

from mmshared_cli import (
    add_cfg_options,
    add_launcher,
    add_steps,
    end_run,
    errors_in_a_sentence,
    interrupts_in_a_sentence,
    load_run,
    stdout_if,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='the config of the plain network, a file or a name')
    parser.add_argument('checkpoint', help='its checkpoint')
    goal = parser.add_mutually_exclusive_group(required=True)
    goal.add_argument('--keep', type=share, metavar='SHARE', help='keep this share of the parameters, for example 0.4')
    goal.add_argument('--params', type=count, metavar='N', help='keep this number of parameters, for example 12e6')
    goal.add_argument('--bytes', type=size, metavar='SIZE', help='keep this many bytes, for example 10MB')
    goal.add_argument(
        '--max-drop',
        type=float,
        metavar='POINTS',
        help='find the smallest network whose metric (see below) drops by no more than so many points of 100 before '
        'fine-tuning',
    )
    goal.add_argument('--plan', type=Path, metavar='FILE', help='take this plan, for example plan.json after an edit')
    parser.add_argument('--images', type=int, default=512, help='training images for the statistics (default: 512)')
    add_steps(parser)
    parser.add_argument('--epochs', type=int, default=1, help='epochs of fine-tuning, 0 for none (default: 1)')
    parser.add_argument(
        '--work-dir', help='folder for everything that is written (default: work_dirs/ and the name of the config)'
    )
    add_cfg_options(parser)
    add_launcher(parser)
    return parser.parse_args()


def share(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f'{text} is not between 0 and 1')
    return value


def count(text: str) -> int:
    value = float(text)
    if not 1 <= value < math.inf:
        raise argparse.ArgumentTypeError(f'{text} is not a number of 1 or more')
    return int(value)


def size(text: str) -> int:
    """Bytes: 12000000, 12MB or 11.5MiB."""
    match = re.fullmatch(r'(?i)([\d.e]+)(?:([kmg]?)(i?)b)?', text)
    if match is None:
        raise argparse.ArgumentTypeError(f'{text} is not a size: write for example 10MB')
    number, prefix, binary = match.groups('')
    return count(str(float(number) * (1024 if binary else 1000) ** ' kmg'.index(prefix.lower() or ' ')))


def main() -> None:
    args = parse_args()
    # Imported after the arguments are parsed: --help should not wait for PyTorch.
    from mmshared.compress.pipeline import Budget, Compression

    hint = ' The same command goes on from here.'
    with errors_in_a_sentence(), interrupts_in_a_sentence(hint):
        budgets = dict(kept=args.keep, parameters=args.params, bytes=args.bytes)
        budget = next((Budget(amount, unit) for unit, amount in budgets.items() if amount), None)
        base = None if args.cfg_options else args.config
        goal = dict(budget=budget, max_drop=args.max_drop, plan=args.plan)
        with stdout_if(False):  # the logs are in the work dir
            cfg = load_run(args)
            amounts = dict(images=args.images, steps=args.steps, epochs=args.epochs)
            report = Compression(cfg, base, args.checkpoint, **goal, **amounts).run()
        print(f'report: {report}')
    end_run()


if __name__ == '__main__':
    main()
