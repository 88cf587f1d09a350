"""Turns a plain network into a shared one and back."""

from __future__ import annotations

import difflib
import inspect
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from mmcv.cnn import ConvModule
from mmengine.registry import MODELS
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .attention import put
from .bank import (
    Bank,
    ForwardPass,
    Layer,
    SharedLayer,
    SharingError,
    bases_by_space,
    end_passes,
    generate_once,
    orthogonal_,
)
from .biases import move_biases
from .layers import PLAIN, Place, layers_by_name, matches, members_of, plain_layers, stages_of
from .state_dict import load_shared


def share_layers(
    network: nn.Module,
    groups: Sequence[str] | None = None,
    bank: dict | Sequence[dict] | None = None,
    stages: str | None = None,
    layers: Sequence[str] | str | None = None,
    own_blocks: int = 1,
) -> list[Bank]:
    """Make each group of layers of a network share a bank, in place. Layers that can share are convs (``nn.Conv2d``)
    and linears (``nn.Linear``), mmcv's wrappers of both, and the packed input projections of
    ``nn.MultiheadAttention`` (``in_proj``).

    A group is all layers of a stage whose names within their blocks match a pattern, or all layers of the network
    whose full names do. Among the layers of one name in a stage, those that differ from the majority keep their own
    weights. A stage with fewer than two layers of a pattern is not changed; if layers may differ in shape
    (:attr:`Bank.same_shape` is False), one is enough, and the first blocks share too.

    From then on a plain checkpoint is fitted when it is loaded, and one that fits neither way is refused; each bank
    generates once per forward pass of the network.

    Args:
        network (nn.Module): Any network.
        groups (Sequence[str], optional): Regular expressions. The layers of a stage whose whole name within their
            block matches one of them are a group: ``['conv[12]']`` is one bank for both, ``['conv1', 'conv2']`` two.
        bank (dict | Sequence[dict]): Config of the bank: one for all groups, or a list with one for each.
        stages (str, optional): A regular expression for the full names of the stages that share. Defaults to all.
        layers (Sequence[str] | str, optional): In place of ``groups`` and ``stages``, regular expressions for the full
            names of layers: all that match one are a group. It may have only one layer if the bank makes that smaller.
        own_blocks (int): Number of blocks at the start of a stage that keep their own layers. Defaults to 1: the
            first block, which in a ResNet changes width or resolution.

    Returns:
        list[Bank]: The banks that were made.

    Raises:
        SharingError: If a pattern forms no group, if the layers of a group differ and must not, or if a bank does not
            fit. Then the network is not changed.
    """
    patterns = _check_patterns(groups, stages, layers, own_blocks)
    configs = list(bank) if isinstance(bank, (list, tuple)) else [bank] * len(patterns)
    if len(configs) != len(patterns):
        raise SharingError(
            f'There are {len(configs)} banks for the groups {patterns}: give one for each, or a single config for all.'
        )
    found = _find_groups(network, dict(zip(patterns, configs)), stages, layers is not None, own_blocks)
    made = {_make_layers(group): group for group in found}
    _start_orthogonal(list(made))
    _check_savings(made, layers is not None)
    last = memory_format_of(network)
    for each, group in made.items():
        for place, layer in zip(group.members, each.layers):
            to_format(layer, last)
            for parent, name in place.parents:
                put(parent, name, layer)
    _leave_hooks(network, list(made))
    return list(made)


class _Group(NamedTuple):
    """Layers that are to share: their stage, if any, their pattern, the config of their bank, and their places."""

    stage: str | None
    pattern: str
    config: dict
    members: list[Place]


def _find_groups(
    network: nn.Module, configs: dict[str, Any], stages: str | None, by_full_name: bool, own_blocks: int
) -> list[_Group]:
    """The groups of a network for these patterns. Each pattern must form at least one."""
    kinds = {pattern: bank_class(config) for pattern, config in configs.items()}
    places = plain_layers(network)
    names = [name for name in stages_of(network) if stages is None or matches(stages, name)]
    if stages is not None and not names:
        raise SharingError(
            f'stages={stages!r} matches no stage: there are {first_names(stages_of(network)) or "none"}.'
        )
    found: list[_Group] = []
    taken: set[str] = set()
    for stage in [None] if by_full_name else names:
        for pattern, kind in kinds.items():
            members = members_of(network, stage, pattern, places, own_blocks, kind.same_shape)
            members = [place for place in members if place.name not in taken]
            enough = 1 if stage is None or not kind.same_shape else 2
            if len(members) >= enough:
                _check_members(pattern, members, kind)
                found.append(_Group(stage, pattern, configs[pattern], members))
                taken |= {place.name for place in members}
    for pattern, kind in kinds.items():
        if all(group.pattern != pattern for group in found):
            if by_full_name:
                raise SharingError(_no_layer(pattern, places))
            kept = own_blocks if kind.same_shape else 0
            raise SharingError(_no_group(network, pattern, names, places, kept, kind.same_shape))
    return found


