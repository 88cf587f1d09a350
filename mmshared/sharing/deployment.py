"""Turns a trained network into one for inference."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._pytree import tree_leaves

from .attention import put
from .bank import SharedLayer, SharingError, generate_once
from .surgery import memory_format_of, take_hooks, to_format

#: The largest relative difference to expect from rounding, by the type of the outputs.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.half: 0.05, torch.bfloat16: 0.1}


@torch.no_grad()
def deploy(model: nn.Module, images: Tensor) -> nn.Module:
    """Make a network for inference: shared layers become plain ones, and batch norms are fused into the plain convs
    before them. If one of these convs is read elsewhere too, none is fused.

    Each shared layer becomes the fastest of its :meth:`SharedLayer.forms` for the input size that these images give
    it, on their device. The choice is made once, here, and not in a forward pass. It depends on timings: another call
    may choose other forms, whose state dict has other keys. So save the module (``torch.save`` as a trusted file,
    ``torch.export``) or the state dict of the shared network, not the state dict of the deployed one.

    Args:
        model (nn.Module): A network that takes images: a backbone or a classifier. It is not changed.
        images (Tensor): Example input, (N, 3, H, W).

    Returns:
        nn.Module: A copy of the network in eval mode.

    Raises:
        SharingError: If the outputs for these images differ.
    """
    # A norm that is not the only one to read a conv's output cannot be fused.
    for fuse in (True, False):
        network, differences = _deployed(model, images, fuse)
        wrong = [difference for difference, most in differences if not difference < most]
        if not wrong:
            return network
        if fuse:
            print_log('The batch norms are not fused: not all of them read only the conv before them.', 'current')
    raise SharingError(
        f'The network cannot be deployed: its outputs would differ by a relative {wrong[0]:.2g} '
        'from those of the network that was trained.'
    )


def _deployed(model: nn.Module, images: Tensor, fuse: bool) -> tuple[nn.Module, list[tuple[float, float]]]:
    """A copy of a network in which shared layers are plain ones, with batch norms fused or not. For each of its
    outputs the largest difference from the network's own, relative to the largest value, and the tolerance."""
    network = copy.deepcopy(model)
    network.eval()
    last = memory_format_of(network)
    inputs, outputs, handles = {}, {}, []
    norms: dict[nn.Module, Any] = {}
    parents = {child: parent for parent in network.modules() for child in parent.children()}

    def see_layer(layer: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        inputs[layer], outputs[layer] = args[0], (output, output._version)

    def see_norm(norm: nn.Module, args: tuple[Tensor]) -> None:
        # The same tensor in the same module, not modified in between (by an in-place activation, for example).
        norms.update(
            {
                layer: norm
                for layer, seen in outputs.items()
                if seen[0] is args[0] and seen[1] == args[0]._version and parents[layer] is parents[norm]
            }
        )

    for module in network.modules():
        if isinstance(module, SharedLayer) or type(module) is nn.Conv2d:
            handles.append(module.register_forward_hook(see_layer))
        elif isinstance(module, _BatchNorm) and module.track_running_stats:
            handles.append(module.register_forward_pre_hook(see_norm))
    expected = tree_leaves(network(images))
    for handle in handles:
        handle.remove()
    choice: dict[tuple, int] = {}
    with generate_once(network):
        for parent in list(network.modules()):
            for name, layer in list(parent.named_children()):
                norm = norms.get(layer) if fuse else None
                if isinstance(layer, SharedLayer):
                    form = _form(layer, inputs.get(layer), norm, choice)
                    to_format(form, last)
                elif type(layer) is nn.Conv2d:
                    form = nn.Sequential(layer)
                else:
                    continue
                if norm is not None and type(form[-1]) is nn.Conv2d:
                    form[-1] = fuse_conv_bn_eval(form[-1], norm)
                    _remove(network, norm)
                put(parent, name, form if len(form) > 1 else form[0])
    take_hooks(network)
    found = tree_leaves(network(images))
    differences = []
    for a, b in zip(found, expected):
        a, b = (each.double() for each in (a, b)) if b.dtype not in TOLERANCE else (a, b)
        differences.append((relative_difference([a], [b]), TOLERANCE[b.dtype]))
    return network, differences


def relative_difference(found: Iterable[Tensor], expected: Iterable[Tensor]) -> float:
    """The largest difference between tensors, relative to the largest value of each; NaN if one holds NaN."""
    pairs = [((a - b).abs().max().cpu().double(), b.abs().max().cpu().double()) for a, b in zip(found, expected)]
    return torch.stack([most / size.clamp(min=1e-300) for most, size in pairs]).max().item()


def _remove(network: nn.Module, norm: nn.Module) -> None:
    """Replace a norm by the identity."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if child is norm:
                setattr(parent, name, nn.Identity())


def _form(layer: SharedLayer, x: Tensor | None, norm: nn.Module | None, choice: dict[tuple, int]) -> nn.Sequential:
    """The fastest form of a layer for an input, timed with the norm behind it if that cannot be fused. Layers that are
    alike share one choice. A layer that the network does not call has no input and is folded."""
    forms = [form.eval() for form in layer.forms()]
    if x is None:
        return forms[0]
    whole = [form if norm is None or type(form[-1]) is nn.Conv2d else nn.Sequential(form, norm) for form in forms]
    work = (x.shape, *map(str, whole))  # the repr holds everything that affects the time
    if work not in choice:
        choice[work] = fastest(whole, x)
    return forms[choice[work]]


def fastest(forms: Sequence[nn.Module], x: Tensor, rounds: int = 7) -> int:
    """The index of the fastest form, by its best time over several rounds after one warm-up round."""

    def seconds(form: nn.Module) -> float:
        start = time.perf_counter()
        form(x)
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        return time.perf_counter() - start

    if len(forms) == 1:
        return 0
    taken = [[seconds(form) for form in forms] for _ in range(rounds + 1)][1:]
    least = [min(times) for times in zip(*taken)]
    return least.index(min(least))
