"""Draw the logged scalars of several runs over each other.

What a GradientFlowHook has written, unless told otherwise: the gradients of the banks, with and without the
orthogonality loss say.
"""
import argparse
import re
from pathlib import Path

from mmshared.analysis.training import draw_runs, read_scalars


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('work_dirs', type=Path, nargs='+', metavar='work_dir',
                        help='the work dir of a run of train.py')
    parser.add_argument('--scalars', default='grad/.*', metavar='PATTERN',
                        help="regular expression of the scalars' names, 'basis/.*' or 'loss' say (default: grad/.*)")
    parser.add_argument('--legend', nargs='+', help='names of the runs (default: those of their folders)')
    parser.add_argument('--linear', action='store_true', help='linear, not logarithmic')
    parser.add_argument('--out', type=Path, default='runs.png', help='default: runs.png')
    args = parser.parse_args()
    names = args.legend or [path.resolve().name for path in args.work_dirs]
    if len(set(names)) < len(args.work_dirs) or len(names) > len(args.work_dirs):
        parser.error('--legend: give each run a name of its own')
    runs = {name: read_scalars(path) for name, path in zip(names, args.work_dirs)}
    for name, path in zip(names, args.work_dirs):
        if not runs[name]:
            raise SystemExit(f'{path} is no work dir of a run: it has no vis_data/scalars.json.')
    try:
        drawn = draw_runs(runs, args.scalars, args.out, 'linear' if args.linear else 'log')
    except (ValueError, re.error) as error:
        raise SystemExit(f'Error: {error}') from None
    print(f'wrote {args.out}: {", ".join(drawn)}')


if __name__ == '__main__':
    main()
