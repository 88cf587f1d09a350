"""Build every stock config with the repeated layers of its backbone tied.

The whole model is built without values. Each distinct backbone is built once with values, run forward and backward,
folded and run again. Prints for each config whether it was built, has no repeated layer, cannot be built here even
unchanged, or failed; then the totals. Fails if a config failed.
"""

import argparse
import json
import logging
import re
import sys
import time
import warnings

from tqdm import tqdm

from mmshared_cli import errors_in_a_sentence, output_file, own_files


@errors_in_a_sentence()
@own_files()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'libraries',
        nargs='*',
        metavar='library',
        help='mmdet, mmpretrain or mmseg (default: all that are installed)',
    )
    parser.add_argument(
        '--match', default='', metavar='PATTERN', help='regular expression to find in the names of configs'
    )
    parser.add_argument('--json', type=output_file, help='also write the results to this file')
    args = parser.parse_args()
    import torch

    from mmshared import SharingError
    from mmshared.analysis.sweep import Sweep, count, stock_configs
    from mmshared.engine.config import LIBRARIES

    args.libraries = args.libraries or LIBRARIES
    alien = set(args.libraries) - set(LIBRARIES)
    if alien:
        parser.error(f'{alien.pop()}: the libraries are {" and ".join(LIBRARIES)}')
    warnings.simplefilter('ignore')
    logging.disable(logging.WARNING)

    try:
        pattern = re.compile(args.match)
    except re.error as error:
        parser.error(f'--match {args.match}: {error}')
    configs = {
        name: path
        for library in args.libraries
        for name, path in stock_configs(library).items()
        if pattern.search(name)
    }
    if not configs:
        raise SharingError(f'No config of {" and ".join(args.libraries)} has {args.match!r} in its name.')

    # mmcv's synchronised batch norms need a process group when they are built.
    torch.distributed.init_process_group('gloo', store=torch.distributed.HashStore(), rank=0, world_size=1)
    start, outcomes, sweep = time.perf_counter(), {}, Sweep()
    for name, path in tqdm(configs.items(), unit='config', disable=None):
        outcomes[name] = sweep.config(path)
        saved = f'{outcomes[name].saved:.1%}' if outcomes[name].groups else ''
        tqdm.write(f'{outcomes[name].result:8} {name} {saved} {outcomes[name].reason}'.rstrip())
    seconds = time.perf_counter() - start

    print(f'\n{len(outcomes)} configs in {seconds:.0f} s')
    totals = count(outcomes)
    for result, (number, reasons) in totals.items():
        print(f'{number:5} {result}')
        for reason, times in reasons:
            print(f'      {times:5} {reason}')
    if args.json:
        args.json.write_text(json.dumps(dict(outcomes=outcomes, totals=totals, seconds=seconds), indent=1))
    sys.exit('failed' in totals)


if __name__ == '__main__':
    main()
