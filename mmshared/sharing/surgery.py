"""From a plain network to a shared one and back."""
import re
from typing import Dict, Iterator, Optional, Sequence, Tuple, Union

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.modules.batchnorm import _BatchNorm

from .base import Bank, SharedConv2d, SharingError, generate_once


def share_convs(stages: Union[nn.Module, Sequence[nn.Module]],
                groups: Sequence[str],
                bank: Union[dict, Sequence[dict]],
                own_blocks: int = 1) -> None:
    """Make groups of convs of each stage share a bank, in place.

    A group has two convs or more: a stage with fewer of a pattern is left as it is. A bank whose convs may differ in
    shape (:attr:`Bank.same_shape` is False) takes a single conv too, and those of all blocks.

    Args:
        stages (nn.Module | Sequence[nn.Module]): A stage, whose children are its blocks, or several.
        groups (Sequence[str]): Regular expressions. Those convs of a stage whose whole name within their block
            matches one of them are a group: ``['conv[12]']`` is one bank for both, ``['conv1', 'conv2']`` two.
        bank (dict | Sequence[dict]): Config of the bank of each group: one for all, or a list of one for each.
        own_blocks (int): Number of blocks at the start of a stage that keep their own convs. Defaults to 1: the
            first block, which changes width or resolution. It does not apply to banks whose convs may differ.

    Raises:
        SharingError: If a pattern forms no group in any stage, or one of convs that differ in shape and may not.
    """
    stages = [stages] if isinstance(stages, nn.Module) else list(stages)
    for stage in stages:
        share_stage(stage, groups, bank, own_blocks)
    check_groups(stages, groups, [bank] * len(stages), own_blocks)


def share_stage(stage: nn.Module, groups: Sequence[str], bank: Union[dict, Sequence[dict]], own_blocks: int = 1
                ) -> None:
    """:func:`share_convs` for one stage, where a pattern may match nothing. Leaves the banks by their patterns in
    ``stage.banks``, a plain dict: as modules they belong to their first convs."""
    if isinstance(groups, str):
        raise SharingError(f'groups is a list of patterns, one for each group: write groups=[{groups!r}].')
    if not groups or len(set(groups)) < len(groups):
        raise SharingError(f'groups={list(groups)} has no pattern or one twice: name each group once.')
    banks = list(bank) if isinstance(bank, (list, tuple)) else [bank] * len(groups)
    if len(banks) != len(groups):
        raise SharingError(f'There are {len(banks)} banks for the groups {list(groups)}: give one for each, or a '
                           'single config for all.')
    for config in banks:
        if not isinstance(config, dict) or 'type' not in config:
            raise SharingError(f"bank={config!r} is no config of a bank: write bank=dict(type='TiedFilters'), say.")
    stage.banks = {}
    for pattern, config in zip(groups, banks):
        same_shape, kept_blocks = _demands(config, own_blocks)
        found = [(block.get_submodule(name.rpartition('.')[0]), name.rpartition('.')[2], conv)
                 for block, name, conv in _inner_convs(stage, kept_blocks)
                 if type(conv) is nn.Conv2d and _matches(pattern, name)]
        convs = [conv for _, _, conv in found]
        if len(convs) < 1 + same_shape:
            continue
        shapes = {_geometry(conv) for conv in convs}
        if same_shape and len(shapes) > 1:
            raise SharingError(f'The pattern {pattern!r} makes one group of convs that differ: '
                               f'{" and ".join(sorted(shapes))}. Give each kind a pattern of its own.')
        if any(conv.padding_mode != 'zeros' for conv in convs):
            raise SharingError(f'The pattern {pattern!r} matches convs with padding_mode={convs[0].padding_mode!r}, '
                               'which cannot be shared: leave them out of groups.')
        stage.banks[pattern] = MODELS.build(dict(config, convs=convs))
        for parent, name, conv in found:
            setattr(parent, name, stage.banks[pattern].make_conv(conv, following_norm(parent, name)))
    # Bases of one space start orthogonal to each other too: what the orthogonality loss asks of them.
    for bases in bases_by_space(stage.banks).values():
        if len(bases) > 1:
            together = nn.init.orthogonal_(torch.cat([basis.detach() for basis in bases.values()]))
            for basis, part in zip(bases.values(), together.split([len(basis) for basis in bases.values()])):
                basis.data.copy_(part)


def check_groups(stages: Sequence[nn.Module], groups: Sequence[str], banks: Sequence[Union[dict, Sequence[dict]]],
                 own_blocks: int = 1) -> None:
    """Raise a :class:`SharingError` if a pattern formed no group in any of the stages, which were shared with the bank
    of ``banks`` at their place: one for all groups, or a list of one for each."""
    for position, pattern in enumerate(groups):
        if any(pattern in stage.banks for stage in stages):
            continue
        demands = [_demands(bank if isinstance(bank, dict) else bank[position], own_blocks) for bank in banks]
        same_shape, kept_blocks = (max(each) for each in zip(*demands))
        convs = [(name, type(conv)) for stage, (_, kept) in zip(stages, demands)
                 for _, name, conv in _inner_convs(stage, kept)]
        there = ', '.join(dict.fromkeys(name for name, kind in convs if kind is nn.Conv2d)) or 'none'
        others = dict.fromkeys((name, kind) for name, kind in convs
                               if kind is not nn.Conv2d and _matches(pattern, name))
        reason = ''.join(f'; {name} is in the group of another pattern' if issubclass(kind, SharedConv2d) else
                         f'; {name} is a {kind.__name__}, which is never shared' for name, kind in others)
        where = 'of a stage, outside its first block, ' if kept_blocks else 'of a stage '
        count = 'two or more' if same_shape else 'one or more'
        raise SharingError(f'The pattern {pattern!r} forms no group: a group is {count} plain convs {where}whose '
                           f'whole name within the block matches. The convs there are: {there}{reason}.')


