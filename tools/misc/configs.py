"""List the configs of mmshared, and the suites for `benchmark`, by their names.

Every tool takes these names. Where mmshared is imported, `_base_`, Config.fromfile and DetInferencer take them too.
"""

import argparse
import re
from pathlib import Path

from mmshared_cli import errors_in_a_sentence

FOLDER = Path(__file__).parents[2] / 'configs'


@errors_in_a_sentence()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('pattern', nargs='?', default='', help='regular expression to find in the names')
    args = parser.parse_args()
    try:
        pattern = re.compile(args.pattern)
    except re.error as error:
        parser.error(f'{args.pattern}: {error}')
    for path in sorted(FOLDER.rglob('*')):
        name = f'mmshared::{path.relative_to(FOLDER).as_posix()}'
        if path.suffix in ('.py', '.yaml') and '_base_' not in path.parts and pattern.search(name):
            print(name)


if __name__ == '__main__':
    main()
