"""Files that are written completely or not at all."""

import os
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write a file completely or not at all: an existing one is replaced only at the end."""
    partial = path.with_name(f'{path.name}.partial')
    partial.write_text(text)
    os.replace(partial, path)
