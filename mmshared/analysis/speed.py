"""Measures time and memory of networks side by side in one process."""

from __future__ import annotations

import ast
import copy
import io
import statistics
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from mmengine.config import Config
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary
from tqdm import tqdm

from ..engine.build import build_model, build_plain, feature_maps, inner
from ..hooks import orthogonality_loss, orthogonality_spaces
from ..sharing import SharingError, banks, deploy

Work = Callable[[], object]


class Timing(NamedTuple):
    """How long a work took, also relative to the first work.

    Attributes:
        seconds (float): Median over the rounds.
        ratio (float): Median of the ratios to the first work of the same round.
        low (float): First quartile of the ratios.
        high (float): Third quartile of the ratios.
    """

    seconds: float
    ratio: float
    low: float
    high: float


def time_in_turn(works: dict[str, Work], rounds: int, device: torch.device) -> dict[str, Timing]:
    """Time several works, each once per round, so that a slowdown of the machine affects all of them.

    Args:
        works (dict): The works by name; the others are compared to the first.
        rounds (int): Number of rounds, after two warm-up rounds.
        device (torch.device): Where they run; a GPU is synchronised.
    """

    def once(work: Work) -> float:
        start = time.perf_counter()
        work()
        if device.type == 'cuda':
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    turns = tqdm(range(rounds + 2), unit='round', disable=None, leave=False)
    seconds = [{name: once(work) for name, work in works.items()} for _ in turns][2:]
    first = next(iter(works))
    timings = {}
    for name in works:
        ratios = [each[name] / each[first] for each in seconds]
        low, ratio, high = statistics.quantiles(ratios, n=4, method='inclusive') if rounds > 1 else ratios * 3
        timings[name] = Timing(statistics.median(each[name] for each in seconds), ratio, low, high)
    return timings


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of live tensors, each storage once. (PyTorch's own MemTracker hooks the gradients of all
    parameters, and fails on frozen ones.)

    Attributes:
        peak (int): The most bytes at one time.
    """

    def __init__(self):
        super().__init__()
        self.known = WeakIdKeyDictionary()
        self.now = self.peak = 0

    def add(self, *values: Any) -> None:
        """Start counting the tensors in any values."""
        for tensor in tree_leaves(values):
            if isinstance(tensor, Tensor) and tensor.untyped_storage() not in self.known:
                storage = tensor.untyped_storage()
                self.known[storage] = storage.nbytes()
                self.now += storage.nbytes()
                weakref.finalize(storage, self._free, storage.nbytes())
        self.peak = max(self.peak, self.now)

    def _free(self, size: int) -> None:
        self.now -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.add(out)
        return out


def peak_bytes(model: nn.Module, step: Step) -> int:
    """The peak memory of the tensors in a training step: parameters, gradients, the optimizer's state and maps. The
    temporary memory of an operator is counted only on a GPU.

    Args:
        model (nn.Module): The model.
        step (Step): A training step of the model.
    """
    device = next(model.parameters()).device
    step()  # creates the optimizer's state
    if device.type == 'cuda':
        step.optimizer.zero_grad()  # its gradients count, as those of the next step
        own = sum(
            leaf.untyped_storage().nbytes()
            for leaf in tree_leaves([model.state_dict(), step.optimizer.state])
            if isinstance(leaf, Tensor)
        )
        others = torch.cuda.memory_allocated(device) - own
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return torch.cuda.max_memory_allocated(device) - others
    with LiveBytes() as memory:
        memory.add(model.state_dict(keep_vars=True), step.optimizer.state)
        step()
    return memory.peak


def load_reference(file: str, call: str) -> nn.Module:
    """Build a network with a function from another repository.

    Args:
        file (str): A Python file in a checkout of the repository.
        call (str): The call, with numbers and strings as arguments: ``ResNet34_DoubleShared(48, 1)``.

    Raises:
        SharingError: If the file cannot be imported, or if the call is not of one of its functions.
    """
    try:
        tree = ast.parse(call, mode='eval').body
        args = [ast.literal_eval(arg) for arg in tree.args]
        kwargs = {keyword.arg: ast.literal_eval(keyword.value) for keyword in tree.keywords}
        spec = spec_from_file_location('reference', file)
        module = module_from_spec(spec)
        with patch.object(sys, 'path', [str(Path(file).parent), *sys.path]):
            spec.loader.exec_module(module)
        return getattr(module, tree.func.id)(*args, **kwargs)
    except Exception as error:  # whatever their code raises
        raise SharingError(
            f'{call!r} of {file} builds no network: {error}. Give a file of Python and a call of one of its functions.'
        ) from None


def checkpoint_bytes(model: nn.Module) -> int:
    """The size of the file of a model's state dict."""
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return file.tell()


