"""From a plain network to a shared one and back."""

from __future__ import annotations

import copy
import difflib
import inspect
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from mmcv.cnn import ConvModule
from mmcv.cnn.bricks import wrappers
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.utils._pytree import tree_leaves

from .attention import PROJECTION, packed_projection, put
from .bank import Bank, ForwardPass, SharedLayer, SharingError, bases_by_space
from .state_dict import load_shared

#: The classes of the layers that can share. (Subclasses compute something else, or more.)
PLAIN = (nn.Conv2d, nn.Linear, NonDynamicallyQuantizableLinear, wrappers.Conv2d, wrappers.Linear)


class RepeatedLayers(NamedTuple):
    """Layers of one name and shape in the blocks of a stage: what could share.

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
class _Place:
    """A plain layer of a network: its name, itself, and the modules that it is a child of, with its name there."""

    name: str
    layer: nn.Module
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

    A stage is an ``nn.Sequential`` or ``nn.ModuleList`` with two or more children of one class. A layer that is
    repeated in several, one within the other, is listed for the innermost.

    Args:
        network (nn.Module): Any network.
        own_blocks (int): Number of blocks at the start of a stage that are left out. Defaults to 1.

    Returns:
        list[RepeatedLayers]: The groups. Of each ``share_layers(network, stages=re.escape(stage),
        groups=[re.escape(group)], own_blocks=own_blocks, bank=...)`` makes exactly that group.
    """
    places, found, taken = _places(network), [], set()
    for stage in _stages(network):
        for group, members in _by_name(network, stage, places, own_blocks).items():
            alike = _alike(members)
            names = tuple(place.name for place in alike)
            if len(names) > 1 and not taken & set(names):
                taken |= set(names)
                weight = alike[0].layer.weight
                found.append(RepeatedLayers(stage, group, names, weight.shape, weight.numel()))
    order = list(places)
    return sorted(found, key=lambda group: order.index(group.layers[0]))


