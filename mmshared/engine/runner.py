"""mmengine's Runner with the checks that mmshared promises, whichever tool runs it."""

import atexit
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.dist import barrier, broadcast, init_dist, is_main_process
from mmengine.model import is_model_wrapper
from mmengine.registry import RUNNERS
from mmengine.runner import BaseLoop, Runner
from mmengine.utils.dl_utils import set_multi_processing
from torch import nn
from torch.utils.data import DataLoader

from ..sharing import SharingError, banks
from .build import check_sharing
from .checkpoint import load_checkpoint_file
from .config import check_data, check_twins
from .data import check_classes, explain_failure, images_named

DDP = 'MMDistributedDataParallel'


def check_config(cfg: Config, loaders: Sequence[str] = ()) -> None:
    """Raise a :class:`SharingError` if the network of a config cannot share in this way, or if its data are missing.

    Args:
        cfg (Config): The config.
        loaders (Sequence[str]): The data loaders whose data must be there.
    """
    check_twins(cfg)
    check_sharing(cfg)
    check_data(cfg, loaders)


@RUNNERS.register_module()
class SharingRunner(Runner):
    """Trains and tests networks that share. It differs from mmengine's Runner in six ways:

    - It refuses a network that cannot share as configured before anything is built, and missing data before any are
      read.
    - It says which annotations or which image cannot be read, and which classes annotations have instead of those of
      the config.
    - Testing and resuming need a checkpoint of the whole network. Training may start from one with another head.
    - If the note of a run's last checkpoint is wrong, the run resumes from the last checkpoint that can be read.
    - All processes have the same weights after a checkpoint is loaded and fitted. FSDP is refused.
    - Processes of pytorch's launcher also train without GPUs, and leave their group at the end.
    """

    _needs_whole = False  # whether the checkpoint has to be of the whole network

    @classmethod
    def from_cfg(cls, cfg: Config | dict) -> Runner:
        cfg = cfg if isinstance(cfg, Config) else Config(cfg)
        check_config(cfg)
        return super().from_cfg(cfg)

    def setup_env(self, env_cfg: dict) -> None:
        join_group(self.launcher, env_cfg)
        super().setup_env(env_cfg)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        if self.distributed and not torch.cuda.is_available() and not is_model_wrapper(model):
            wrapper = model_wrapper_cfg or dict(
                broadcast_buffers=False, find_unused_parameters=self.cfg.get('find_unused_parameters', False)
            )
            if wrapper.get('type', DDP) == DDP:
                model_wrapper_cfg = dict(wrapper, type=DDP, device_ids=None)
        if self.distributed and 'FullyShardedDataParallel' in str((model_wrapper_cfg or {}).get('type')):
            raise SharingError(
                "FSDP: mmengine's Runner would save only the parts of the network that the first process holds. Take "
                'model_wrapper_cfg out of the config; sharing itself makes what processes exchange smaller.'
            )
        return super().wrap_model(model_wrapper_cfg, model)

    def build_train_loop(self, loop: Any) -> Any:
        check_data(self.cfg, ['train_dataloader', 'val_dataloader'])
        return super().build_train_loop(loop)

    def build_val_loop(self, loop: Any) -> Any:
        check_data(self.cfg, ['val_dataloader'])
        return super().build_val_loop(loop)

    def build_test_loop(self, loop: Any) -> Any:
        check_data(self.cfg, ['test_dataloader'])
        return super().build_test_loop(loop)

    @staticmethod
    def build_dataloader(dataloader: Any, *args: Any, **kwargs: Any) -> DataLoader:
        try:
            loader = Runner.build_dataloader(dataloader, *args, **kwargs)
        except Exception:
            explain_failure(dataloader.get('dataset'))
            raise
        check_classes(loader.dataset)
        return loader

    def train(self) -> nn.Module:
        with images_named(self._datasets):
            return super().train()

    def val(self) -> dict:
        self._needs_whole = True
        with images_named(self._datasets):
            return super().val()

    def test(self) -> dict:
        self._needs_whole = True
        with images_named(self._datasets):
            return super().test()

    def _datasets(self) -> list[Any]:
        loops = (self._train_loop, self._val_loop, self._test_loop)
        return [loop.dataloader.dataset for loop in loops if isinstance(loop, BaseLoop)]

    def resume(self, filename: str, *args: Any, **kwargs: Any) -> None:
        self._needs_whole = True
        try:
            super().resume(filename, *args, **kwargs)
        except KeyError as error:
            if error.args[0] not in ('meta', 'epoch', 'iter', 'message_hub'):
                raise
            raise SharingError(
                f'The checkpoint {filename} has no {error.args[0]}: it holds weights, and no training that could go '
                'on. To begin from its weights, give it as load_from.'
            ) from error

    def load_or_resume(self) -> None:
        if self._resume and self._load_from is None:
            has_begun(Path(self.work_dir))
        super().load_or_resume()

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        if fn_name == 'after_load_checkpoint' and 'state_dict' not in kwargs['checkpoint']:
            kwargs['checkpoint'] = dict(state_dict=kwargs['checkpoint'])  # which EMAHook expects
        super().call_hook(fn_name, **kwargs)

    def load_checkpoint(self, filename: str, *args: Any, **kwargs: Any) -> dict:
        checkpoint = self._load_checkpoint(filename, *args, **kwargs)
        averages = [hook.ema_model for hook in self.hooks if hasattr(hook, 'ema_model')]
        for network in [self.model, *averages] if banks(self.model) else []:
            for tensor in network.state_dict().values():
                broadcast(tensor)  # a fit may differ in its last digits between machines
        return checkpoint

    def _load_checkpoint(self, filename: str, *args: Any, **kwargs: Any) -> dict:
        if self._needs_whole:
            try:
                return super().load_checkpoint(filename, *args, **{**kwargs, 'strict': True})
            except RuntimeError as error:
                lines = str(error).splitlines()
            lacks = [line for line in lines if line.startswith(('size mismatch', 'missing keys'))]
            if lacks:
                raise SharingError(f'The checkpoint {filename} is not of the network of this config: {lacks[0][:200]}')
        return super().load_checkpoint(filename, *args, **kwargs)  # extra keys are ignored