class Step:
    """A training step of a classifier, or of a detector's backbone and neck: forward pass, backward pass and a step of
    SGD with momentum.

    Args:
        model (nn.Module): The model.
        images (Tensor): A batch, (N, 3, H, W).
        loss_weight (float): Weight of the orthogonality loss, which is not computed for 0.
        autocast (dict): Arguments of ``torch.autocast``.
    """

    def __init__(
        self, model: nn.Module, images: Tensor, loss_weight: float = 0.0, autocast: dict = dict(enabled=False)
    ):
        self.model, self.images, self.autocast = model, images, autocast
        self.loss_weight = loss_weight
        self.spaces = orthogonality_spaces(model) if loss_weight else []
        self.optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def __call__(self) -> None:
        self.model.train()
        self.optimizer.zero_grad()
        with torch.autocast(self.images.device.type, **self.autocast):
            loss = sum(each.float().square().mean() for each in feature_maps(self.model, self.images))
        if self.spaces:
            loss = loss + self.loss_weight * orthogonality_loss(self.spaces)
        loss.backward()
        self.optimizer.step()


def inference_of(model: nn.Module, images: Tensor, autocast: dict = dict(enabled=False)) -> Work:
    """A forward pass in eval mode without gradients; only the backbone of a detector."""
    network = inner(model)

    def forward() -> Sequence[Tensor]:
        network.eval()
        with torch.inference_mode(), torch.autocast(images.device.type, **autocast):
            return network(images)

    return forward


def rows_of(work: str, timings: dict[str, Timing]) -> list[dict]:
    """Rows of a table from timings."""
    return [dict(work=work, network=name, **timing._asdict()) for name, timing in timings.items()]


def rows_of_bytes(work: str, sizes: dict[str, int]) -> list[dict]:
    """Rows of a table from numbers of bytes, with their ratios to the first."""
    first = next(iter(sizes.values()))
    return [dict(work=work, network=name, bytes=size, ratio=size / first) for name, size in sizes.items()]


@dataclass
class Setting:
    """How networks are timed.

    Attributes:
        shape (tuple[int, int, int]): Channels, height and width of the images.
        rounds (int): Number of rounds.
        device (torch.device): Where they run.
        autocast (str, optional): The type of mixed precision, ``'bfloat16'`` or ``'float16'``.
        channels_last (bool): Whether to use the channels-last memory format.
        compile (bool): Whether to compile all networks.
        reference (tuple[str, str], optional): A file and a call for :func:`load_reference`, another network to time.
    """

    shape: tuple[int, int, int]
    rounds: int
    device: torch.device
    autocast: str | None = None
    channels_last: bool = False
    compile: bool = False
    reference: tuple[str, str] | None = None


