"""Time and memory of networks side by side in one process."""
import copy
import io
import statistics
import time
from typing import Callable, Dict, List, NamedTuple, Sequence

import torch
from mmcv.cnn import fuse_conv_bn
from mmdet.models.detectors import BaseDetector
from torch import Tensor, nn
from tqdm import tqdm

from ..hooks import orthogonality_loss, orthogonality_spaces
from ..sharing import fold_convs
from .export import feature_maps

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


def time_in_turn(works: Dict[str, Work], rounds: int, device: torch.device) -> Dict[str, Timing]:
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
        low, ratio, high = statistics.quantiles(ratios, n=4) if rounds > 1 else ratios * 3
        timings[name] = Timing(statistics.median(each[name] for each in seconds), ratio, low, high)
    return timings


def kept_bytes(forward: Callable[[], Tensor]) -> int:
    """The bytes of all tensors that a forward pass keeps for the backward pass, parameters left out, each once."""
    kept: Dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not (tensor.is_leaf and tensor.requires_grad):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        alive = forward()  # nothing is freed, so that no two tensors have one address
        return sum(kept.values()) if alive is not None else 0


def deployed(model: nn.Module) -> nn.Module:
    """A copy of a network as it is shipped: shared convs folded, batch norms fused into the convs before them."""
    network = copy.deepcopy(model)
    network.eval()
    return fuse_conv_bn(fold_convs(network))


def checkpoint_bytes(model: nn.Module) -> int:
    """The size of the file of a model's state dict."""
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return file.tell()


def step_of(model: nn.Module, pictures: Tensor, loss_weight: float = 0., autocast: Dict = dict(enabled=False)) -> Work:
    """A training step of a classifier, or of a detector's backbone and neck, with or without the orthogonality loss.

    Returns:
        Callable: Does a forward pass, a backward pass and a step of SGD with momentum.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    forward = loss_of(model, pictures, loss_weight, autocast)

    def step() -> None:
        optimizer.zero_grad()
        forward().backward()
        optimizer.step()

    return step


def loss_of(model: nn.Module, pictures: Tensor, loss_weight: float = 0., autocast: Dict = dict(enabled=False)
            ) -> Callable[[], Tensor]:
    """The forward pass of :func:`step_of`."""
    means = orthogonality_spaces(model) if loss_weight else []
    model.train()

    def forward() -> Tensor:
        with torch.autocast(pictures.device.type, **autocast):
            loss = sum(each.float().square().mean() for each in feature_maps(model, pictures))
        return loss + loss_weight * orthogonality_loss(means) if means else loss

    return forward


def inference_of(model: nn.Module, pictures: Tensor, autocast: Dict = dict(enabled=False)) -> Work:
    """A forward pass without gradients of a network in eval mode."""
    network = model.backbone if isinstance(model, BaseDetector) else model

    def forward() -> Sequence[Tensor]:
        with torch.inference_mode(), torch.autocast(pictures.device.type, **autocast):
            return network(pictures)

    return forward


def ratio_rows(kind: str, timings: Dict[str, Timing]) -> List[Dict]:
    """Rows of a table from timings."""
    return [dict(work=kind, network=name, **timing._asdict()) for name, timing in timings.items()]
