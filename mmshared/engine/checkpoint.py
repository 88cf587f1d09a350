"""Checkpoint files: read without running any code in them, written completely or not at all."""

import json
import os
import os.path as osp
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from urllib.parse import urlparse
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.runner import checkpoint as mmengine_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor

from ..sharing import SharingError
from ..sharing.bank import is_finite
from .config import first_line

# Both keep functions of their own class in their state, which a checkpoint gets by getattr.
_FUNCTIONS = {
    HistoryBuffer: ('min', 'max', 'current', 'mean'),
    OneCycleParamScheduler: ('_annealing_cos', '_annealing_linear'),
}

# In a safetensors file, the scales of a tensor of integers, and what is of the plain network that it unpacks into.
SCALE, PLAIN = ':scale', 'plain:'


class DivergedError(SharingError):
    """A checkpoint holds numbers that are not finite, as those of a training that went wrong do."""


def _function_of(owner: Any, name: str) -> Any:
    """Replaces getattr in a checkpoint. With the real getattr it could reach any function."""
    if not isinstance(owner, type) or name not in _FUNCTIONS.get(owner, ()):
        raise UnpicklingError(f'it asks for {name!r:.80} of {owner!r:.80}')
    return getattr(owner, name)


def load_checkpoint_file(filename: str, map_location: Any = 'cpu', mmap: bool = False) -> dict:
    """Load a checkpoint from a file, of PyTorch or of safetensors, without running any code in it.

    Args:
        filename (str): The file.
        map_location (Any): Where the tensors of a file of PyTorch go; those of safetensors are on the CPU.
        mmap (bool): Whether the tensors stay in the file, from which the system reads them when they are used.

    Raises:
        SharingError: If there is no such file, if it is damaged, if it holds more than weights and plain data, or if
            :func:`check_state_dict` refuses its state dict.
    """
    filename = osp.expanduser(filename)
    if not osp.isfile(filename):
        raise SharingError(f'There is no checkpoint {filename}: check the path.')
    is_safetensors = filename.endswith('.safetensors')
    if is_safetensors and not find_spec('safetensors'):
        raise SharingError(f"{filename} needs a package that is not installed: pip install 'mmshared[export]'")
    try:
        if is_safetensors:
            with import_module('safetensors').safe_open(filename, 'pt') as file:
                metadata, names = file.metadata() or {}, file.keys()
                aliases = json.loads(metadata['aliases']) if {'plain', 'aliases'} <= set(metadata) else {}  # ours
                checkpoint = as_stored({name: file.get_tensor(name) for name in names}, aliases)
        else:
            _check_archive(filename)
            checkpoint = torch.load(filename, map_location=map_location, weights_only=True, mmap=mmap)
    except Exception as error:  # torch.load and zipfile raise many types
        said = str(error).rpartition('WeightsUnpickler error: ')[2]  # after what torch says of any file
        reason = re.split(r'[.\n]\s', said.strip())[0] or type(error).__name__
        raise SharingError(
            f'The checkpoint {filename} cannot be loaded: it is damaged or cut off, or it holds more '
            f'than weights ({reason}). Copy or download it again, or save only its weights (see troubleshooting).'
        ) from None
    if not isinstance(checkpoint, dict):
        raise SharingError(f'The checkpoint {filename} holds a {type(checkpoint).__name__} and no state dict.')
    for key in ('state_dict', 'ema_state_dict'):
        if key in checkpoint:
            check_state_dict(checkpoint[key], f'The checkpoint {filename}')
    if _is_state_dict(checkpoint):
        check_state_dict(checkpoint, f'The checkpoint {filename}')
    return checkpoint


def load_from_url(url: str, model_dir: str | None = None, map_location: Any = 'cpu', progress: bool = True) -> dict:
    """Load a checkpoint with :func:`load_checkpoint_file` from the folder of downloads, into which it is downloaded if
    it is not there yet: a stand-in for ``torch.hub.load_state_dict_from_url``.

    Args:
        url (str): Its address.
        model_dir (str, optional): The folder. Defaults to ``checkpoints`` in that of ``torch.hub``.
        map_location (Any): Where its tensors go.
        progress (bool): Whether to show the progress of the download.

    Raises:
        SharingError: If it cannot be used. What was just downloaded is then removed.
    """
    folder = Path(model_dir or Path(torch.hub.get_dir(), 'checkpoints'))
    file = folder / Path(urlparse(url).path).name
    there = file.is_file()
    if not there:
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file), progress=progress)
    try:
        return load_checkpoint_file(str(file), map_location)
    except SharingError as error:
        if there:
            raise SharingError(f'{error} It was there before: once it is removed, it is downloaded again.') from None
        file.unlink()
        raise


def as_stored(tensors: dict[str, Tensor], aliases: dict[str, str]) -> dict[str, Tensor]:
    """The state dict of a network from what a safetensors file holds of it: integers times their scales, and tensors
    that have several names under all of them."""
    found = {
        key: tensor if f'{key}{SCALE}' not in tensors else tensor * tensors[f'{key}{SCALE}']
        for key, tensor in tensors.items()
        if not key.endswith(SCALE) and not key.startswith((PLAIN, '%'))
    }
    return found | {alias: found[first] for alias, first in aliases.items()}


def _is_state_dict(checkpoint: dict) -> bool:
    """Whether a checkpoint is a state dict itself, and does not hold one under some key."""
    values = checkpoint.values()
    return (
        not {'state_dict', 'meta'} & set(checkpoint)
        and any(isinstance(each, Tensor) for each in values)
        and not any(isinstance(each, dict) for each in values)
    )