class Benchmark:
    """The networks of a config and their measurements.

    Args:
        cfg (Config): The config of a shared model.
        setting (Setting): How they are timed.

    Raises:
        SharingError: If the model shares nothing.
    """

    def __init__(self, cfg: Config, setting: Setting):
        self.setting = setting
        self.networks = {'plain': build_plain(cfg), 'shared': build_model(cfg)}
        if not banks(self.networks['shared']):
            raise SharingError('The model of this config shares nothing: there is nothing to compare.')
        if setting.reference:
            self.networks['reference'] = load_reference(*setting.reference)
        self.layout = torch.channels_last if setting.channels_last else torch.contiguous_format
        for network in self.networks.values():
            network.to(setting.device, memory_format=self.layout)
        dtype = getattr(torch, setting.autocast or 'bfloat16')
        self.autocast = dict(enabled=setting.autocast is not None, dtype=dtype)

    def images(self, number: int) -> Tensor:
        images = torch.randn(number, *self.setting.shape, device=self.setting.device)
        return images.to(memory_format=self.layout)

    def compile(self, networks: dict[str, nn.Module]) -> None:
        """Compile networks if the setting says so."""
        if self.setting.compile:
            for network in networks.values():
                inner(network).compile()

    def rows(self, work: str, works: dict[str, Work]) -> list[dict]:
        return rows_of(work, time_in_turn(works, self.setting.rounds, self.setting.device))

    def training(self, batch: int, loss: bool = False) -> list[dict]:
        """Time a training step, with ``loss`` also one with the orthogonality loss."""
        images, spaces = self.images(batch), orthogonality_spaces(self.networks['shared'])
        works: dict[str, Work] = {
            name: Step(network, images, autocast=self.autocast) for name, network in self.networks.items()
        }
        if loss and any(bank.basis().requires_grad for space in spaces for bank in space.banks):
            works['shared, with the loss'] = Step(self.networks['shared'], images, 10.0, self.autocast)
            works['the loss alone'] = lambda: orthogonality_loss(spaces).backward()
        return self.rows(f'training step, batch {batch}', works)

    def inference(self, batch: int) -> list[dict]:
        """Time inference of the networks in their training form."""
        images = self.images(batch)
        works = {name: inference_of(network, images, self.autocast) for name, network in self.networks.items()}
        return self.rows(f'inference as trained, batch {batch}', works)

    def deployed(self, batch: int) -> list[dict]:
        """Time inference of the deployed networks."""
        images = self.images(batch)
        with torch.autocast(self.setting.device.type, **self.autocast):
            networks = {name: deploy(inner(network), images) for name, network in self.networks.items()}
        self.compile(networks)
        works = {name: inference_of(network, images, self.autocast) for name, network in networks.items()}
        return self.rows(f'inference as shipped, batch {batch}', works)

    def memory(self, batch: int) -> list[dict]:
        """Measure the peak memory of a training step."""
        sizes = {}
        for name, network in self.networks.items():
            network = copy.deepcopy(network)
            sizes[name] = peak_bytes(network, Step(network, self.images(batch), autocast=self.autocast))
        return rows_of_bytes(f'memory of a training step, batch {batch}', sizes)

    def weights(self) -> list[dict]:
        """Measure the size of the weights on disk, and of the gradients that processes exchange in a step."""
        sizes = {name: checkpoint_bytes(network) for name, network in self.networks.items()}
        gradients = {
            name: sum(each.nbytes for each in network.parameters() if each.requires_grad)
            for name, network in self.networks.items()
        }
        return [*rows_of_bytes('weights on disk', sizes), *rows_of_bytes('gradients to exchange', gradients)]


def benchmark(cfg: Config, setting: Setting, batch: int, inference_batches: Sequence[int]) -> list[dict]:
    """Measure time, memory and size of a config's networks.

    Args:
        cfg (Config): The config.
        setting (Setting): How they are timed.
        batch (int): Batch size of a training step.
        inference_batches (Sequence[int]): Batch sizes of inference.

    Returns:
        list[dict]: A row for each work and network.
    """
    found = Benchmark(cfg, setting)
    sizes = [*found.memory(batch), *found.weights()]  # before anything is compiled
    found.compile(found.networks)
    rows = [*found.training(batch, loss=True), *sizes]
    for number in inference_batches:
        rows += [*found.inference(number), *found.deployed(number)]
    return rows


def growth(
    cfg: Config, setting: Setting, batch: int, batches: Sequence[int], depths: Sequence[int], ranks: Sequence[int]
) -> dict[str, list[dict]]:
    """Measure how time and memory grow.

    Args:
        cfg (Config): The config.
        setting (Setting): How its networks are timed.
        batch (int): Batch size of training and inference, except when the batch size itself grows.
        batches (Sequence[int]): Batch sizes.
        depths (Sequence[int]): Depths of the backbone.
        ranks (Sequence[int]): Shared ranks of its bank.

    Returns:
        dict[str, list[dict]]: The rows for each quantity by name, with its ``value``.

    Raises:
        SharingError: If the config cannot build a network of such a depth or rank.
    """
    variants = [
        *[('depth', depth, {'model.backbone.depth': depth}, batch) for depth in depths],
        *[('shared rank', rank, {'model.backbone.sharing.bank.shared_rank': rank}, batch) for rank in ranks],
        *[('batch', number, {}, number) for number in batches],
    ]
    found: dict[str, list[dict]] = {}
    for quantity, value, options, number in variants:
        variant = copy.deepcopy(cfg)
        try:
            variant.merge_from_dict(options)
            each = Benchmark(variant, setting)
        except (KeyError, TypeError) as error:
            raise SharingError(f'The config builds no network of {quantity} {value}: {error}.') from None
        rows = each.memory(number)  # before anything is compiled
        each.compile(each.networks)
        rows += [*each.training(number), *each.deployed(number)]
        # Drop the batch size from the name, so that works have the same name at each batch size.
        found.setdefault(quantity, []).extend(
            dict(row, value=value, work=row['work'].rpartition(',')[0]) for row in rows
        )
    return found
