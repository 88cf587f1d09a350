"""Draw the shortest path scores of several runs by distance, and print them as tables.

The distances are within and beyond those that the runs were trained on.
"""

import argparse

from mmshared_cli import add_runs, errors_in_a_sentence, named_runs, own_files

TITLES = dict(exact='grids without a wrong cell', f1='mean F1 of the cells on shortest paths')


@errors_in_a_sentence()
@own_files()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_runs(parser, 'extrapolation.png')
    args = parser.parse_args()
    work_dirs = named_runs(parser, args)
    from mmengine.config import Config

    from mmshared import SharingError
    from mmshared.analysis.logs import config_of, last_scores, read_scalars, score_table
    from mmshared.analysis.plots import draw_scores

    panels, longest = {title: {} for title in TITLES.values()}, set()
    for name, path in work_dirs.items():
        config, scalars = config_of(path), read_scalars(path)
        for score, title in TITLES.items():
            panels[title][name] = last_scores(scalars, score)
            if not config or not panels[title][name]:
                raise SharingError(f'{path} is not the work dir of a run that was scored by PathScore.')
        longest.add(max(high for _, high in Config.fromfile(config).train_dataloader.dataset.distances))
    if len({tuple(scores) for runs in panels.values() for scores in runs.values()}) > 1:
        raise SharingError('The runs were scored over different ranges of distances: compare those of one set.')
    if len(longest) > 1:
        raise SharingError(f'The runs were trained up to distances of {sorted(longest)} steps: compare those of one.')
    for title, runs in panels.items():
        print(f'{title}, in percent', *score_table(runs, *longest), '', sep='\n')
    draw_scores(panels, *longest, args.out)
    print(f'wrote {args.out}')


if __name__ == '__main__':
    main()
