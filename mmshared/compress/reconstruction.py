"""Reconstruction: each block of a shared network learns to give what the plain one gives, without labels."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from mmengine.dist import all_reduce, broadcast, get_world_size
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from tqdm import tqdm

from ..engine.build import evaluating, tensors_in
from ..sharing import Bank, SharedLayer
from ..sharing.layers import stages_of
from ..sharing.least_squares import total
from .calibration import Batches, predict

# Adam's learning rate, which falls to 0 like a cosine.
_LR = 2e-3


class Reconstruction(NamedTuple):
    """A block that was reconstructed.

    Attributes:
        block (str): Its name.
        before (float): The relative error of its outputs before, ``|plain - shared| / |plain|``.
        after (float): The same afterwards.
    """

    block: str
    before: float
    after: float


class _Call(NamedTuple):
    """One call of a block: its arguments, and what the plain block gives."""

    args: tuple
    kwargs: dict
    target: Any


def reconstruct(
    model: nn.Module, plain: nn.Module, batches: Batches, steps: int, limit: float = 4.0
) -> list[Reconstruction]:
    """Let each block of a shared model learn the outputs of the plain one's block, in the order of the model.

    A block gets the inputs that it has in the shared model, behind the blocks that have learned already, so that it
    also learns to correct their errors. (Where these are no longer the plain one's inputs, as in a head on other
    proposals, it learns what the plain block makes of them.) What learns is what its layers do not share
    (coefficients, own filters, scales, low-rank weights), its norms and its biases. The batch norms keep their
    statistics: take them again before, not after (:func:`recalibrate_norms`). In a distributed run the first process
    decides.

    Args:
        model (nn.Module): The shared model, fitted. It is changed in place.
        plain (nn.Module): The plain model.
        batches (Batches): Batches of images; a step uses the inputs that one of them brings to the block.
        steps (int): Number of steps of Adam for each block.
        limit (float): The most memory in GB for the inputs and outputs of a block. Further batches are left out.

    Returns:
        list[Reconstruction]: The blocks. Shared layers that are in no stage are named in the log.
    """
    found = []
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.requires_grad_(False)
    try:
        with evaluating(model), evaluating(plain):
            for stage, blocks in _blocks(model, plain).items():
                bar = tqdm(total=len(blocks), desc=f'blocks of {stage}', unit='block', leave=False, disable=None)
                with bar:
                    for name, calls in _calls(model, plain, stage, blocks, batches, limit):
                        found.append(Reconstruction(name, *_learn(model.get_submodule(name), calls, steps)))
                        bar.update()
    finally:
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
    return found


def _blocks(model: nn.Module, plain: nn.Module) -> dict[str, list[str]]:
    """The names of the blocks that share, by the names of their stages in the plain model."""
    stages = stages_of(plain)
    names = {layer: name for name, layer in model.named_modules() if isinstance(layer, SharedLayer)}
    found: dict[str, list[str]] = {}
    for layer, name in names.items():
        around = [stage for stage in stages if _block(stage, name)]
        peers = [names[each] for each in layer.bank.layers if each in names]
        # The innermost stage in which the group is in several blocks.
        several = (s for s in around if len({_block(s, peer) for peer in peers} - {''}) > 1)
        stage = next(several, around[0] if around else None)
        if stage is None:
            print_log(f'{name} is in no block of a stage, and is not reconstructed.', logger='current')
        elif _block(stage, name) not in found.setdefault(stage, []):
            found[stage].append(_block(stage, name))
    return found


def _block(stage: str, name: str) -> str:
    """The full name of the block of a stage that a layer is in; empty if it is in none."""
    inside = f'{stage}.' if stage else ''
    return inside + name[len(inside) :].partition('.')[0] if name.startswith(inside) else ''


def _calls(
    model: nn.Module, plain: nn.Module, stage: str, blocks: Sequence[str], batches: Batches, limit: float
) -> Iterator[tuple[str, list[_Call]]]:
    """The blocks of a stage with their calls, which depend on what the blocks before have learned by then.

    The blocks of an ``nn.Sequential`` get what the one before gives, if that is all they get. For others the models
    run again.
    """
    chained = type(model.get_submodule(stage)).forward is nn.Sequential.forward
    calls: list[_Call] = []
    before: nn.Module | None = None
    for child, _ in model.get_submodule(stage).named_children():
        name = f'{stage}.{child}'.lstrip('.')
        block, twin = model.get_submodule(name), plain.get_submodule(name)
        if chained and calls and before is not None:
            with torch.no_grad():
                calls = [_Call((before(*each.args),), {}, twin(each.target)) for each in calls]
        if name in blocks:
            if not (chained and calls):
                calls = _record(model, plain, name, batches, limit)
                chained = chained and all(len(each.args) == 1 and not each.kwargs for each in calls)
            there = torch.tensor(len(calls))
            all_reduce(there, 'min')
            if there:
                yield name, calls
            else:
                print_log(f'{name} got no inputs, and is not reconstructed.', logger='current')
        if name == blocks[-1]:
            return
        before = block


class _Enough(Exception):
    """Ends a forward pass that has brought all it was run for."""


@torch.no_grad()
def _record(model: nn.Module, plain: nn.Module, name: str, batches: Batches, limit: float) -> list[_Call]:
    """The calls of a block on batches, of which as many are run as the limit, in GB, allows."""
    calls: list[_Call] = []
    times = size = 0  # calls in a forward pass, bytes of all
    for batch in batches:
        inputs = _watch(model, name, batch, times, outputs=False)
        targets = _watch(plain, name, batch, times, outputs=True)
        times = min(len(inputs), len(targets))
        new = [_Call(args, kwargs, target) for (args, kwargs), target in zip(inputs, targets)]
        more = sum(each.nbytes for each in tensors_in([tuple(call) for call in new]))
        calls, size = calls + new, size + more
        if size + more > limit * 1e9:
            break
    return _paired(plain.get_submodule(name), calls) if calls else []


@torch.no_grad()
def _paired(twin: nn.Module, calls: list[_Call]) -> list[_Call]:
    """Calls whose targets suit their inputs: the plain network's, if the plain block makes about the same of these
    inputs as of its own, and else what it makes of these."""
    local = [each._replace(target=_run(twin, each)) for each in calls]
    away = total(_distance(own.target, each.target) for own, each in zip(local, calls))
    return calls if away < total(_energy(each.target) for each in calls) / 2 else local


def _watch(model: nn.Module, name: str, batch: Any, times: int, outputs: bool) -> list[Any]:
    """What a module gets, or gives, in each call of a forward pass, which ends after so many if not 0."""
    found: list[Any] = []

    def add(module: nn.Module, args: tuple, kwargs: dict, *output: Any) -> None:
        values = output[0] if outputs else (args, kwargs)
        found.append(tree_map_only(Tensor, Tensor.clone, values))  # others may work on them in place
        if len(found) == times:
            raise _Enough

    block = model.get_submodule(name)
    register = block.register_forward_hook if outputs else block.register_forward_pre_hook
    handle = register(add, with_kwargs=True)
    try:
        predict(model, batch)
    except _Enough:
        pass
    finally:
        handle.remove()
    return found


def _learn(block: nn.Module, calls: list[_Call], steps: int) -> tuple[float, float]:
    """Fit a block to its calls. Returns the relative error before and after."""
    before = _error(block, calls)
    learned = list(_own_parameters(block))
    if not learned:
        return before, before
    start = [parameter.detach().clone() for parameter in learned]
    scale = total(_energy(call.target) for call in calls).clamp(min=1e-30) / len(calls)
    for parameter in learned:
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(learned, _LR)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order = random.Random(0)
    for _ in range(steps):
        optimizer.zero_grad()
        call = order.choice(calls)
        (_distance(_run(block, call), call.target) / scale).backward()
        optimizer.step()
        scheduler.step()
    for parameter in learned:
        parameter.requires_grad_(False)
    after = _error(block, calls)
    if not after < before:
        after = before
        for parameter, values in zip(learned, start):
            parameter.data.copy_(values)
    if get_world_size() > 1:
        for parameter in learned:
            broadcast(parameter.data)
    return before, after


def _own_parameters(block: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters of a block that are its layers' own and not shared, its norms and its biases."""
    for module in block.modules():
        for parameter in module.parameters(recurse=False):
            if isinstance(module, SharedLayer) or parameter.dim() < 2 and not isinstance(module, Bank):
                yield parameter


def _run(block: nn.Module, call: _Call) -> Any:
    args, kwargs = tree_map_only(Tensor, Tensor.clone, (call.args, call.kwargs))  # it may work on them in place
    return block(*args, **kwargs)


def _tensors(values: Any) -> list[Tensor]:
    return [each for each in tensors_in(values) if each.is_floating_point()]


def _energy(values: Any) -> Tensor:
    return total(each.square().sum() for each in _tensors(values))


def _distance(found: Any, wanted: Any) -> Tensor:
    """The squared distance of two outputs, infinite if they differ in shape."""
    pairs = list(zip(_tensors(found), _tensors(wanted)))
    if any(a.shape != b.shape for a, b in pairs):
        return torch.tensor(math.inf)
    return _energy([a - b for a, b in pairs])


@torch.no_grad()
def _error(block: nn.Module, calls: list[_Call]) -> float:
    """The relative error of a block's outputs."""
    distance = total(_distance(_run(block, call), call.target) for call in calls)
    return (distance / total(_energy(call.target) for call in calls).clamp(min=1e-30)).sqrt().item()
