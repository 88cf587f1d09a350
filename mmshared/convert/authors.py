"""What the converters of others' checkpoints have in common."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config
from torch import Tensor


class Converted(NamedTuple):
    """A checkpoint of others, for a model of mmshared or of a library.

    Attributes:
        state_dict (dict): The state dict of that model.
        config (Path | Config | str): The config of that model: a file, the config itself if no file exists, or its
            name in a library.
        options (dict): The options that the config needs.
        note (str): Anything else to print about it.
    """

    state_dict: dict[str, Tensor]
    config: Path | Config | str
    options: dict[str, Any] = {}
    note: str = ''


def rename(key: str, rules: Sequence[tuple[str, str]]) -> str:
    """Apply regular expression replacements to a key, in order."""
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key