def _check_archive(filename: str) -> None:
    """Raise if a part of a zip archive does not match its checksum: torch.load does not check it."""
    with open(filename, 'rb') as file:
        is_archive = file.read(4) == b'PK\x03\x04'  # as torch.load decides
    if is_archive:
        with ZipFile(filename) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise BadZipFile(f'the checksum of {damaged} is wrong')


def check_state_dict(state_dict: Any, source: str) -> None:
    """Check that a state dict holds only dense tensors by name, with finite values.

    Args:
        state_dict (dict): The state dict.
        source (str): Where it comes from, as the start of the error message: ``'The checkpoint a.pth'``.

    Raises:
        SharingError: If it holds anything else.
    """
    wanted = f'{source} has no state dict: tensors by their names are expected, and'
    if not isinstance(state_dict, dict):
        raise SharingError(f'{wanted} it is a {type(state_dict).__name__}.')
    for key, tensor in state_dict.items():
        if not isinstance(key, str):
            raise SharingError(f'{wanted} it has the key {key!r:.80}.')
        if not isinstance(tensor, Tensor):
            raise SharingError(f'{wanted} {key} is a {type(tensor).__name__}.')
        if tensor.layout is not torch.strided or tensor.is_nested:
            raise SharingError(f'{source} holds {key} as a sparse or nested tensor: save it as a dense one.')
        try:
            finite = is_finite(tensor)
        except RuntimeError as error:  # it has no values, or values that torch cannot compare
            raise SharingError(
                f'{source} holds {key} in a form that cannot be read ({first_line(error)}): '
                'save it as ordinary numbers.'
            ) from None
        if not finite:
            raise DivergedError(
                f'{source} holds numbers that are not finite in {key}: take one that was saved before '
                'the training went wrong.'
            )


def state_dict_of(checkpoint: dict, key: str = 'state_dict') -> dict[str, Tensor]:
    """The state dict that a checkpoint has under a key, or the checkpoint itself if it is one.

    Raises:
        SharingError: If :func:`check_state_dict` refuses it.
    """
    state_dict = checkpoint.get(key, checkpoint)
    check_state_dict(state_dict, 'The checkpoint')
    return dict(state_dict)


def converted(state_dict: dict[str, Tensor], checkpoint: str, cfg: Config) -> dict:
    """A checkpoint of weights converted from another checkpoint, with the class names of that one and, as mmengine
    saves it, the config of its model."""
    meta = load_checkpoint_file(checkpoint).get('meta') or {}
    kept = {key: meta[key] for key in ('dataset_meta', 'CLASSES') if key in meta}  # the second of mmdet 2, mmcls
    return dict(state_dict=state_dict, meta=dict(kept, cfg=cfg.pretty_text))


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield the name of a file to write in place of another, which is replaced at the end or, after an error, kept.

    Raises:
        SharingError: If it cannot be written.
    """
    partial = path.with_name(f'{path.name}.partial{os.getpid()}')
    try:
        yield partial
        partial.replace(path)
    except (OSError, RuntimeError) as error:
        raise SharingError(f'{path} cannot be written: {first_line(error)}') from None
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file of text completely or not at all."""
    with written_whole(path) as partial:
        partial.write_text(text, encoding='utf-8')


def save_checkpoint(checkpoint: dict, path: Path) -> None:
    """Write a checkpoint, as :func:`written_whole` does."""
    with written_whole(path) as partial:
        torch.save(checkpoint, partial)


def _numbers() -> list:
    """What arrays of numbers and single numbers are made of by NumPy in a checkpoint. NumPy 2 has moved functions."""
    makers: list[Any] = [number.__reduce__()[0] for number in (np.empty(0), np.float64())]
    names = [(maker, f'numpy.{core}.multiarray.{maker.__name__}') for core in ('core', '_core') for maker in makers]
    return [*names, *{type(np.dtype(code)) for code in np.typecodes['All'] if np.dtype(code).kind in 'biufc'}]


def refuse_pickles() -> None:
    """Make sure that no checkpoint is unpickled in this process or in one that it starts.

    From then on:

    - ``torch.load`` loads only weights and plain data, whoever calls it: also with ``weights_only=False``, which
      mmengine falls back to, and whatever the environment said before.
    - A checkpoint may name what mmengine lets it name, wherever it is loaded, except ``getattr``: that gives it only
      the few functions that mmengine itself saves. It may also hold NumPy's numbers of any type, of any of its
      versions, as the best score of a training.
    - mmengine loads files with :func:`load_checkpoint_file`, also those that it downloads.

    This is about ``torch.load``. Code that reads a pickle with ``pickle.load``, as some data sets do, is not affected.
    """
    os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'
    os.environ.pop('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', None)  # torch.load refuses to load if both are set
    named = [each for each in mmengine_checkpoint.get_torch_safe_globals() if each is not getattr]
    torch.serialization.add_safe_globals([*named, *_numbers(), *_FUNCTIONS, (_function_of, 'builtins.getattr')])
    # mmengine's own list has getattr, and would be removed again after each checkpoint with all that it holds.
    mmengine_checkpoint.get_torch_safe_globals = list
    CheckpointLoader.register_scheme('', load_checkpoint_file, force=True)
    mmengine_checkpoint.load_url = load_from_url
