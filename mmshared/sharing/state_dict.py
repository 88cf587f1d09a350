"""Loads a checkpoint of the plain network into the shared one, and refuses one that fits neither."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from .attention import is_packed
from .bank import Bank, SharedLayer, SharingError, end_passes, in_float, is_finite, stage_in
from .least_squares import output_error

_WANTED = (
    'Nothing of it was loaded into the shared network. Give a checkpoint of the same network, either plain or '
    'shared by the same groups and bank; `mmshared --help` lists tools that convert others.'
)


class Conversion(NamedTuple):
    """A group of plain weights that became a bank.

    Attributes:
        name (str): The name of the stage, or of the group if its stage has none.
        layers (list[str]): The names of the layers of the group within the stage.
        bank (Bank): The bank fitted to their weights, a copy of the network's own.
        kernels (list[Tensor]): The weights, each of the shape of its layer's.
        error (float): ``|weights - fitted| / |weights|`` in the Frobenius norm.
        output_error (float | None): The same for the outputs on the images that moments were collected on, the root
            mean square over the layers. None without moments.
    """

    name: str
    layers: list[str]
    bank: Bank
    kernels: list[Tensor]
    error: float
    output_error: float | None = None

    def __str__(self) -> str:
        return (
            f'{self.name}: the weights of {", ".join(self.layers)} became one {type(self.bank).__name__}, '
            f'relative error {self.error:.4f}'
            f'{"" if self.output_error is None else f", of the outputs {self.output_error:.4f}"}'
        )


class _Group(NamedTuple):
    """The layers of a bank in a module: their names in it, their stage's name, the keys of their plain weights."""

    bank: Bank
    layers: dict[str, SharedLayer]
    stage: str | None
    plain: list[str]
    aliases: dict[str, tuple[str, str]]  # further names of the layers: their first names, and plain keys

    @property
    def inside(self) -> str:
        return f'{self.stage}.' if self.stage else ''

    def shared_keys(self) -> list[str]:
        """The keys that a shared checkpoint has for it."""
        layers = {**self.layers, **{alias: self.layers[first] for alias, (first, _) in self.aliases.items()}}
        return [f'{name}.{key}' for name, layer in layers.items() for key in layer.state_dict()]

    def plain_keys(self) -> list[str]:
        """The keys that a plain checkpoint has for its weights."""
        return [*self.plain, *(key for _, key in self.aliases.values())]


