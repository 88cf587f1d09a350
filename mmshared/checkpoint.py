"""Checkpoints as files: read without running any code that they may carry, written whole or not at all."""
import os
import os.path as osp
import re
from pathlib import Path
from typing import Dict

import torch
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.runner import Runner
from mmengine.runner.checkpoint import CheckpointLoader, get_torch_safe_globals

from .sharing import SharingError


def load_checkpoint_file(filename: str, map_location='cpu') -> dict:
    """Load a checkpoint from a file without running any code that it may carry.

    Raises:
        SharingError: If there is no such file, or if it is damaged, or if it holds more than weights and plain data.
    """
    filename = osp.expanduser(filename)
    if not osp.isfile(filename):
        raise SharingError(f'There is no checkpoint {filename}: check the path.')
    try:
        # A one-cycle schedule keeps one of its own class's functions in its state.
        with torch.serialization.safe_globals([*get_torch_safe_globals(), OneCycleParamScheduler]):
            checkpoint = torch.load(filename, map_location=map_location, weights_only=True)
    except Exception as error:  # torch.load has many ways to say so
        reason = re.split(r'[.\n]\s', str(error).strip())[0] or type(error).__name__
        raise SharingError(f'The checkpoint {filename} cannot be loaded: it is damaged or cut off, or it holds more '
                           f'than weights ({reason}). Copy or download it again.') from None
    if not isinstance(checkpoint, dict):
        raise SharingError(f'The checkpoint {filename} holds a {type(checkpoint).__name__} and no state dict.')
    return checkpoint


def state_dict_of(checkpoint: dict, key: str = 'state_dict') -> Dict[str, torch.Tensor]:
    """The tensors by name that a checkpoint has under a key, or that it is itself.

    Raises:
        SharingError: If that is something else.
    """
    state_dict = checkpoint.get(key, checkpoint)
    if not isinstance(state_dict, dict) or not all(
            isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in state_dict.items()):
        raise SharingError(f'The checkpoint has no state dict: tensors by their names are expected, under {key} or as '
                           'the whole of it.')
    return dict(state_dict)


def converted(state_dict: Dict[str, torch.Tensor], checkpoint: str) -> dict:
    """A checkpoint of weights that were made of those of another one, with the class names that it has."""
    meta = load_checkpoint_file(checkpoint).get('meta') or {}
    return dict(state_dict=state_dict, meta={key: meta[key] for key in ('dataset_meta', ) if key in meta})


def save_checkpoint(checkpoint: dict, path: Path) -> None:
    """Write a checkpoint, whole or not at all: what was there before stays until then.

    Raises:
        SharingError: If it cannot be written.
    """
    partial = path.with_name(f'{path.name}.partial')
    try:
        torch.save(checkpoint, partial)
        partial.replace(path)
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        raise SharingError(f'{path} cannot be written: {str(error).splitlines()[0]}') from None


def refuse_pickles() -> None:
    """Make mmengine load checkpoints by :func:`load_checkpoint_file`, and PyTorch unpickle none from anywhere."""
    os.environ.setdefault('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
    CheckpointLoader.register_scheme('', load_checkpoint_file, force=True)


def refuse_other_networks(script: str) -> None:
    """Make mmengine's runner refuse a checkpoint that lacks a part of the model, or has it in another shape, where it
    is to be tested or resumed. One that training starts from may be that of another head."""
    load = Runner.load_checkpoint

    def load_checkpoint(runner: Runner, filename: str, *args, **kwargs):
        if script == 'test.py' or runner._resume:
            try:
                return load(runner, filename, *args, **{**kwargs, 'strict': True})
            except RuntimeError as error:
                lines = str(error).splitlines()
                lacks = [line for line in lines if line.startswith(('size mismatch', 'missing keys'))]
                if lacks:
                    raise SharingError(f'The checkpoint {filename} is not of the network of this config: '
                                       f'{lacks[0][:200]}') from None
        return load(runner, filename, *args, **kwargs)

    Runner.load_checkpoint = load_checkpoint


def mend_last_checkpoint(work_dir: Path) -> None:
    """Point a run's note of its last checkpoint at the newest there is, where it names one that is not there: the
    folder was moved, or the run was killed when it had removed the old one and not yet noted the new one."""
    note = work_dir / 'last_checkpoint'
    if note.is_file() and not Path(note.read_text().strip()).is_file():
        there = sorted(work_dir.glob('*_[0-9]*.pth'), key=lambda path: path.stat().st_mtime)
        if there:
            note.write_text(str(there[-1]))
        else:
            note.unlink()
