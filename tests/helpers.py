"""What several tests need: banks, backbones, and batch norms that leave no output at zero."""

import atexit
import multiprocessing
import multiprocessing.forkserver
import os
import re
import runpy
import shlex
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from importlib.util import find_spec
from io import StringIO
from itertools import zip_longest
from multiprocessing.context import ForkServerContext
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from mmcv.cnn.bricks.wrappers import Conv2d, Linear
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.runner import Runner
from mmengine.runner.checkpoint import load_state_dict
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from mmshared import Bank, SharingError, named_banks, share_layers
from mmshared.sharing.bank import stage_of

ROOT = Path(__file__).parents[1]
# Every committed config, and those whose networks share: their names say so.
CONFIGS = sorted(
    path
    for folder in (ROOT / 'configs', *ROOT.glob('projects/*/configs'))
    for path in folder.rglob('*.py')
    if '_base_' not in path.parts
)
SHARING_CONFIGS = [path for path in CONFIGS if any(word in path.stem for word in ('shared', 'swrn', 'repeat'))]
WITHOUT_ESCNN = '' if find_spec('escnn') else 'the steerable networks need escnn: pip install --no-deps escnn'
TWO_STAGES = dict(num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(1,))
TIED = dict(type='TiedFilters')
BASIS = dict(type='FilterBasis', shared_rank=32, unique_rank=4)
TEMPLATES = dict(type='TemplateBank', num_templates=2)
REPEATED = dict(type='RepeatedKernel', width=2, transform=dict(type='linear'))
BANKS = {
    'tied': TIED,
    'basis': BASIS,
    'basis-without-own': dict(BASIS, unique_rank=0),
    'basis-without-shared': dict(BASIS, shared_rank=0),
    'basis-without-norm': dict(BASIS, with_norm=False),
    'orthonormal': dict(BASIS, type='OrthonormalFilterBasis'),
    'templates': TEMPLATES,
    'repeated-linear': REPEATED,
    'repeated-swish': dict(REPEATED, transform=dict(type='swish')),
    'repeated-bireal': dict(REPEATED, transform=dict(type='bireal')),
    'repeated-static-drop': dict(REPEATED, transform=dict(type='static_drop')),
    'repeated-random-bireal': dict(REPEATED, transform=dict(type='random_bireal')),
    'repeated-between-layers': dict(type='RepeatedKernel', mode='inter', transform=dict(type='swish')),
    'relaxed': dict(type='RelaxedTie', rank=2),
}
LOOPS = dict(type='LoopedTemplates', kernels=[0, 1, 0], num_templates=2)
#: And those that are only for groups of three layers.
KINDS = {**BANKS, 'loops': LOOPS, 'loops-of-one-template': dict(LOOPS, num_templates=1)}
LAYERS = {
    'conv': lambda: nn.Conv2d(16, 16, 3, padding=1, bias=False),
    'strided conv': lambda: Conv2d(16, 16, 3, padding=2, dilation=2),
    'linear': lambda: nn.Linear(16, 16),
    'linear without bias': lambda: Linear(16, 16, bias=False),
}


def backbone(
    depth: int = 50, groups: Sequence[str] = ('conv2',), bank: dict | None = TIED, type: str = 'ResNet', **kwargs
) -> nn.Module:
    """A narrow backbone of the current default scope; plain where ``bank`` is None."""
    if 'Res' in type:
        kwargs = {**dict(depth=depth, base_channels=16, stem_channels=16), **kwargs}
    if bank is not None:
        kwargs['sharing'], type = dict(groups=groups, bank=bank), f'Shared{type}'
    return MODELS.build(dict(type=type, **kwargs))


def stage_banks(model: nn.Module) -> dict[str, list[Bank]]:
    """The banks of each stage, in the order of their groups; of groups named outright by the group."""
    stages = {}
    for name, bank in named_banks(model).items():
        stage = stage_of(name, bank)
        stages.setdefault(name if stage is None else stage, []).append(bank)
    return stages