def _make_layers(group: _Group) -> Bank:
    """Make the bank of a group and its layers. What was frozen stays frozen."""
    bank = make_bank(group.config, [place.layer for place in group.members])
    bank.stage, bank.group = group.stage, group.pattern
    bank.names = tuple(place.name for place in group.members)
    for place in group.members:
        layer = bank.make_layer(place.layer, following_norm(*place.parents[0]))
        for name, parameter in layer.named_parameters():
            if name != 'bias' and not name.startswith('bank.'):
                parameter.requires_grad_(parameter.requires_grad and place.layer.weight.requires_grad)
        layer.train(place.layer.training)
    trained = any(place.layer.weight.requires_grad for place in group.members)
    for parameter in bank.parameters():
        parameter.requires_grad_(parameter.requires_grad and trained)
    return bank


def _check_savings(made: dict[Bank, _Group], by_full_name: bool) -> None:
    """Warn if sharing saves nothing; raise if a group then has only one layer: it has no other reason to share."""
    before, after = 0, 0
    for bank, group in made.items():
        plain = sum(place.layer.weight.numel() for place in group.members)
        shared = sum(p.numel() for layer in bank.layers for p in layer.parameters() if p is not layer.bias)
        if by_full_name and len(group.members) < 2 and shared >= plain:
            raise SharingError(
                f'A group of one layer is allowed if the bank makes it smaller, and {group.pattern!r} would have '
                f'{shared:,} parameters for {plain:,}: name more layers, or take a smaller bank.'
            )
        before, after = before + plain, after + shared
    if after >= before:
        patterns = list(dict.fromkeys(group.pattern for group in made.values()))
        warnings.warn(
            f'Sharing saves nothing here: the layers of {patterns} have {after:,} parameters for {before:,} '
            'without it. Take a smaller bank.',
            stacklevel=3,
        )


def make_bank(config: dict, layers: Sequence[Layer]) -> Bank:
    """Make a bank from its config for plain layers.

    Raises:
        SharingError: If its arguments do not fit.
    """
    kind: Any = bank_class(config)
    arguments = {key: value for key, value in config.items() if key != 'type'}
    try:
        inspect.signature(kind).bind(layers=layers, **arguments)
    except TypeError as error:
        raise SharingError(f'The arguments of bank={dict(config)!r} do not fit {kind.__name__}: {error}.') from None
    return kind(layers=layers, **arguments)


def bank_class(config: Any) -> type[Bank]:
    """The class of the bank that a config describes.

    Raises:
        SharingError: If there is no such bank.
    """
    if not isinstance(config, dict) or 'type' not in config:
        raise SharingError(
            f"bank={config!r} is not a config of a bank: write for example bank=dict(type='TiedFilters')."
        )
    kind = config['type']
    if isinstance(kind, str):
        with MODELS.switch_scope_and_registry(None) as registry:
            kind = registry.get(kind)
        if kind is None:
            there = [
                name for name, each in MODELS.module_dict.items() if inspect.isclass(each) and issubclass(each, Bank)
            ]
            nearest = difflib.get_close_matches(config['type'], there, n=len(there), cutoff=0)
            raise SharingError(
                f'There is no bank {config["type"]!r}: there are {", ".join(nearest)}. (One of your own '
                'has to be imported first: custom_imports.)'
            )
    if not (inspect.isclass(kind) and issubclass(kind, Bank)):
        raise SharingError(f'{config["type"]} is not a bank.')
    return kind


