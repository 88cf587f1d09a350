"""Time and memory of networks side by side in one process."""

import ast
import io
import statistics
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary
from tqdm import tqdm

from ..engine.build import feature_maps, inner
from ..hooks import orthogonality_loss, orthogonality_spaces
from ..sharing import SharingError

Work = Callable[[], object]


class Timing(NamedTuple):
    """How long something took, and in proportion to the first of its kind.

    Attributes:
        seconds (float): Median over the rounds.
        ratio (float): Median of the ratios to the first work of the same round.
        low (float): Their first quartile.
        high (float): Their third quartile.
    """

    seconds: float
    ratio: float
    low: float
    high: float


def time_in_turn(works: dict[str, Work], rounds: int, device: torch.device) -> dict[str, Timing]:
    """Time several works, each once a round, so that what slows the machine down slows all of them down.

    Args:
        works (dict): What to time, by name; the others are compared to the first.
        rounds (int): Number of rounds, after two to warm up.
        device (torch.device): Where they run: waited for where it is a GPU.
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
    """Counts the bytes of the tensors that are alive, each storage once. (PyTorch's own MemTracker hooks the gradients
    of all parameters, and fails on frozen ones.)

    Attributes:
        peak (int): The most that there have been at once.
    """

    def __init__(self):
        super().__init__()
        self.known = WeakIdKeyDictionary()
        self.now = self.peak = 0

    def add(self, *values: Any) -> None:
        """Count the tensors in any values from now on."""
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


def peak_bytes(model: nn.Module, step: 'Step') -> int:
    """The most memory that the tensors of a training step take at once: parameters, gradients, the optimizer's state
    and maps. What an operator takes while it works is counted only on a GPU.

    Args:
        model (nn.Module): The model.
        step (Step): A step of it.
    """
    device = next(model.parameters()).device
    step()  # the optimizer's state is there from now on
    if device.type == 'cuda':
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
    """Build a network by a function of somebody else's file.

    Args:
        file (str): A file of Python in a checkout of its repository.
        call (str): The call, with numbers and strings as arguments: ``ResNet34_DoubleShared(48, 1)``.

    Raises:
        SharingError: If the file cannot be imported, or the call is none of its functions.
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
            f'--reference {file} {call!r} builds no network: {error}. Give a file of Python and a call '
            'of one of its functions.'
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
        loss_weight (float): Weight of the orthogonality loss; without one it is not computed.
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
    """A forward pass without gradients of a network in eval mode, of a detector's backbone."""
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
    """Rows of a table from numbers of bytes, in proportion to the first."""
    first = next(iter(sizes.values()))
    return [dict(work=work, network=name, bytes=size, ratio=size / first) for name, size in sizes.items()]