def randomise_norms(model: nn.Module) -> nn.Module:
    """Give every batch norm a weight, a bias and statistics of its own: residual branches count, biases show."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def evaluating(model: nn.Module) -> nn.Module:
    """The model in eval mode (mmdet's backbones return None from ``eval``)."""
    model.eval()
    return model


def image(size: int = 64, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, size, size)


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


@contextmanager
def refused(network: nn.Module, words: str) -> Iterator[None]:
    """Check that what is done in this context is refused with these words, and that the network is left as it was."""
    modules, state, hooks = [*network.modules()], state_of(network), _hooks_of(network)
    with pytest.raises(SharingError, match=words):
        yield
    assert all(old is new for old, new in zip_longest(modules, network.modules())) and _hooks_of(network) == hooks
    assert state.keys() == network.state_dict().keys()
    assert all(torch.equal(state[key], tensor) for key, tensor in network.state_dict().items())


def _hooks_of(network: nn.Module) -> list[list[int]]:
    kinds = ('_forward_pre_hooks', '_forward_hooks', '_load_state_dict_pre_hooks')
    return [list(getattr(module, kind)) for module in network.modules() for kind in kinds]


def refuses_to_share(network: nn.Module, words: str, **arguments) -> None:
    with refused(network, words):
        share_layers(network, **arguments)


def refuses(model: nn.Module, state: dict, *words: str) -> None:
    """Check that a model refuses a state dict, whether torch or mmengine loads it, and is left as it was."""
    before = state_of(model)
    for load in (nn.Module.load_state_dict, load_state_dict):
        with pytest.raises(SharingError) as error:
            load(model, state, strict=False)
        for word in (*words, 'Nothing of it was loaded'):
            assert word in str(error.value)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


def energy(weight: torch.Tensor, moment: torch.Tensor) -> float:
    """tr(W S W'): the energy of a layer's outputs, by the second moments of its inputs."""
    rows = weight.detach().double().reshape(len(moment) if moment.dim() == 3 else 1, -1, moment.shape[-1])
    return (rows @ moment.double() * rows).sum().item()


class Classifier(BaseModel):
    """A backbone and a linear layer, in the form that mmengine trains."""

    def __init__(self, network: nn.Module, width: int = 32):
        super().__init__()
        self.backbone = network
        self.fc = nn.Linear(width, 3)

    def forward(self, inputs, labels=None, mode='tensor'):
        logits = self.fc(self.backbone(inputs)[-1].mean((2, 3)))
        return dict(loss=nn.functional.cross_entropy(logits, labels)) if mode == 'loss' else logits


def classifier_config(network: dict, width: int, classes: int = 10, **kwargs) -> Config:
    """The config of a classifier of mmpretrain on a backbone whose last maps have so many channels."""
    head = dict(type='LinearClsHead', num_classes=classes, in_channels=width)
    neck = dict(type='GlobalAveragePooling')
    model = dict(type='ImageClassifier', backbone=network, neck=neck, head=head, **kwargs)
    return Config(dict(model=model, default_scope='mmpretrain'))


def loader_options(*splits: str) -> list[str]:
    """Options for loaders without processes of their own."""
    options = 'num_workers=0', 'persistent_workers=False'
    return [f'{split}_dataloader.{option}' for split in splits for option in options]


def call(tool: str, *arguments) -> SimpleNamespace:
    """Call a tool of the folder tools/ within this process; returns its returncode, stdout and stderr."""
    out, err, code = StringIO(), StringIO(), 0
    with patch.object(sys, 'argv', [tool, *map(str, arguments)]), redirect_stdout(out), redirect_stderr(err):
        try:
            runpy.run_path(str(ROOT / 'tools' / tool), run_name='__main__')
        except SystemExit as stop:
            code = int(bool(stop.code))
            print(stop.code if isinstance(stop.code, str) else '', file=err)
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


@cache
def options_of(tool: str | Path) -> set[str]:
    """The options in the help of a tool of the folder tools/."""
    return {*re.findall(r'--[\w-]+', call(str(tool), '--help').stdout), '--traceback'}


def unknown_options(command: str) -> set[str]:
    """The options of a command of ``mmshared`` that it does not have."""
    program, name, *words = shlex.split(command)
    (tool,) = (ROOT / 'tools').rglob(f'{name}.py')
    assert program == 'mmshared'
    return {word for word in words if word.startswith('--')} - options_of(tool)


@cache
def forks() -> ForkServerContext:
    """Processes that are forked from one that has imported both libraries, and has done nothing else: a new process
    takes seven seconds for that."""
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['preloaded'])
    with patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):
        multiprocessing.forkserver.ensure_running()
    return context