def fold_layers(network: nn.Module) -> nn.Module:
    """Replace each shared layer by the plain one that it equals in eval mode, in place: the inverse of
    :func:`share_layers`.

    If folding adds a bias to a layer that had none, it is moved into the running means of the batch norms that see it,
    so that the state dict has the keys of the plain network. The move is tested on random inputs of the surrounding
    modules; if it changes the output, the bias stays.

    Returns:
        nn.Module: The module itself.

    Raises:
        SharingError: If layers outside the module share with layers in it. Then nothing is changed.
    """
    inside = {module for module in network.modules() if isinstance(module, SharedLayer)}
    outside = [
        name for layer in inside for name, each in zip(layer.bank.names, layer.bank.layers) if each not in inside
    ]
    if outside:
        raise SharingError(
            f'{outside[0]} shares with layers of this module and is not part of it: fold the whole network.'
        )
    last = memory_format_of(network)
    end_passes(network)
    with torch.no_grad(), generate_once(network):
        plain = {layer: layer.fold() for layer in inside}
        for folded in plain.values():
            to_format(folded, last)
        added = [folded for layer, folded in plain.items() if layer.bias is None and folded.bias is not None]
        for parent in list(network.modules()):
            for name, child in list(parent._modules.items()):
                if isinstance(child, SharedLayer):
                    put(parent, name, plain[child])
        take_hooks(network)
        if added:
            move_biases(network, added)
    return network


def following_norm(parent: nn.Module, name: str) -> _BatchNorm | None:
    """The batch norm that is registered right after the child ``name`` of a module, or that of a ``ConvModule``: a
    guess, good enough to know its kind."""
    children = list(parent._modules.items())
    names = [child for child, _ in children]
    if name not in names:
        return None
    layer, norm = children[names.index(name)][1], (children + [('', None)])[names.index(name) + 1][1]
    if isinstance(parent, ConvModule):
        norm = parent.norm if parent.with_norm else None
    width = getattr(layer, 'out_channels', None)
    if not isinstance(norm, _BatchNorm) or isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm3d)):
        return None
    return norm if norm.num_features == width else None


def to_format(module: nn.Module, memory_format: torch.memory_format) -> nn.Module:
    """Give the weights of convs a memory format, in place."""
    return module.to(memory_format=memory_format)  # type: ignore[call-overload]


def memory_format_of(network: nn.Module) -> torch.memory_format:
    """The memory format that a network keeps the weights of its convs in."""
    last = any(
        p.dim() == 4 and p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous()
        for p in network.parameters()
    )
    return torch.channels_last if last else torch.contiguous_format


def _start_orthogonal(banks: list[Bank]) -> None:
    """Make bases of one space start orthogonal to each other too, as the orthogonality loss requires."""
    named = {f'{bank.stage}.{bank.group}': bank for bank in banks if bank.orthogonal_start}
    for space in bases_by_space(named):
        if len(space) > 1:
            bases = [basis.detach() for bank in space.values() if (basis := bank.basis()) is not None]
            together = torch.cat(bases)
            if len(together) <= together[0].numel():  # no more can be orthogonal to each other
                orthogonal_(together)
                for basis, part in zip(bases, together.split([len(basis) for basis in bases])):
                    basis.copy_(part)


def _leave_hooks(network: nn.Module, made: list[Bank]) -> None:
    """Register the hooks on a network that keep the promises of :func:`share_layers`."""
    owners = (getattr(hook, '__self__', None) for hook in network._forward_pre_hooks.values())
    passes = [owner for owner in owners if isinstance(owner, ForwardPass)]
    if passes:
        passes[0].banks += made
    else:
        each = ForwardPass(made)
        network.register_forward_pre_hook(each.begin)
        network.register_forward_hook(each.end, always_call=True)
    names = {name for bank in made for name in bank.names}
    for name, module in network.named_modules():
        # Every module around a shared layer, so that loading into a part of the network is checked too.
        around = not name or any(each.startswith(f'{name}.') for each in names)
        if (
            around
            and not isinstance(module, SharedLayer)
            and not any(_is_load_hook(hook) for hook in module._load_state_dict_pre_hooks.values())
        ):
            module.register_load_state_dict_pre_hook(load_shared)


def _is_load_hook(hook: Any) -> bool:
    return hook.hook is load_shared


def take_hooks(network: nn.Module) -> None:
    """Remove the hooks of :func:`_leave_hooks`."""
    for module in network.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [
                key for key, hook in hooks.items() if isinstance(getattr(hook, '__self__', None), ForwardPass)
            ]:
                del hooks[key]
                module._forward_hooks_always_called.pop(key, None)
        loads = module._load_state_dict_pre_hooks
        for key in [key for key, hook in loads.items() if _is_load_hook(hook)]:
            del loads[key]