def share_layers(
    network: nn.Module,
    groups: Sequence[str] | None = None,
    bank: dict | Sequence[dict] | None = None,
    stages: str | None = None,
    layers: Sequence[str] | str | None = None,
    own_blocks: int = 1,
) -> list[Bank]:
    """Make groups of layers of a network share a bank each, in place: convs (``nn.Conv2d``) and linears
    (``nn.Linear``), mmcv's wrappers of both, and the packed input projections of ``nn.MultiheadAttention``
    (``in_proj``).

    A group is the layers whose names within the blocks of a stage match a pattern, or all layers of the network whose
    full names do. Of the layers of one name in a stage those that differ from most keep their own weights. A stage
    with fewer than two layers of a pattern is left as it is; where layers may differ in shape
    (:attr:`Bank.same_shape` is False) one is enough, and the first blocks share too.

    From then on a plain checkpoint is fitted when it is loaded, and one that fits neither way is refused; each bank
    generates once in a forward pass of the network.

    Args:
        network (nn.Module): Any network.
        groups (Sequence[str], optional): Regular expressions. Those layers of a stage whose whole name within their
            block matches one of them are a group: ``['conv[12]']`` is one bank for both, ``['conv1', 'conv2']`` two.
        bank (dict | Sequence[dict]): Config of the bank of each group: one for all, or a list of one for each.
        stages (str, optional): A regular expression for the full names of the stages that share. Defaults to all.
        layers (Sequence[str] | str, optional): In place of ``groups`` and ``stages``, regular expressions for the full
            names of layers: all that match one are a group. It may be of one layer if the bank makes that smaller.
        own_blocks (int): Number of blocks at the start of a stage that keep their own layers. Defaults to 1: the
            first block, which in a ResNet changes width or resolution.

    Returns:
        list[Bank]: The banks that were made.

    Raises:
        SharingError: If a pattern forms no group, or one of layers that differ and may not, or if a bank does not fit.
            The network is as it was then.
    """
    patterns = _check_patterns(groups, stages, layers, own_blocks)
    configs = list(bank) if isinstance(bank, (list, tuple)) else [bank] * len(patterns)
    if len(configs) != len(patterns):
        raise SharingError(
            f'There are {len(configs)} banks for the groups {patterns}: give one for each, or a single config for all.'
        )
    kinds = [bank_class(config) for config in configs]
    places = _places(network)
    names = [name for name in _stages(network) if stages is None or _matches(stages, name)]
    if stages is not None and not names:
        raise SharingError(
            f'stages={stages!r} is the name of no stage: there are {_some(_stages(network)) or "none"}.'
        )
    found: list[tuple[str | None, int, list[_Place]]] = []
    taken: set[str] = set()
    for stage in [None] if layers is not None else names:
        for index, pattern in enumerate(patterns):
            members = _members(network, stage, pattern, places, own_blocks, kinds[index].same_shape)
            members = [place for place in members if place.name not in taken]
            enough = 1 if stage is None or not kinds[index].same_shape else 2
            if len(members) >= enough:
                _check_members(pattern, members, kinds[index])
                found.append((stage, index, members))
                taken |= {place.name for place in members}
    for index, pattern in enumerate(patterns):
        if all(index != other for _, other, _ in found):
            kept = own_blocks if kinds[index].same_shape else 0
            raise SharingError(_no_group(network, pattern, names, layers, places, kept, kinds[index].same_shape))
    before = sum(place.layer.weight.numel() for _, _, members in found for place in members)
    last = torch.channels_last if is_channels_last(network) else torch.contiguous_format
    made, shared = [], []
    for stage, index, members in found:
        each = make_bank(configs[index], [place.layer for place in members])
        each.stage, each.group = stage, patterns[index]
        each.names = tuple(place.name for place in members)
        for place in members:
            norm = following_norm(*place.parents[0])
            layer = each.make_layer(place.layer, norm)
            trained = place.layer.weight.requires_grad
            for name, parameter in layer.named_parameters(recurse=True):
                if name != 'bias' and not name.startswith('bank.'):
                    parameter.requires_grad_(trained and parameter.requires_grad)
            layer.train(place.layer.training)
            shared.append((place, layer))
        each.requires_grad_(any(place.layer.weight.requires_grad for place in members))
        made.append(each)
    _start_orthogonal(made)
    after = sum(p.numel() for p in {p for _, layer in shared for p in layer.parameters() if p is not layer.bias})
    if layers is not None and after >= before and any(len(members) < 2 for _, _, members in found):
        raise SharingError(
            f'A group of one layer is allowed where the bank makes it smaller, and {patterns} would have '
            f'{after:,} parameters for {before:,}: name more layers, or take a smaller bank.'
        )
    if after >= before:
        warnings.warn(
            f'Sharing saves nothing here: the layers of {patterns} have {after:,} parameters for {before:,} '
            'without it. Take a smaller bank.'
        )
    for place, layer in shared:
        layer.to(memory_format=last)
        for parent, name in place.parents:
            put(parent, name, layer)
    _leave_hooks(network, made)
    return made


def make_bank(config: dict, layers: Sequence[nn.Module]) -> Bank:
    """Make the bank of a config for plain layers.

    Raises:
        SharingError: If its arguments do not fit.
    """
    kind, arguments = bank_class(config), {key: value for key, value in config.items() if key != 'type'}
    try:
        inspect.signature(kind).bind(layers=layers, **arguments)
    except TypeError as error:
        raise SharingError(f'The arguments of bank={dict(config)!r} do not fit {kind.__name__}: {error}.') from None
    return kind(layers=layers, **arguments)


def bank_class(config: dict) -> type[Bank]:
    """The class of the bank of a config.

    Raises:
        SharingError: If there is none.
    """
    if not isinstance(config, dict) or 'type' not in config:
        raise SharingError(f"bank={config!r} is no config of a bank: write for example bank=dict(type='TiedFilters').")
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
        raise SharingError(f'{config["type"]} is no bank.')
    return kind


