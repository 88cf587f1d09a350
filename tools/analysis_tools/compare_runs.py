"""Draw the logged scalars of several runs in the same axes.

By default these are the scalars of GradientFlowHook, to compare for example the gradients of the banks with and
without the orthogonality loss.
"""

import argparse

from mmshared_cli import add_runs, errors_in_a_sentence, named_runs, own_files


@errors_in_a_sentence()
@own_files()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_runs(parser, 'runs.png')
    parser.add_argument(
        '--scalars',
        default='grad/.*',
        metavar='PATTERN',
        help="regular expression for the scalars' names, for example 'basis/.*' or 'loss' (default: grad/.*)",
    )
    parser.add_argument('--linear', action='store_true', help='use a linear scale instead of a logarithmic one')
    args = parser.parse_args()
    work_dirs = named_runs(parser, args)
    from mmshared import SharingError
    from mmshared.analysis.logs import read_scalars
    from mmshared.analysis.plots import draw_runs

    runs = {name: read_scalars(path) for name, path in work_dirs.items()}
    for name, path in work_dirs.items():
        if not runs[name]:
            raise SharingError(f'{path} is not the work dir of a run: it has no vis_data/scalars.json.')
    drawn = draw_runs(runs, args.scalars, args.out, 'linear' if args.linear else 'log')
    print(f'wrote {args.out}: {", ".join(drawn)}')


if __name__ == '__main__':
    main()