def _check_patterns(
    groups: Sequence[str] | None, stages: str | None, layers: Sequence[str] | str | None, own_blocks: int
) -> list[str]:
    """The patterns of the groups. Raises if the arguments do not fit together."""
    if (groups is None) == (layers is None):
        raise SharingError(
            'Say which layers are to share: either by groups, patterns of names within the blocks of '
            'stages, or by layers, patterns of full names.'
        )
    if layers is not None and stages is not None:
        raise SharingError('stages narrows groups; layers are full names: leave one of them out.')
    if not isinstance(stages, (str, type(None))):
        raise SharingError(f'stages={stages!r} is not a pattern: write one regular expression for all stages.')
    if not isinstance(groups, (list, tuple, type(None))):
        raise SharingError(f'groups is a list of patterns, one for each group: write groups=[{groups!r}].')
    if not isinstance(layers, (str, list, tuple, type(None))):
        raise SharingError(f'layers={layers!r} is not a pattern, nor a list of patterns.')
    patterns = [layers] if isinstance(layers, str) else list(layers or groups or ())
    if not patterns or len(set(patterns)) < len(patterns) or not all(isinstance(each, str) for each in patterns):
        raise SharingError(
            f'{"groups" if layers is None else "layers"}={patterns} has no pattern or one twice: name each group once.'
        )
    if not isinstance(own_blocks, int) or own_blocks < 0:
        raise SharingError(f'own_blocks={own_blocks!r} is not a number of blocks: give 0 or more.')
    return patterns


def _check_members(pattern: str, members: list[Place], kind: type[Bank]) -> None:
    shapes = {place.geometry for place in members}
    if kind.same_shape and len(shapes) > 1:
        raise SharingError(
            f'The pattern {pattern!r} makes one group of layers that differ: '
            f'{" and ".join(sorted(shapes))}. Give each kind a pattern of its own.'
        )
    for place in members:
        mode = getattr(place.layer, 'padding_mode', 'zeros')
        if mode != 'zeros':
            raise SharingError(
                f'The pattern {pattern!r} matches convs with padding_mode={mode!r}, which cannot be '
                'shared: leave them out of groups.'
            )


def _no_layer(pattern: str, places: dict[str, Place]) -> str:
    """Why a pattern of full names matches no layer, and what layers there are."""
    nearest = difflib.get_close_matches(pattern, places, n=5, cutoff=0)
    return (
        f'The pattern {pattern!r} in layers matches the whole name of no layer that can share (or only those of '
        f'another pattern): there are {first_names(nearest) or "none"}.'
    )


def _no_group(
    network: nn.Module, pattern: str, stages: list[str], places: dict[str, Place], own_blocks: int, same_shape: bool
) -> str:
    """Why a pattern forms no group in the stages, and what layers there are."""
    there: dict[str, int] = {}
    for stage in stages:
        for name, members in layers_by_name(network, stage, places, own_blocks).items():
            there[name] = max(there.get(name, 0), len(members))
    others = {}
    for stage in stages:
        for block in list(network.get_submodule(stage).children())[own_blocks:]:
            for name, module in block.named_modules():
                shared = isinstance(module, SharedLayer)
                if matches(pattern, name) and (shared or hasattr(module, 'weight')) and type(module) not in PLAIN:
                    others[name] = (
                        'shares already' if shared else f'is a {type(module).__name__}, which is never shared'
                    )
    others.update(
        {
            name: 'is in the group of another pattern' if times > 1 else 'is there only once in a stage'
            for name, times in there.items()
            if matches(pattern, name)
        }
    )
    reason = ''.join(f'; {name} {why}' for name, why in others.items())
    first = 'block' if own_blocks == 1 else f'{own_blocks} blocks'
    where = f'of a stage, outside its first {first}, ' if own_blocks else 'of a stage '
    return (
        f'The pattern {pattern!r} forms no group: a group is {"two" if same_shape else "one"} or more plain convs '
        f'or linears {where}whose whole name within the block matches. The layers there are: '
        f'{first_names(filter(None, there)) or "none"}{reason}.'
    )


def first_names(names: Iterable[str]) -> str:
    """The first names of many, for a message."""
    names = list(names)
    return ', '.join(names[:24]) + (f' and {len(names) - 24} more' if len(names) > 24 else '')