def fold_layers(network: nn.Module) -> nn.Module:
    """Replace each shared layer by the plain one that it equals in eval mode, in place: the inverse of
    :func:`share_layers`.

    A bias that the fold brings into a layer without one goes into the running means of the batch norms that see it, so
    that the state dict gets the keys of the plain network. This is tried on random inputs of the modules around; where
    it changes the output the bias stays.

    Returns:
        nn.Module: The module itself.

    Raises:
        SharingError: If layers outside of the module share with layers in it. Nothing is changed then.
    """
    inside = {module for module in network.modules() if isinstance(module, SharedLayer)}
    outside = [
        name for layer in inside for name, each in zip(layer.bank.names, layer.bank.layers) if each not in inside
    ]
    if outside:
        raise SharingError(
            f'{outside[0]} shares with layers of this module and is no part of it: fold the whole network.'
        )
    last = torch.channels_last if is_channels_last(network) else torch.contiguous_format
    plain: dict[SharedLayer, nn.Module] = {}
    added: list[nn.Module] = []
    with torch.no_grad():
        for layer in inside:
            plain[layer] = layer.fold().to(memory_format=last)
            if layer.bias is None and plain[layer].bias is not None:
                added.append(plain[layer])
        for parent in list(network.modules()):
            for name, child in list(parent._modules.items()):
                if isinstance(child, SharedLayer):
                    put(parent, name, plain[child])
        take_hooks(network)
        if added:
            _move_biases(network, added)
    return network


def _move_biases(network: nn.Module, layers: list[nn.Module]) -> None:
    """Move the biases of convs into the norms that see them, in the smallest modules where that can be done."""
    left = [layer for layer in layers if not layer.weight.is_meta]
    for module in reversed(list(network.modules())):  # children before their parents
        there = set(module.modules())
        mine = [layer for layer in left if layer in there and layer is not module]
        if mine:
            moved = mine if _move_together(module, mine) else [each for each in mine if _move_together(module, [each])]
            left = [layer for layer in left if layer not in moved]


def _move_together(module: nn.Module, layers: list[nn.Module]) -> bool:
    """Move the biases of layers of a module into the norms that see them, if its output is the same then.

    It is tried on a copy in float64. A bias reaches a norm as a constant of each channel, by whatever way: what the
    mean of the norm has to become is the difference of its inputs with the bias and without.
    """
    twin = copy.deepcopy(module).double()
    twin.eval()  # which returns nothing in mmdet
    twins = dict(zip(module.modules(), twin.modules()))
    for size in (8, 64):
        try:
            shifts = _shifts(twin, [twins[layer] for layer in layers], size)
        except Exception:  # a module that is not called with one image, or not of this size
            continue
        if shifts is not None:
            for layer in layers:
                layer.bias = None
            for norm in twins:
                if twins[norm] in shifts:
                    norm.running_mean += shifts[twins[norm]].to(norm.running_mean)
            return True
    return False


def _shifts(module: nn.Module, layers: list[nn.Module], size: int) -> dict[nn.Module, Tensor] | None:
    """By how much the running mean of each norm has to change if layers are to lose their biases; None if that cannot
    be done."""
    norms = [each for each in module.modules() if isinstance(each, _BatchNorm) and each.running_mean is not None]
    channels = next(each.in_channels for each in module.modules() if isinstance(each, nn.Conv2d))
    x = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    x = x.to(layers[0].weight.device)
    inputs: dict[nn.Module, list[Tensor]] = {norm: [] for norm in norms}
    called, shifts, fits = set(), {}, []
    handles = [norm.register_forward_pre_hook(lambda norm, args: inputs[norm].append(args[0])) for norm in norms]
    handles += [layer.register_forward_hook(lambda layer, *_: called.add(layer)) for layer in layers]

    def follow(norm: nn.Module, args: tuple[Tensor]) -> None:
        before = inputs[norm].pop(0)
        change = args[0] - before
        shift = change.mean([axis for axis in range(change.dim()) if axis != 1])  # (channels, )
        scale = before.abs().max()
        spread = (change - shift.view(-1, *[1] * (change.dim() - 2))).abs().max()
        shift = shift * (shift.abs() > 1e-12 * scale)
        fits.append(bool(spread <= 1e-9 * scale) and (change[0, 0].numel() > 1 or not shift.any()))
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


def following_norm(parent: nn.Module, name: str) -> _BatchNorm | None:
    """The batch norm that is registered right behind the child ``name`` of a module, or is that of a ``ConvModule``:
    a guess, good enough for its kind."""
    children = list(parent._modules.items())
    names = [child for child, _ in children]
    if name not in names:
        return None
    layer, norm = children[names.index(name)][1], (children + [('', None)])[names.index(name) + 1][1]
    if isinstance(parent, ConvModule):
        norm = parent.norm if parent.with_norm else None
    width = getattr(layer, 'out_channels', None)
    return norm if isinstance(norm, _BatchNorm) and norm.num_features == width else None


