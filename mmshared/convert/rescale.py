"""Starts networks of repeated kernels from a trained small network, whose kernels become the repeated ones.

If kernels repeat within each layer, the batch norms and the linear layer of the small network are repeated too. With
plain copies (linear), and with signs that all start as plus (bireal), the large network computes the same as the small
one in eval mode. Plain copies get equal gradients, so training does not tell them apart. A network of plain copies
becomes one of the same width with another transform in the same way.

If kernels repeat between layers, as in the VGGs, the layers that the small network lacks start as in the config.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..sharing import RepeatedKernel, SharingError, banks
from ..sharing.repeated_kernel import RepeatedLayer
from ..sharing.surgery import following_norm


def share_inputs(weight: Tensor, in_channels: int) -> Tensor:
    """Divide a weight, (O, i, ...), by the number of copies of each input among ``in_channels``, so that the sum over
    copies does not change."""
    copies = torch.bincount(torch.arange(in_channels) % weight.shape[1])  # (i, )
    return weight / copies.view(-1, *[1] * (weight.dim() - 2))


def widen(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """Repeat a tensor to a shape: outputs unchanged, inputs divided by the number of their copies."""
    if tensor.dim() > 1:
        tensor = share_inputs(tensor, shape[1])
    for axis, size in enumerate(shape):
        tensor = tensor.index_select(axis, torch.arange(size) % tensor.shape[axis])
    return tensor


def rescale(model: nn.Module, small: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict of a model of repeated kernels from that of a small network.

    Args:
        model (nn.Module): The large model.
        small (dict): The state dict of the plain small network, or of a repeated one of width 1 or the model's width.

    Returns:
        tuple[dict, list[str]]: The state dict, and the layers that keep their values from the model.

    Raises:
        SharingError: If the model has no such kernels, or if the small network does not match.
    """
    modes = {bank.mode if isinstance(bank, RepeatedKernel) else None for bank in banks(model)}
    if len(modes) != 1 or not modes <= {'intra', 'inter'}:
        raise SharingError(
            'The network of the config does not repeat kernels within its layers or between them: it '
            "needs the bank RepeatedKernel with mode='intra' or mode='inter'."
        )
    head = ([None] + [name for name, module in model.named_modules() if isinstance(module, nn.Linear)])[-1]
    there, own = small.get(f'{head}.weight'), model.state_dict().get(f'{head}.weight')
    if there is not None and own is not None and there.dim() and len(there) != len(own):
        raise SharingError(
            f'The checkpoint is of a network of {len(there)} classes, and that of the config has '
            f'{len(own)}: set its model.head.num_classes={len(there)}.'
        )
    return (_within_layers(model, small), []) if modes == {'intra'} else _between_layers(model, small, head)


def _between_layers(
    model: nn.Module, small: dict[str, Tensor], head: str | None
) -> tuple[dict[str, Tensor], list[str]]:
    """The repeated kernels are those of the small network's convs; what it lacks keeps the values of the model."""
    state_dict, taken = model.state_dict(), set()
    for key, tensor in small.items():
        name, _, part = key.rpartition('.')
        own = f'{name}.bank.kernel' if part == 'weight' and f'{name}.bank.kernel' in state_dict else key
        if own == f'{head}.weight' and own in state_dict and tensor.shape != state_dict[own].shape:
            continue  # it takes the features of another layer
        if own not in state_dict or tensor.shape != state_dict[own].shape:
            raise SharingError(
                f'The checkpoint is not of the network whose kernels are repeated: it has {key} of the '
                f'shape {tuple(tensor.shape)}.'
            )
        state_dict[own] = tensor
        taken.add(own)
    parameters, left = dict(model.named_parameters()), [key for key in state_dict if key not in taken]
    for key in left:
        if state_dict[key].dim() == 4 and '.transform.' not in key:
            raise SharingError(
                f'The checkpoint is not of the network whose kernels are repeated: it has nothing for '
                f'{key} of the shape {tuple(state_dict[key].shape)}.'
            )
    return state_dict, list(
        dict.fromkeys(
            key.partition('.transform.')[0].removesuffix('.bias').removesuffix('.weight')
            for key in left
            if key in parameters
        )
    )