def go_on(cfg: Config) -> None:
    """Let the run of a config go on from its last checkpoint. If it has none, it begins as the config says, from the
    checkpoint in ``load_from`` for example."""
    join_group(cfg.get('launcher', 'none'), cfg.get('env_cfg', {}))
    if has_begun(Path(cfg.work_dir)):
        cfg.update(resume=True, load_from=None)


def join_group(launcher: str, env_cfg: dict) -> None:
    """Join the processes that a launcher has started, if it is not ``'none'`` and they are not joined yet.

    Args:
        launcher (str): The launcher.
        env_cfg (dict): The ``env_cfg`` of a config.
    """
    if launcher == 'none' or dist.is_initialized():
        return
    set_multi_processing(**env_cfg.get('mp_cfg', {}), distributed=True)
    if launcher == 'pytorch' and not torch.cuda.is_available():
        dist.init_process_group('gloo')  # mmengine asks for a GPU in each process
    else:
        init_dist(launcher, **env_cfg.get('dist_cfg', {}))
    # A process that ends with the threads of its group running may be aborted.
    atexit.register(_leave_group)


def _leave_group() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def has_begun(work_dir: Path) -> bool:
    """Whether a run can go on from a checkpoint in its work dir, whose note of the last one is mended. All processes
    of the run have to call it."""
    if is_main_process():
        mend_last_checkpoint(work_dir)
    barrier()
    return (work_dir / 'last_checkpoint').is_file()


def mend_last_checkpoint(work_dir: Path) -> None:
    """Point a run's note of its last checkpoint at the last one that can be read, if the note names a file that does
    not exist: the folder was moved, or the run was killed after it removed the old one and before it noted the new
    one."""
    note = work_dir / 'last_checkpoint'
    if note.is_file() and not (noted := Path(note.read_text().strip())).is_file():
        # best_... has no state of the optimizer.
        there = [path for path in work_dir.glob('*.pth') if re.fullmatch(r'(epoch|iter)_\d+', path.stem)]
        there.sort(key=lambda path: int(path.stem.partition('_')[2]))
        there.append(work_dir / noted.name)
        while there and not _can_be_read(there[-1]):
            there.pop()
        if there:
            note.write_text(str(there[-1]))
        else:
            note.unlink()


def _can_be_read(checkpoint: Path) -> bool:
    try:
        load_checkpoint_file(str(checkpoint))
    except SharingError:
        return False
    return True


def numbers_in(metrics: dict[str, Any]) -> dict[str, float]:
    """The metrics that are single numbers: others are lists for each class, for example."""
    found = {}
    for name, value in metrics.items():
        if hasattr(value, 'shape') and math.prod(value.shape) == 1:
            value = value.item()
        if isinstance(value, (int, float)):
            found[name] = value
    return found