def is_channels_last(network: nn.Module) -> bool:
    """Whether a network keeps its weights in the memory format of channels last."""
    return any(
        p.dim() == 4 and p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous()
        for p in network.parameters()
    )


def _start_orthogonal(banks: list[Bank]) -> None:
    """Let bases of one space start orthogonal to each other too: what the orthogonality loss asks of them."""
    named = {f'{bank.stage}.{bank.group}': bank for bank in banks if bank.orthogonal_start}
    for space in bases_by_space(named):
        if len(space) > 1:
            bases = [bank.basis() for bank in space.values()]
            together = nn.init.orthogonal_(torch.cat([basis.detach() for basis in bases]))
            for basis, part in zip(bases, together.split([len(basis) for basis in bases])):
                basis.data.copy_(part)


def _leave_hooks(network: nn.Module, made: list[Bank]) -> None:
    """Leave on a network what keeps the promises of :func:`share_layers`."""
    passes = [
        hook.__self__
        for hook in network._forward_pre_hooks.values()
        if isinstance(getattr(hook, '__self__', None), ForwardPass)
    ]
    if passes:
        passes[0].banks += made
    else:
        each = ForwardPass(made)
        network.register_forward_pre_hook(each.begin)
        network.register_forward_hook(each.end, always_call=True)
    names = {name for bank in made for name in bank.names}
    for name, module in network.named_modules():
        # Each module around a shared layer: what is loaded into a part of the network is looked at too.
        around = not name or any(each.startswith(f'{name}.') for each in names)
        if (
            around
            and not isinstance(module, SharedLayer)
            and not any(hook.hook is load_shared for hook in module._load_state_dict_pre_hooks.values())
        ):
            module.register_load_state_dict_pre_hook(load_shared)


def take_hooks(network: nn.Module) -> None:
    """Take away what :func:`_leave_hooks` left."""
    for module in network.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [
                key for key, hook in hooks.items() if isinstance(getattr(hook, '__self__', None), ForwardPass)
            ]:
                del hooks[key]
                module._forward_hooks_always_called.pop(key, None)
        loads = module._load_state_dict_pre_hooks
        for key in [key for key, hook in loads.items() if hook.hook is load_shared]:
            del loads[key]


def _places(network: nn.Module) -> dict[str, _Place]:
    """The plain layers of a network that can share, by name. Weights that have several users are left out."""
    users = Counter(id(weight) for module in network.modules() for weight in module._parameters.values())
    modules, places, shared = {}, {}, None
    for name, module in network.named_modules(remove_duplicate=False):
        if shared is not None and name.startswith(shared):
            continue
        modules[name] = module
        if isinstance(module, SharedLayer):
            shared = f'{name}.'
            continue
        parent, _, child = name.rpartition('.')
        if type(module) in PLAIN and name:
            _add_place(places, name, module, modules[parent], child, users)
        elif type(module) is nn.MultiheadAttention and module.in_proj_weight is not None:
            _add_place(
                places, f'{name}.{PROJECTION}'.lstrip('.'), packed_projection(module), module, PROJECTION, users
            )
    return {place.name: place for place in places.values()}


def _add_place(
    places: dict[int, _Place], name: str, layer: nn.Module, parent: nn.Module, child: str, users: Counter
) -> None:
    if users[id(layer.weight)] > 1:
        return
    place = places.setdefault(id(layer.weight), _Place(name, layer))
    if all(each is not parent or other != child for each, other in place.parents):
        place.parents.append((parent, child))


def _stages(network: nn.Module) -> list[str]:
    """The names of the stages of a network, inner ones first."""
    names = [
        name
        for name, module in network.named_modules()
        if isinstance(module, (nn.Sequential, nn.ModuleList))
        and max(Counter(map(type, module.children())).values(), default=0) > 1
    ]
    return sorted(names, key=lambda name: -name.count('.') if name else 1)


def _by_name(network: nn.Module, stage: str, places: dict[str, _Place], own_blocks: int) -> dict[str, list[_Place]]:
    """The plain layers of a stage, behind its first blocks, by their names within the blocks."""
    kept = [name for name, _ in network.get_submodule(stage).named_children()][own_blocks:]
    inside, found = f'{stage}.' if stage else '', {}
    for name, place in places.items():
        block, _, inner = name[len(inside) :].partition('.')
        if name.startswith(inside) and block in kept:
            found.setdefault(inner, []).append(place)
    return found


