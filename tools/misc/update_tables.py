"""Count the parameters and multiply-adds of the models for the metafiles and the READMEs.

Builds every model of the metafiles. Also makes the tables and the plot of the compressed networks.
"""

import argparse
from pathlib import Path

import yaml
from tqdm import tqdm

from mmshared_cli import errors_in_a_sentence


@errors_in_a_sentence()
def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    from mmshared.analysis.plots import draw_tradeoff
    from mmshared.analysis.results import tradeoffs_of
    from mmshared.analysis.tables import measure, readmes

    root = Path(__file__).parents[2]
    for path in tqdm(sorted(root.glob('configs/*/metafile.yml')), unit='metafile', disable=None):
        metafile = yaml.safe_load(path.read_text())
        measure(metafile, root)
        path.write_text(yaml.safe_dump(metafile, sort_keys=False, width=119))
    for path, text in readmes(root).items():
        path.write_text(text)
        print(f'wrote the table of {path.relative_to(root)}')
    project = root / 'projects/compression'
    draw_tradeoff(tradeoffs_of(project / 'README.md', project / 'results'), project / 'tradeoff.png')


if __name__ == '__main__':
    main()
