"""The files that the steps of a run make: what is there already is not made again."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import barrier, get_world_size, is_main_process, master_only
from torch import Tensor

from ..engine.checkpoint import write_text
from ..sharing import SharingError


class Files:
    """Makes the files of a folder. One that is there is made again only if what it is made from has changed: of that
    the folder keeps a note, ``steps.json``.

    Args:
        folder (Path): The folder. It is created.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._note = folder / 'steps.json'
        folder.mkdir(parents=True, exist_ok=True)

    def make(self, name: str, sources: list[Any], make: Callable[[Path], None], together: bool = False) -> Path:
        """Make a file if it is not there.

        Args:
            name (str): Its name.
            sources (list): What it is made from: values, and paths, for the content of the files.
            make (Callable): Makes it, completely or not at all, at a path.
            together (bool): Whether all processes of a distributed run make it. Defaults to False: the first one does,
                and the others wait.

        Returns:
            Path: The file.

        Raises:
            SharingError: In the other processes, if the first one could not make it.
        """
        path, digest = self.folder / name, digest_of(sources)
        there, failed = self._is_there(path, digest), self.folder / f'{name}.failed'
        if is_main_process():
            failed.unlink(missing_ok=True)
        barrier()  # all processes have looked
        if there:
            say(f'{path}: there already')
            return path
        start = time.time()
        if together or is_main_process():
            try:
                make(path)
                if is_main_process():
                    write_text(self._note, json.dumps({**self._digests(), name: digest}, indent=1))
            except BaseException:
                if is_main_process() and get_world_size() > 1:
                    with suppress(OSError):
                        failed.touch()
                raise
        say(f'{path}: made in {time.time() - start:.0f} s')
        while not self._is_there(path, digest):  # a barrier would not wait for hours
            if failed.exists():
                raise SharingError(f'{path} was not made: the first process says why.')
            time.sleep(1)
        return path

    def adopt(self, other: Files, *names: str) -> None:
        """Take files of another folder, which are not made again here if they would be made from the same."""
        if is_main_process():
            for name, digest in other._digests().items():
                if name in names and not self._is_there(self.folder / name, digest):
                    shutil.copyfile(other.folder / name, self.folder / name)
                    write_text(self._note, json.dumps({**self._digests(), name: digest}, indent=1))
        barrier()

    def _digests(self) -> dict[str, str]:
        return json.loads(self._note.read_text()) if self._note.is_file() else {}

    def _is_there(self, path: Path, digest: str) -> bool:
        return path.is_file() and self._digests().get(path.name) == digest


def digest_of(sources: Iterable[Any]) -> str:
    """A digest of values, of tensors and of the contents of files."""
    found = hashlib.sha256()
    for source in sources:
        if isinstance(source, Path):
            with open(source, 'rb') as file:
                while block := file.read(2**24):
                    found.update(block)
        elif isinstance(source, Tensor):
            found.update(f'{source.dtype} {tuple(source.shape)}'.encode())
            found.update(source.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        else:
            found.update(json.dumps(source, sort_keys=True, default=str).encode())
        found.update(b'\0')
    return found.hexdigest()


@master_only
def say(line: str) -> None:
    """Print a line to stderr: what the runners print to stdout is in their logs."""
    print(line, file=sys.stderr, flush=True)
