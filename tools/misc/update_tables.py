"""Build every model of the metafiles, and update its parameters and multiply-adds and the tables in the READMEs."""

import argparse
from pathlib import Path

import yaml
from tqdm import tqdm

import mmshared  # noqa: F401
from mmshared.analysis.tables import measure, readmes


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    root = Path(__file__).parents[2]
    for path in tqdm(sorted(root.glob('configs/*/metafile.yml')), unit='metafile', disable=None):
        metafile = yaml.safe_load(path.read_text())
        measure(metafile, root)
        path.write_text(yaml.safe_dump(metafile, sort_keys=False, width=119))
    for path, text in readmes(root).items():
        path.write_text(text)
        print(f'wrote the table of {path.relative_to(root)}')


if __name__ == '__main__':
    main()
