"""List the configs of mmshared, and the suites for `benchmark`, by their names.

Every tool takes these names. Where mmshared is imported, `_base_`, Config.fromfile and DetInferencer take them too.
"""

import argparse
import os
import re
import sys
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
    paths = [
        path for path in sorted(FOLDER.rglob('*')) if path.suffix in ('.py', '.yaml') and '_base_' not in path.parts
    ]
    names = [f'mmshared::{path.relative_to(FOLDER).as_posix()}' for path in paths]
    try:
        print(''.join(f'{name}\n' for name in names if pattern.search(name)), end='', flush=True)
    except BrokenPipeError:  # the reader has closed the pipe, as in `mmshared configs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == '__main__':
    main()
