"""What the converters of authors' checkpoints have in common."""

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from ..cli import check_files, errors_in_a_sentence, output_file
from ..engine.checkpoint import load_checkpoint_file, save_checkpoint

CONFIGS = Path(__file__).parents[2] / 'configs'


def rename(key: str, rules: Sequence[tuple[str, str]]) -> str:
    """Apply replacements of regular expressions to a key, one after the other."""
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


@errors_in_a_sentence()
def convert_file(description: str, convert: Callable[[dict], tuple[dict[str, Tensor], Path, str]]) -> None:
    """The command of a converter: reads SRC, writes DST and says which config it is for.

    Args:
        description (str): What the command says of itself.
        convert (Callable): Makes of their checkpoint our state dict, the path of the config of its model and what else
            there is to say of it, '' for nothing. Raises a :class:`SharingError` where it cannot.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('src', help='their checkpoint')
    parser.add_argument('dst', type=output_file, help='the checkpoint to write')
    args = parser.parse_args()
    check_files(parser, args.src, args.dst)
    state_dict, config, note = convert(load_checkpoint_file(args.src))
    save_checkpoint(dict(state_dict=state_dict, meta=dict(config=config.name)), args.dst)
    print(f'{args.dst} is for configs/{config.relative_to(CONFIGS)}{note and f", {note}"}')
