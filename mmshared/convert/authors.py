"""What the converters of the authors' checkpoints have in common."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config
from torch import Tensor


class Converted(NamedTuple):
    """A checkpoint of the authors, for a model of mmshared.

    Attributes:
        state_dict (dict): The state dict of that model.
        config (Path | Config): The config of that model: a file, or the config itself if no file exists.
        options (dict): The options that the config needs.
        note (str): Anything else to print about it.
    """

    state_dict: dict[str, Tensor]
    config: Path | Config
    options: dict[str, Any] = {}
    note: str = ''


def rename(key: str, rules: Sequence[tuple[str, str]]) -> str:
    """Apply regular expression replacements to a key, in order."""
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key