def load_shared(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """The hook that runs when a shared network loads a checkpoint: see :func:`share_state_dict`."""
    for conversion in share_state_dict(module, state_dict, prefix):
        print_log(str(conversion), logger='current')


@torch.no_grad()
def share_state_dict(
    module: nn.Module,
    state_dict: dict[str, Tensor],
    prefix: str = '',
    moments: Mapping[str, Tensor] | None = None,
) -> list[Conversion]:
    """Make a state dict fit a shared network before it is loaded, in place, or refuse it.

    The weights of a plain network become the parameters of the shared one (:meth:`Bank.fit`). Groups that the state
    dict already shares in the same way are not changed. A state dict that has nothing of any shared stage is left to
    the loader.

    Args:
        module (nn.Module): The shared network, or a part of it.
        state_dict (dict): The state dict. The loader handles, as usual, what it has or lacks outside the shared
            stages, and tensors that it lacks in every block.
        prefix (str): The prefix of the network's keys in the state dict.
        moments (Mapping[str, Tensor], optional): The second moments of the inputs of plain layers by their names in
            the network, see :meth:`Bank.fit`. A group that lacks those of a layer is fitted by its weights.

    Returns:
        list[Conversion]: The groups that were plain.

    Raises:
        SharingError: If the shared stages fit neither way, or if moments do not fit. Then nothing is changed.
    """
    end_passes(module)
    if not all(isinstance(key, str) for key in state_dict):
        raise SharingError(f'The checkpoint has names that are not strings. {_WANTED}')
    given = {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}
    groups, parts = _groups(module)
    for name, plain in parts.items():
        if plain in given:
            raise SharingError(
                f'{plain} is a weight of {name}, which shares with layers outside of what is loaded '
                f'here: load it into the whole network. {_WANTED}'
            )
    # The keys that the checkpoint would have with each plain group converted.
    plain_groups = [group for group in groups if all(key in given for key in group.plain)]
    theirs = (
        set(given)
        .difference(*(group.plain_keys() for group in plain_groups))
        .union(*(group.shared_keys() for group in plain_groups))
    )
    if not any(_touches(group, given) for group in groups):
        return []
    own, blocks = _tensors_in(module), _Blocks(groups)
    _check_values(groups, given)
    free, every = _free(module, given), [key for each in groups for key in each.plain]
    for group in groups:
        _check_stage(group, own, every, given, free)
        _check_layers(group, own, given)
    _check_rest(groups, own, theirs, blocks)
    conversions, added = [], {}
    for group in plain_groups:
        conversion, tensors = _convert(group, given, moments or {})
        conversions.append(conversion)
        added.update(tensors)
    # From here on nothing is refused.
    for group in groups:
        group.bank.loaded = True
    for group in plain_groups:
        for key in group.plain_keys():
            state_dict.pop(prefix + key, None)
    state_dict.update({prefix + key: value for key, value in added.items()})
    return conversions


def _tensors_in(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a state dict by their names in the module: its own hooks may save them under others."""
    found: dict[str, Tensor] = {}
    for name, part in module.named_modules(remove_duplicate=False):
        part._save_to_state_dict(found, f'{name}.' if name else '', keep_vars=False)
    return found


def _groups(module: nn.Module) -> tuple[list[_Group], dict[str, str]]:
    """The groups whose layers are all in a module. For the other groups, the names of their layers in it, with the
    keys of their plain weights."""
    names: dict[SharedLayer, str] = {}
    plain: dict[str, str] = {}
    further: dict[SharedLayer, list[str]] = {}
    for parent_name, parent in module.named_modules(remove_duplicate=False):
        for child, layer in parent._modules.items():
            if isinstance(layer, SharedLayer):
                name = f'{parent_name}.{child}'.lstrip('.')
                plain[name] = f'{name}_weight' if is_packed(parent, child) else f'{name}.weight'
                if names.setdefault(layer, name) != name:
                    further.setdefault(layer, []).append(name)
    groups, parts = {}, {}
    for layer, name in names.items():
        bank = layer.bank
        if bank in groups:
            continue
        if all(each in names for each in bank.layers):
            layers = {names[each]: each for each in bank.layers}
            aliases = {
                alias: (first, plain[alias]) for first, each in layers.items() for alias in further.get(each, ())
            }
            groups[bank] = _Group(
                bank, layers, stage_in(bank, names[bank.layers[0]]), [plain[each] for each in layers], aliases
            )
        else:
            parts[name] = plain[name]
    return list(groups.values()), parts


class _Blocks:
    """The names of tensors within their blocks."""

    def __init__(self, groups: Iterable[_Group]):
        self.stages = sorted({group.inside for group in groups if group.stage is not None}, key=len, reverse=True)

    def within(self, key: str) -> str | None:
        """The name of a tensor within its block of a shared stage, or None outside of them."""
        stage = next((inside for inside in self.stages if key.startswith(inside)), None)
        return None if stage is None else key[len(stage) :].partition('.')[2]


def _touches(group: _Group, given: dict[str, Any]) -> bool:
    """Whether a checkpoint has anything of a group, or of its stage."""
    if group.stage is None:
        return any(key in given for key in (*group.plain, *group.shared_keys()))
    return any(key.startswith(group.inside) for key in given)


def _check_values(groups: list[_Group], given: dict[str, Any]) -> None:
    """Raise if a checkpoint holds anything but tensors of finite numbers for the stages of groups."""
    keys = {key for group in groups for key in (*group.plain, *group.shared_keys())}
    stages = tuple({group.inside for group in groups if group.stage is not None})
    for key, value in given.items():
        if key in keys or key.startswith(stages):
            if not isinstance(value, Tensor) or value.layout is not torch.strided:
                kind = f'sparse ({value.layout})' if isinstance(value, Tensor) else f'a {type(value).__name__}'
                raise SharingError(f'The checkpoint is damaged: {key} is {kind}, not a plain tensor. {_WANTED}')
            if not value.is_meta and not is_finite(value):
                raise SharingError(f'The checkpoint holds numbers that are not finite in {key}. {_WANTED}')


def _free(module: nn.Module, given: dict[str, Tensor]) -> dict[str, int]:
    """How many of the first dimensions of tensors may differ in a checkpoint, which is left to the loader, as in plain
    networks: the outputs of a linear or conv with a bias, which may be classes, if the checkpoint has as many of both,
    and all of a buffer that may be a table for another size of images."""
    free = {name: tensor.dim() for name, tensor in module.named_buffers() if tensor.dim() > 1}
    for name, layer in module.named_modules():
        keys = f'{name}.weight', f'{name}.bias'
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and layer.bias is not None and given.keys() >= set(keys):
            outputs = {getattr(given[key], 'shape', ())[:1] for key in keys}  # what is no tensor the loader refuses
            free.update(dict.fromkeys(keys if len(outputs) == 1 else (), 1))
    return free


def _check_stage(
    group: _Group, own: dict[str, Tensor], plain: list[str], given: dict[str, Tensor], free: dict[str, int]
) -> None:
    """Raise if a checkpoint's tensors for a group's stage belong to another network."""
    if group.stage is None:
        return
    # The blocks of this checkpoint, of a shared one and of a plain one.
    there, least, most = (
        {key[len(group.inside) :].partition('.')[0] for key in keys if key.startswith(group.inside)}
        for keys in (given, own, [*own, *plain])
    )
    if not least <= there <= most:
        raise SharingError(
            f'The checkpoint is of another network: {group.stage or "the stage"} has {len(there)} blocks '
            f'there and {len(most)} here. {_WANTED}'
        )
    for key, tensor in given.items():
        if not key.startswith(group.inside) or key not in own:
            continue
        fixed = free.get(key, 0)
        if own[key].dim() != tensor.dim() or own[key].shape[fixed:] != tensor.shape[fixed:]:
            _raise_shape(key, given, own[key].shape)


def _check_layers(group: _Group, own: dict[str, Tensor], given: dict[str, Tensor]) -> None:
    """Raise unless a checkpoint has what the layers of a group need, shared or plain, and nothing else for them."""
    missing = [key for key in group.shared_keys() if key not in given and not key.endswith('num_batches_tracked')]
    lacks = [key for key in group.plain if key not in given]
    if missing and lacks:
        raise SharingError(
            f'The checkpoint fits neither as a plain nor as a shared network: it has no {lacks[0]} and no '
            f'{missing[0]}. {_WANTED}'
        )
    if 0 < len(lacks) < len(group.plain):
        there = next(key for key in group.plain if key in given)
        raise SharingError(
            f'The checkpoint is shared in another way: it has {there} and no {lacks[0]}, and here they are one group. '
            f'{_WANTED}'
        )
    known = {*group.plain, *group.shared_keys()}
    for (name, layer), plain in zip(group.layers.items(), group.plain):
        alien = next((key for key in given if key.startswith(f'{name}.') and key not in known), None)
        if alien is not None:
            raise SharingError(
                f'The checkpoint is shared in another way: it has {alien}, and {name} has no such '
                f'tensor here. {_WANTED}'
            )
        if plain in given and given[plain].shape != layer.shape:
            _raise_shape(plain, given, layer.shape)
        if plain in given and layer.bias is not None and f'{name}.bias' not in given:
            raise SharingError(f'The checkpoint is of another network: it has {plain} and no {name}.bias. {_WANTED}')
    for key in group.shared_keys():
        if key in given and given[key].shape != own[key].shape:
            _raise_shape(key, given, own[key].shape)


def _check_rest(groups: list[_Group], own: dict[str, Tensor], theirs: set[str], blocks: _Blocks) -> None:
    """Raise if a checkpoint has a tensor in some blocks of the shared stages and lacks it in others. A tensor that it
    lacks in every block is new to it: offsets of deformable convs, for example."""
    known = {blocks.within(key) for key in theirs}
    for key in own:
        name = blocks.within(key)
        if name is not None and name in known and key not in theirs and not key.endswith('num_batches_tracked'):
            raise SharingError(f'The checkpoint is of another network, or damaged: it has no {key}. {_WANTED}')


def _raise_shape(key: str, given: dict[str, Tensor], here: tuple) -> None:
    raise SharingError(
        f'The checkpoint is of another network, or shared in another way: {key} has the shape '
        f'{tuple(given[key].shape)} there and {tuple(here)} here. {_WANTED}'
    )


def _convert(
    group: _Group, given: dict[str, Tensor], moments: Mapping[str, Tensor]
) -> tuple[Conversion, dict[str, Tensor]]:
    """Fit the bank of a group to the weights of a checkpoint, or to outputs if there are moments of all its layers.
    Also returns the tensors that the shared layers load."""
    kernels = [in_float(given[key]).cpu() for key in group.plain]
    inputs = [moments[name] for name in group.layers] if all(name in moments for name in group.layers) else None
    fitted, error, of_outputs = _fit(group.bank, kernels, inputs)
    tensors = {
        f'{name}.{key}': value
        for name, layer in zip(group.layers, fitted.layers)
        for key, value in layer.state_dict().items()
        if key != 'bias'
    }
    for alias, (first, _) in group.aliases.items():
        tensors.update({f'{alias}.{k[len(first) + 1 :]}': v for k, v in tensors.items() if k.startswith(f'{first}.')})
    names = [name.removeprefix(group.inside) for name in group.layers]
    return Conversion(group.stage or group.bank.group, names, fitted, kernels, error, of_outputs), tensors


def _fit(bank: Bank, kernels: list[Tensor], moments: list[Tensor] | None) -> tuple[Bank, float, float | None]:
    """A copy of a bank fitted to weights, or to outputs; the relative errors of the weights and of the outputs."""
    fitted, lacking = copy.deepcopy(bank), False
    empty = any(p.is_meta for layer in fitted.layers for p in layer.parameters())
    for layer in fitted.layers:  # the first of them holds the bank
        if empty:
            layer.to_empty(device='cpu')
            for key, tensor in layer.state_dict().items():
                if key != 'bias' and tensor.is_floating_point():
                    tensor.fill_(torch.nan)
                lacking |= tensor.dtype == torch.bool  # no fit sets a random mask
        layer.to('cpu', kernels[0].dtype)
    if moments is None:
        fitted.fit(kernels)
    else:
        fitted.fit(kernels, moments)
    state = [layer.state_dict() for layer in fitted.layers]
    if lacking or not all(is_finite(tensor) for each in state for key, tensor in each.items() if key != 'bias'):
        raise SharingError(
            f'A {type(bank).__name__} needs more than the weights of the plain network, and this one is on the meta '
            'device: build the network on another.'
            if empty
            else f'A {type(bank).__name__} cannot be fitted to the weights of the plain network: they are too large.'
        )
    rests = [layer.dense()[0] - kernel for layer, kernel in zip(fitted.layers, kernels)]
    error, norm = (sum(weight.square().sum() for weight in weights) for weights in (rests, kernels))
    return (
        fitted,
        (error / norm).sqrt().item() if norm else 0.0,
        None if moments is None else output_error(fitted.layers, kernels, rests, moments),
    )
