"""Finds the layers that can share: plain ones, by name, in the stages of any network."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from mmcv.cnn.bricks import wrappers
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from .attention import PROJECTION, packed_projection
from .bank import SharedLayer, SharingError

#: The classes of the layers that can share, without their subclasses, which compute something else or more.
PLAIN = (nn.Conv2d, nn.Linear, NonDynamicallyQuantizableLinear, wrappers.Conv2d, wrappers.Linear)


class RepeatedLayers(NamedTuple):
    """Layers of one name and shape in the blocks of a stage, which could share.

    Attributes:
        stage (str): The name of the stage.
        group (str): The name of the layers within their blocks.
        layers (tuple[str, ...]): Their names in the network.
        shape (torch.Size): The shape of the weight of one of them.
        parameters (int): The number of parameters of the weight of one of them.
    """

    stage: str
    group: str
    layers: tuple[str, ...]
    shape: torch.Size
    parameters: int


@dataclass
class Place:
    """A plain layer of a network: its name, the layer, and its parent modules, each with the layer's name in it."""

    name: str
    layer: Any  # nn.Conv2d or nn.Linear
    parents: list[tuple[nn.Module, str]] = field(default_factory=list)

    @property
    def geometry(self) -> str:
        layer, bias = self.layer, ' with bias' if self.layer.bias is not None else ''
        if isinstance(layer, nn.Linear):
            return f'linear from {layer.in_features} to {layer.out_features} features{bias}'
        extra = ', '.join(f'{key} {getattr(layer, key)}' for key in ('stride', 'padding', 'dilation', 'groups'))
        return (
            f'{"x".join(map(str, layer.kernel_size))} from {layer.in_channels} to {layer.out_channels} channels '
            f'({extra}){bias}'
        )


def repeated_layers(network: nn.Module, own_blocks: int = 1) -> list[RepeatedLayers]:
    """List the layers that could share: those of one name and shape in the blocks of a stage.

    A stage is an ``nn.Sequential`` or ``nn.ModuleList`` with two or more children of one class. A layer that repeats
    in several nested stages is listed for the innermost.

    Args:
        network (nn.Module): Any network.
        own_blocks (int): Number of blocks at the start of a stage to leave out. Defaults to 1.

    Returns:
        list[RepeatedLayers]: The groups. ``share_layers(network, stages=re.escape(stage),
        groups=[re.escape(group)], own_blocks=own_blocks, bank=...)`` makes exactly one of them.
    """
    places, found = plain_layers(network), []
    taken: set[str] = set()
    for stage in stages_of(network):
        for group, members in layers_by_name(network, stage, places, own_blocks).items():
            alike = most_alike(members)
            names = tuple(place.name for place in alike)
            if len(names) > 1 and not taken & set(names):
                taken |= set(names)
                weight = alike[0].layer.weight
                found.append(RepeatedLayers(stage, group, names, weight.shape, weight.numel()))
    order = list(places)
    return sorted(found, key=lambda group: order.index(group.layers[0]))


def plain_layers(network: nn.Module) -> dict[str, Place]:
    """The plain layers of a network that can share, by name. Weights with several users are left out."""
    users = Counter(id(weight) for module in network.modules() for weight in module._parameters.values())
    modules: dict[str, nn.Module] = {}
    places: dict[int, Place] = {}
    shared = None
    for name, module in network.named_modules(remove_duplicate=False):
        if shared is not None and name.startswith(shared):
            continue
        modules[name] = module
        if isinstance(module, SharedLayer):
            shared = f'{name}.'
            continue
        parent, _, child = name.rpartition('.')
        if type(module) in PLAIN and name and 'weight' in module._parameters:
            _add_place(places, name, module, modules[parent], child, users)
        elif type(module) is nn.MultiheadAttention and module.in_proj_weight is not None:
            _add_place(
                places, f'{name}.{PROJECTION}'.lstrip('.'), packed_projection(module), module, PROJECTION, users
            )
    return {place.name: place for place in places.values()}


def _add_place(
    places: dict[int, Place], name: str, layer: nn.Module, parent: nn.Module, child: str, users: Counter
) -> None:
    if users[id(layer.weight)] > 1:
        return
    place = places.setdefault(id(layer.weight), Place(name, layer))
    if all(each is not parent or other != child for each, other in place.parents):
        place.parents.append((parent, child))


def stages_of(network: nn.Module) -> list[str]:
    """The names of the stages of a network, inner ones first."""
    names = [
        name
        for name, module in network.named_modules()
        if isinstance(module, (nn.Sequential, nn.ModuleList))
        and max(Counter(map(type, module.children())).values(), default=0) > 1
    ]
    return sorted(names, key=lambda name: -name.count('.') if name else 1)


def layers_by_name(
    network: nn.Module, stage: str, places: dict[str, Place], own_blocks: int
) -> dict[str, list[Place]]:
    """The plain layers of a stage, after its first ``own_blocks`` blocks, by their names within the blocks."""
    kept = [name for name, _ in network.get_submodule(stage).named_children()][own_blocks:]
    inside = f'{stage}.' if stage else ''
    found: dict[str, list[Place]] = {}
    for name, place in places.items():
        block, _, inner = name[len(inside) :].partition('.')
        if name.startswith(inside) and block in kept:
            found.setdefault(inner, []).append(place)
    return found


def most_alike(members: list[Place]) -> list[Place]:
    """The largest set of layers with one geometry."""
    geometry, _ = Counter(place.geometry for place in members).most_common(1)[0]
    return [place for place in members if place.geometry == geometry]


def members_of(
    network: nn.Module, stage: str | None, pattern: str, places: dict[str, Place], own_blocks: int, same_shape: bool
) -> list[Place]:
    """The layers that a pattern matches in a stage or in the whole network."""
    if stage is None:
        return [place for name, place in places.items() if matches(pattern, name)]
    by_name = layers_by_name(network, stage, places, own_blocks if same_shape else 0)
    found = {
        place.name
        for name, members in by_name.items()
        if matches(pattern, name)
        for place in (most_alike(members) if same_shape else members)
    }
    return [place for name, place in places.items() if name in found]


def matches(pattern: str, name: str) -> bool:
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error as error:
        raise SharingError(f'The pattern {pattern!r} is not a regular expression: {error}.') from None
