"""Moves the biases that folding adds to convs into the batch norms behind them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves


def move_biases(network: nn.Module, layers: list[Any]) -> None:
    """Move the biases of convs into the norms that see them, within the smallest modules where this is possible."""
    parents: dict[nn.Module, set[nn.Module]] = {}
    for parent in network.modules():
        for child in parent.children():
            parents.setdefault(child, set()).add(parent)
    left = [layer for layer in layers if not layer.weight.is_meta]
    for module in reversed(list(network.modules())):  # children before their parents
        there = set(module.modules())
        if not any(layer in there and layer is not module for layer in left):
            continue
        # What modules elsewhere use too has to stay as it is.
        used = {each for child in there - {module} if not parents[child] <= there for each in child.modules()}
        mine = [layer for layer in left if layer in there - used - {module}]
        if mine:
            trial = _Trial(module, used)
            moved = mine if trial.move(mine) else [each for each in mine if trial.move([each])]
            left = [layer for layer in left if layer not in moved]


class _Trial:
    """A copy of a module in float64, to try on whether biases can move.

    A bias reaches a norm as a constant per channel, whatever the path: the running mean changes by the difference
    between the norm's inputs without and with the bias.

    Args:
        module (nn.Module): The module.
        used (set[nn.Module]): The modules in it that must not change.
    """

    def __init__(self, module: nn.Module, used: set[nn.Module]):
        self.twin = copy.deepcopy(module).double()
        self.twin.eval()  # a line of its own: it returns None in mmdet
        self.twins: dict[Any, nn.Module] = dict(zip(module.modules(), self.twin.modules()))
        self.used = {self.twins[each] for each in used}

    def move(self, layers: list[Any]) -> bool:
        """Move the biases of layers of the module into the norms that see them, if this keeps its output."""
        twins: list[Any] = [self.twins[layer] for layer in layers]
        for size in (8, 64):
            try:
                shifts = _shifts(self.twin, twins, size)
            except Exception:  # the module takes no single image, or this one is too small
                continue
            if shifts is None or self.used & shifts.keys():
                return False
            for layer, twin in zip(layers, twins):
                layer.bias = twin.bias = None
            for norm, twin_norm in self.twins.items():
                if twin_norm in shifts:
                    norm.running_mean += shifts[twin_norm].to(norm.running_mean)
                    twin_norm.running_mean += shifts[twin_norm]  # type: ignore[operator]
            return True
        return False


def _shifts(module: nn.Module, layers: list[Any], size: int) -> dict[nn.Module, Tensor] | None:
    """The change of each norm's running mean that makes up for the removed biases of layers, or None."""
    norms: list[Any] = [
        each for each in module.modules() if isinstance(each, _BatchNorm) and each.running_mean is not None
    ]
    channels = next(each.in_channels for each in module.modules() if isinstance(each, nn.Conv2d))
    x = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    x = x.to(layers[0].weight.device)
    inputs: dict[nn.Module, list[Tensor]] = {norm: [] for norm in norms}
    called, fits = set(), []
    shifts: dict[nn.Module, Tensor] = {}
    handles = [norm.register_forward_pre_hook(lambda norm, args: inputs[norm].append(args[0])) for norm in norms]
    handles += [layer.register_forward_hook(lambda layer, *_: called.add(layer)) for layer in layers]

    def follow(norm: Any, args: tuple[Tensor]) -> None:
        before = inputs[norm].pop(0)
        change = args[0] - before
        shift = change.mean([axis for axis in range(change.dim()) if axis != 1])  # (channels, )
        scale = before.abs().max()
        spread = (change - shift.view(-1, *[1] * (change.dim() - 2))).abs().max()
        shift = shift * (shift.abs() > 1e-12 * scale)
        if change[0, 0].numel() == 1 and shift.any():
            raise ValueError('One pixel does not tell whether a change is the same everywhere.')
        fits.append(bool(spread <= 1e-9 * scale))
        if norm in shifts:
            fits.append(torch.allclose(shift, shifts[norm]))
        elif shift.any():
            shifts[norm] = shift
            norm.running_mean += shift

    biases, means = [layer.bias for layer in layers], [norm.running_mean.clone() for norm in norms]
    try:
        expected = tree_leaves(module(x))
        for handle in handles:
            handle.remove()
        handles = [norm.register_forward_pre_hook(follow) for norm in norms]
        for layer in layers:
            layer.bias = None
        found = tree_leaves(module(x))
    finally:
        for handle in handles:
            handle.remove()
        for layer, bias in zip(layers, biases):
            layer.bias = bias
        for norm, mean in zip(norms, means):
            norm.running_mean.copy_(mean)
    fits += [torch.allclose(a, b, rtol=1e-9, atol=1e-9 * float(b.abs().max())) for a, b in zip(found, expected)]
    return shifts if len(called) == len(layers) and all(fits) else None