def _demands(bank: dict, own_blocks: int) -> Tuple[bool, int]:
    """Whether a bank wants convs of one shape, and how many blocks keep their own with it."""
    kind = MODELS.get(bank['type']) if isinstance(bank['type'], str) else bank['type']
    same_shape = getattr(kind, 'same_shape', True)
    return same_shape, own_blocks if same_shape else 0


def check_units(module: nn.Module) -> None:
    """Raise a :class:`SharingError` if FSDP holds a bank or a shared conv of a network in a unit of its own: the bank
    is not there while another unit is computed."""
    for name, unit in module.named_modules():
        if unit is not module and isinstance(unit, FullyShardedDataParallel) and any(
                isinstance(child, (Bank, SharedConv2d)) for child in unit.modules()):
            raise SharingError(f'FSDP makes {name} a unit of its own, and other convs share filters with it: leave '
                               'out auto_wrap_policy, so that the whole model is one unit, or give one that wraps no '
                               'part of the shared backbone.')


def shared_stages(module: nn.Module) -> Dict[str, Dict[str, Bank]]:
    """The banks of each stage of a network, by stage name and pattern; stages without a bank are left out."""
    stages = ((name, vars(stage).get('banks')) for name, stage in module.named_modules())
    return {name: banks for name, banks in stages if banks}


def bases_by_space(banks: Dict[str, Bank]) -> Dict[tuple, Dict[str, Tensor]]:
    """The bases of a stage, sorted by the space that their filters are of.

    Args:
        banks (dict[str, Bank]): The banks of the stage by pattern; those without a basis are left out.

    Returns:
        dict[tuple, dict[str, Tensor]]: For each shape of a filter the bases of such filters by pattern.
    """
    spaces: Dict[tuple, Dict[str, Tensor]] = {}
    for pattern, bank in banks.items():
        if bank.basis() is not None:
            spaces.setdefault(tuple(bank.basis().shape[1:]), {})[pattern] = bank.basis()
    return spaces


def fold_convs(module: nn.Module) -> nn.Module:
    """Replace each shared conv by the plain one that it equals in eval mode, in place: the inverse of
    :func:`share_convs`.

    A bias that the fold brings into a conv without one goes into the running mean of the batch norm behind it. So
    the state dict gets the keys of the plain network.

    Returns:
        nn.Module: The module itself.
    """
    with torch.no_grad(), generate_once(child for child in module.modules() if isinstance(child, Bank)):
        for parent in list(module.modules()):
            vars(parent).pop('banks', None)
            for name, child in list(parent.named_children()):
                if not isinstance(child, SharedConv2d):
                    continue
                conv, norm = child.fold(), following_norm(parent, name)
                if conv.bias is not None and child.bias is None and norm is not None:
                    norm.running_mean -= conv.bias
                    conv.bias = None
                setattr(parent, name, conv)
    return module


def following_norm(parent: nn.Module, name: str) -> Optional[_BatchNorm]:
    """The batch norm that comes right behind the child ``name`` of ``parent``, where one does."""
    children = list(parent._modules.items())
    position = [child for child, _ in children].index(name)
    conv, norm = children[position][1], (children + [('', None)])[position + 1][1]
    return norm if isinstance(norm, _BatchNorm) and norm.num_features == conv.out_channels else None


def _inner_convs(stage: nn.Module, own_blocks: int) -> Iterator[Tuple[nn.Module, str, nn.Module]]:
    """Whatever looks like a conv behind the first blocks of a stage: block, name within the block, conv."""
    for block in list(stage.children())[own_blocks:]:
        for name, module in block.named_modules():
            if isinstance(module, (nn.Conv2d, SharedConv2d)) or 'Conv2d' in type(module).__name__:
                yield block, name, module


def _matches(pattern: str, name: str) -> bool:
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error as error:
        raise SharingError(f'The pattern {pattern!r} in groups is no regular expression: {error}.') from None


def _geometry(conv: nn.Conv2d) -> str:
    kernel = 'x'.join(map(str, conv.kernel_size))
    extra = {'stride': conv.stride, 'padding': conv.padding, 'dilation': conv.dilation, 'groups': conv.groups}
    return (f'{kernel} from {conv.in_channels} to {conv.out_channels} channels ('
            + ', '.join(f'{key} {value}' for key, value in extra.items())
            + (', with bias)' if conv.bias is not None else ')'))