def _alike(members: list[_Place]) -> list[_Place]:
    """The largest set of layers of one geometry."""
    geometry, _ = Counter(place.geometry for place in members).most_common(1)[0]
    return [place for place in members if place.geometry == geometry]


def _members(
    network: nn.Module, stage: str | None, pattern: str, places: dict[str, _Place], own_blocks: int, same_shape: bool
) -> list[_Place]:
    """The layers that a pattern names, of a stage or of the whole network."""
    if stage is None:
        return [place for name, place in places.items() if _matches(pattern, name)]
    by_name = _by_name(network, stage, places, own_blocks if same_shape else 0)
    found = {
        place.name
        for name, members in by_name.items()
        if _matches(pattern, name)
        for place in (_alike(members) if same_shape else members)
    }
    return [place for name, place in places.items() if name in found]


def _check_patterns(groups, stages, layers, own_blocks: int) -> list[str]:
    """The patterns of the groups that are asked for, if they are asked for well."""
    if (groups is None) == (layers is None):
        raise SharingError(
            'Say which layers are to share: either by groups, patterns of names within the blocks of '
            'stages, or by layers, patterns of full names.'
        )
    if layers is not None and stages is not None:
        raise SharingError('stages narrows groups; layers are full names: leave one of them out.')
    if isinstance(groups, str):
        raise SharingError(f'groups is a list of patterns, one for each group: write groups=[{groups!r}].')
    patterns = [layers] if isinstance(layers, str) else list(groups if layers is None else layers)
    if not patterns or len(set(patterns)) < len(patterns):
        raise SharingError(
            f'{"groups" if layers is None else "layers"}={patterns} has no pattern or one twice: name each group once.'
        )
    if not isinstance(own_blocks, int) or own_blocks < 0:
        raise SharingError(f'own_blocks={own_blocks!r} is no number of blocks: give 0 or more.')
    return patterns


def _check_members(pattern: str, members: list[_Place], kind: type[Bank]) -> None:
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


def _no_group(
    network: nn.Module,
    pattern: str,
    stages: list[str],
    layers,
    places: dict[str, _Place],
    own_blocks: int,
    same_shape: bool,
) -> str:
    """Why a pattern forms no group, and what there is."""
    if layers is not None:
        nearest = difflib.get_close_matches(pattern, places, n=5, cutoff=0)
        return (
            f'The pattern {pattern!r} in layers matches the whole name of no layer that can share (or only those of '
            f'another pattern): there are {_some(nearest)}.'
        )
    there: dict[str, int] = {}
    for stage in stages:
        for name, members in _by_name(network, stage, places, own_blocks).items():
            there[name] = max(there.get(name, 0), len(members))
    others = {}
    for stage in stages:
        for block in list(network.get_submodule(stage).children())[own_blocks:]:
            for name, module in block.named_modules():
                shared = isinstance(module, SharedLayer)
                if _matches(pattern, name) and (shared or hasattr(module, 'weight')) and type(module) not in PLAIN:
                    others[name] = (
                        'shares already' if shared else f'is a {type(module).__name__}, which is never shared'
                    )
    others.update(
        {
            name: 'is in the group of another pattern' if times > 1 else 'is there only once in a stage'
            for name, times in there.items()
            if _matches(pattern, name)
        }
    )
    reason = ''.join(f'; {name} {why}' for name, why in others.items())
    where = 'of a stage, outside its first block, ' if own_blocks else 'of a stage '
    return (
        f'The pattern {pattern!r} forms no group: a group is {"two" if same_shape else "one"} or more plain convs '
        f'or linears {where}whose whole name within the block matches. The layers there are: '
        f'{_some(list(filter(None, there))) or "none"}{reason}.'
    )


def _some(names: list[str], most: int = 24) -> str:
    return ', '.join(names[:most]) + (f' and {len(names) - most} more' if len(names) > most else '')


def _matches(pattern: str, name: str) -> bool:
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error as error:
        raise SharingError(f'The pattern {pattern!r} is no regular expression: {error}.') from None
