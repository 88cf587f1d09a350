"""Print how much of one model's gain over a baseline other models reach.

For example, how much of the gain from equivariance on rotated MNIST learned repetition reaches. The share of a model
is (its accuracy - the baseline's) / (the better model's - the baseline's), with means over the seeds. Its 95 %
interval from the spread of the seeds is in brackets, if each model has several seeds.
"""

import argparse
import statistics
from pathlib import Path

from mmshared_cli import errors_in_a_sentence, own_files

METRIC = 'accuracy/top1'


@errors_in_a_sentence()
@own_files()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('work_dir', type=Path, help='the work dir of a suite that `mmshared benchmark` ran')
    parser.add_argument('models', nargs='+', metavar='model', help='names of models of the suite')
    parser.add_argument('--baseline', required=True, metavar='MODEL', help='the model to measure the gain from')
    parser.add_argument('--better', required=True, metavar='MODEL', help='the model whose gain counts as 1')
    args = parser.parse_args()
    if args.baseline == args.better:
        parser.error('--baseline and --better must be two models')
    from mmshared.analysis.gain import compare, read_accuracies
    from mmshared.analysis.markdown import markdown_table

    runs = {name: read_accuracies(args.work_dir / name, METRIC) for name in (args.baseline, *args.models, args.better)}
    lines = []
    for name, accuracies in runs.items():
        found = compare(runs[args.baseline], accuracies, runs[args.better])
        known = {args.baseline: '0', args.better: '1'}.get(name, str(found.share or 'not defined'))
        lines.append([name, str(len(accuracies)), f'{statistics.mean(accuracies):.2f}', known])
    print(markdown_table(['model', 'runs', METRIC, 'share of the gain'], lines))
    print(f'\ngain of {args.better} over {args.baseline}: {found.gain} percentage points')
    if found.share is None:
        print('There may be no gain at all: the shares are not defined.')


if __name__ == '__main__':
    main()