def in_two_processes(worker: Callable, *arguments) -> None:
    """Call a function with the rank and arguments in each of two processes."""
    forks()
    torch.multiprocessing.start_processes(worker, arguments, nprocs=2, start_method='forkserver')


def join(rank: int, folder: str | Path) -> None:
    """Join the group of :func:`in_two_processes`, which meet in a folder."""
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/meet', rank=rank, world_size=2)


def leave() -> None:
    """End a process whose results are written: gloo's threads may abort one that ends as others do."""
    dist.destroy_process_group()
    os._exit(0)


def free_port() -> str:
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return str(free.getsockname()[1])


class Forked:
    """A tool in a process and a session of its own.

    Args:
        folder (Path): Where its output goes: each of its processes needs one of its own.
        tool (str): The tool, a file of the folder tools/.
        environment (dict): Environment variables to add to ours.
    """

    def __init__(self, folder: Path, tool: str, *arguments, environment: dict[str, str] = {}):
        folder.mkdir(parents=True, exist_ok=True)
        self.files = [folder / name for name in ('stdout.txt', 'stderr.txt')]
        command = [str(ROOT / 'tools' / tool), *map(str, arguments)]
        self.process = forks().Process(target=_run, args=(command, self.files, {**os.environ, **environment}))
        self.process.start()
        atexit.register(self.process.kill)  # where a test has failed
        self.pid = self.process.pid

    def stops_at(self, pattern: str) -> bool:
        """Wait until the output has a pattern. False if the tool ended before."""
        while alive := self.process.is_alive():
            if re.search(pattern, self.text(0)):
                return True
            time.sleep(0.02)
        return alive

    def text(self, stream: int) -> str:
        return self.files[stream].read_text() if self.files[stream].exists() else ''

    def result(self) -> SimpleNamespace:
        """Its returncode, stdout and stderr, when it has ended."""
        self.process.join()
        return SimpleNamespace(returncode=self.process.exitcode, stdout=self.text(0), stderr=self.text(1))


def in_two_ranks(folder: Path, tool: str, *arguments) -> list[SimpleNamespace]:
    """The results of a tool that PyTorch's launcher runs in two processes."""
    meet = dict(WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=free_port())
    launched = [*arguments, '--launcher', 'pytorch']
    ranks = [dict(meet, RANK=rank, LOCAL_RANK=rank) for rank in '01']
    job = [Forked(folder / rank['RANK'], tool, *launched, environment=rank) for rank in ranks]
    return [each.result() for each in job]


def _run(command: list[str], files: list[Path], environment: dict[str, str]) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    for number, (stream, path) in enumerate(zip((sys.stdout, sys.stderr), files), 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        stream.reconfigure(line_buffering=True)
    torch.set_num_threads(1)
    sys.argv = command
    runpy.run_path(command[0], run_name='__main__')


def small(bank: dict | None = BASIS, **kwargs) -> nn.Module:
    """A backbone of two stages, for :class:`Classifier`."""
    return backbone(depth=18, groups=['conv[12]'], bank=bank, **TWO_STAGES, **kwargs)


def train(
    network: nn.Module, work_dir: Path, hooks: Sequence[Hook], iterations: int = 2, batch_size: int = 2, **kwargs
):
    """Train a classifier on a backbone by a runner. Returns it, and what each iteration gave to the log."""
    torch.manual_seed(0)
    data = [dict(inputs=torch.randn(3, 32, 32), labels=i % 3) for i in range(4)]
    model = Classifier(network)
    seen = []

    class Watch(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            seen.append(outputs)

    runner = Runner(
        model,
        str(work_dir),
        train_dataloader=DataLoader(data, batch_size),
        train_cfg=dict(by_epoch=False, max_iters=iterations),
        randomness=dict(seed=0),
        custom_hooks=[*hooks, Watch()],
        default_scope='mmpretrain',
        experiment_name=f'{work_dir.name}-{id(model)}',
        **{**dict(optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1))), **kwargs},
    )
    runner.train()
    return model, seen


def chain(make, count=4):
    """Blocks of one layer each."""
    return nn.Sequential(*[nn.Sequential(make(), nn.ReLU()) for _ in range(count)])