def _within_layers(model: nn.Module, small: dict[str, Tensor]) -> dict[str, Tensor]:
    """Everything is repeated like the kernels. The transforms of the copies keep the values of the model."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, RepeatedLayer)}
    left = _with_our_names(layers, small)
    state_dict = {key: tensor for key, tensor in model.state_dict().items() if '.transform.' in key}
    for name, layer in layers.items():
        if layer.added_bias is not None:
            left.setdefault(f'{name}.added_bias', torch.zeros_like(layer.added_bias))
        if f'{name}.kernel' not in left and layer.kernel.shape[2:] == (1, 1) and len(set(layer.kernel.shape[:2])) == 1:
            left[f'{name}.kernel'] = torch.eye(len(layer.kernel)).view(layer.kernel.shape)
            state_dict.update(_identity_norm(model, name))
    for key, own in model.state_dict().items():
        if key in state_dict:
            continue
        tensor, (name, _, part) = left.pop(key, None), key.rpartition('.')
        is_kernel = name in layers and part == 'kernel'
        if tensor is None or not (tensor.shape == own.shape if is_kernel else _fits_into(tensor, own)):
            raise SharingError(
                f'The checkpoint is not of the network that is repeated: for {key} of the shape '
                f'{tuple(own.shape)} it has {"nothing" if tensor is None else tuple(tensor.shape)}.'
            )
        state_dict[key] = _kernel(name, layers[name], tensor, small) if is_kernel else widen(tensor, own.shape)
    if left:
        raise SharingError(f'The checkpoint is not of the network that is repeated: it has {next(iter(left))} too.')
    return state_dict


def _with_our_names(layers: dict[str, RepeatedLayer], small: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the small network, with the weights of the repeated layers renamed to kernels."""
    kernels = {f'{name}.weight': f'{name}.kernel' for name in layers if f'{name}.kernel' not in small}
    return {kernels.get(key, key): tensor for key, tensor in small.items()}


def _identity_norm(model: nn.Module, name: str) -> dict[str, Tensor]:
    """The state of the batch norm after a layer as the identity, for a shortcut that the small network lacks."""
    parent, _, child = name.rpartition('.')
    norm = following_norm(model.get_submodule(parent), child)
    if norm is None:
        return {}
    prefix = next(each for each, module in model.named_modules() if module is norm)
    state = {
        **norm.state_dict(),
        'weight': (norm.running_var + norm.eps).sqrt(),
        'bias': torch.zeros_like(norm.bias),
        'running_mean': torch.zeros_like(norm.running_mean),
    }
    return {f'{prefix}.{key}': tensor for key, tensor in state.items()}


def _fits_into(tensor: Tensor, own: Tensor) -> bool:
    """Whether a tensor can be repeated to the shape of another."""
    return tensor.dim() == own.dim() and all(a <= b for a, b in zip(tensor.shape, own.shape))


def _kernel(name: str, layer: RepeatedLayer, kernel: Tensor, small: dict[str, Tensor]) -> Tensor:
    """The kernel of a layer from that of the small network. The length of its bias tells whether that network is
    plain or repeats the kernel as often as the model."""
    bias = small.get(f'{name}.{"bias" if layer.added_bias is None else "added_bias"}')
    if bias is None or len(bias) == len(kernel):
        return share_inputs(kernel, layer.in_channels)
    if len(bias) != layer.out_channels:
        raise SharingError(
            f'The checkpoint is of a network whose {name} repeats its kernel to {len(bias)} '
            f'channels, and here it has {layer.out_channels}: give one of width 1, or of '
            'the width of the config.'
        )
    return kernel
