"""From a plain network to a shared one and back, for modules and for their state dicts."""
import copy
import re
from typing import Dict, Iterator, List, Optional, Sequence, Tuple, Union

import torch
from mmengine.logging import print_log
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .base import Bank, SharedConv2d, SharingError

_WANTED = ('Nothing of it was loaded into the shared network. Give a checkpoint of the same network, either plain or '
           'shared by the same groups and bank.')


def share_convs(stages: Union[nn.Module, Sequence[nn.Module]], groups: Sequence[str], bank: dict) -> None:
    """Make groups of convs of each stage share a bank, in place.

    Two rules stand for options. The first block of a stage, which changes width or resolution, keeps its own convs.
    And a group has two convs or more: a stage with fewer of a pattern is left as it is.

    Args:
        stages (nn.Module | Sequence[nn.Module]): A stage, whose children are its blocks, or several.
        groups (Sequence[str]): Regular expressions. Those convs of a stage whose whole name within their block
            matches one of them are a group: ``['conv[12]']`` is one bank for both, ``['conv1', 'conv2']`` two.
        bank (dict): Config of the bank of each group.

    Raises:
        SharingError: If a pattern forms no group in any stage, or one of convs that differ in shape.
    """
    stages = [stages] if isinstance(stages, nn.Module) else list(stages)
    for stage in stages:
        share_stage(stage, groups, bank)
    check_groups(stages, groups)


def share_stage(stage: nn.Module, groups: Sequence[str], bank: dict) -> None:
    """:func:`share_convs` for one stage, where a pattern may match nothing. Leaves the banks by their patterns in
    ``stage.banks``, a plain dict: as modules they belong to their first convs."""
    if isinstance(groups, str):
        raise SharingError(f'groups is a list of patterns, one for each group: write groups=[{groups!r}].')
    if not groups or len(set(groups)) < len(groups):
        raise SharingError(f'groups={list(groups)} has no pattern or one twice: name each group once.')
    if not isinstance(bank, dict) or 'type' not in bank:
        raise SharingError(f"bank={bank!r} is no config of a bank: write bank=dict(type='TiedFilters'), say.")
    stage.banks = {}
    for pattern in groups:
        found = [(block.get_submodule(name.rpartition('.')[0]), name.rpartition('.')[2], conv)
                 for block, name, conv in _inner_convs(stage) if type(conv) is nn.Conv2d and _matches(pattern, name)]
        convs = [conv for _, _, conv in found]
        if len(convs) < 2:
            continue
        shapes = {_geometry(conv) for conv in convs}
        if len(shapes) > 1:
            raise SharingError(f'The pattern {pattern!r} makes one group of convs that differ: '
                               f'{" and ".join(sorted(shapes))}. Give each kind a pattern of its own.')
        if any(conv.padding_mode != 'zeros' for conv in convs):
            raise SharingError(f'The pattern {pattern!r} matches convs with padding_mode={convs[0].padding_mode!r}, '
                               'which cannot be shared: leave them out of groups.')
        stage.banks[pattern] = MODELS.build(dict(bank, convs=convs))
        for parent, name, conv in found:
            setattr(parent, name, stage.banks[pattern].make_conv(conv, following_norm(parent, name)))


def check_groups(stages: Sequence[nn.Module], groups: Sequence[str]) -> None:
    """Raise a :class:`SharingError` if a pattern formed no group in any of the stages."""
    for pattern in groups:
        if any(pattern in stage.banks for stage in stages):
            continue
        convs = [(name, type(conv)) for stage in stages for _, name, conv in _inner_convs(stage)]
        there = ', '.join(dict.fromkeys(name for name, kind in convs if kind is nn.Conv2d)) or 'none'
        others = dict.fromkeys((name, kind) for name, kind in convs
                               if kind is not nn.Conv2d and _matches(pattern, name))
        reason = ''.join(f'; {name} is in the group of another pattern' if issubclass(kind, SharedConv2d) else
                         f'; {name} is a {kind.__name__}, which is never shared' for name, kind in others)
        raise SharingError(
            f'The pattern {pattern!r} forms no group: a group is two or more plain convs of a stage, outside its '
            f'first block, whose whole name within the block matches. The convs there are: {there}{reason}.')


def shared_stages(module: nn.Module) -> Dict[str, Dict[str, Bank]]:
    """The banks of each stage of a network, by stage name and pattern; stages without a bank are left out."""
    stages = ((name, vars(stage).get('banks')) for name, stage in module.named_modules())
    return {name: banks for name, banks in stages if banks}


def fold_convs(module: nn.Module) -> nn.Module:
    """Replace each shared conv by the plain one that it equals in eval mode, in place: the inverse of
    :func:`share_convs`.

    A bias that the fold brings into a conv without one goes into the running mean of the batch norm behind it. So
    the state dict gets the keys of the plain network.

    Returns:
        nn.Module: The module itself.
    """
    for parent in list(module.modules()):
        vars(parent).pop('banks', None)
        for name, child in list(parent.named_children()):
            if not isinstance(child, SharedConv2d):
                continue
            conv, norm = child.fold(), following_norm(parent, name)
            if conv.bias is not None and child.bias is None and norm is not None:
                norm.running_mean -= conv.bias.detach()
                conv.bias = None
            setattr(parent, name, conv)
    return module


@torch.no_grad()
def share_state_dict(module: nn.Module, state_dict: Dict[str, Tensor], prefix: str = '') -> None:
    """Make a state dict that is to be loaded into a shared network fit it, in place, or refuse it.

    The kernels of a plain network become the parameters of the shared one (:meth:`Bank.fit`), with the relative
    error of each group, ``|kernels - fitted| / |kernels|`` in the Frobenius norm, in the log. What is shared as the
    network is stays as it is.

    Args:
        module (nn.Module): The shared network.
        state_dict (dict): The state dict. Keys that the network does not know are no matter of this function.
        prefix (str): What comes before the keys of the network in the state dict.

    Raises:
        SharingError: If the shared stages fit neither way. Nothing is changed then.
    """
    own, added, dropped, log = module.state_dict(), {}, [], []
    names = {conv: name for name, conv in module.named_modules() if isinstance(conv, SharedConv2d)}
    given = {key[len(prefix):]: value for key, value in state_dict.items() if key.startswith(prefix)}
    for stage, banks in shared_stages(module).items():
        inside = f'{stage}.' if stage else ''
        _refuse_other_network(inside, module.get_submodule(stage), own, given)
        for bank in banks.values():
            expected = [f'{names[conv]}.{key}' for conv in bank.convs for key in conv.state_dict()
                        if not key.endswith('num_batches_tracked')]
            dense = [f'{names[conv]}.weight' for conv in bank.convs]
            kernels = [given[key] for key in dense if key in given]
            if len(kernels) == len(dense):
                error = _fit(bank, names, kernels, added)
                dropped += dense
                log.append(f'{stage}: the kernels of {", ".join(names[conv][len(inside):] for conv in bank.convs)} '
                           f'became one {type(bank).__name__}, relative error {error:.4f}')
                expected = []
            missing = next((key for key in expected if key not in given), None)
            if missing is not None:
                raise SharingError(f'The checkpoint fits neither as a plain nor as a shared network: it has no '
                                   f'{dense[0]} and no {missing}. {_WANTED}')
            for conv in bank.convs:
                known = {f'{names[conv]}.{key}' for key in (*conv.state_dict(), 'weight')}
                alien = next((key for key in given if key.startswith(f'{names[conv]}.') and key not in known), None)
                if alien is not None:
                    raise SharingError(f'The checkpoint is shared in another way: it has {alien}, and here '
                                       f'{names[conv]} has no such tensor. {_WANTED}')
    for line in log:
        print_log(line, logger='current')
    for key in dropped:
        del state_dict[prefix + key]
    state_dict.update({prefix + key: value for key, value in added.items()})


def _fit(bank: Bank, names: Dict[SharedConv2d, str], kernels: List[Tensor], added: Dict[str, Tensor]) -> float:
    """Fit a copy of the bank to kernels, put its state into ``added`` and return the relative error."""
    for conv, kernel in zip(bank.convs, kernels):
        shape = (conv.out_channels, conv.in_channels // conv.groups, *conv.kernel_size)
        if tuple(kernel.shape) != shape:
            raise _mismatch(f'{names[conv]}.weight', kernel.shape, shape)
        if not kernel.isfinite().all():
            raise SharingError(f'The checkpoint holds numbers that are not finite in {names[conv]}.weight. {_WANTED}')
    fitted = copy.deepcopy(bank)
    for conv in fitted.convs:  # the first of them holds the bank
        conv.float().cpu()
    kernels = [kernel.float().cpu() for kernel in kernels]
    fitted.fit(kernels)
    error = norm = 0.
    for conv, copied, kernel in zip(bank.convs, fitted.convs, kernels):
        added.update({f'{names[conv]}.{key}': value for key, value in copied.state_dict().items() if key != 'bias'})
        error += (copied.dense()[0] - kernel).square().sum().item()
        norm += kernel.square().sum().item()
    return (error / norm)**0.5 if norm else 0.


def _refuse_other_network(inside: str, stage: nn.Module, own: Dict[str, Tensor], given: Dict[str, Tensor]) -> None:
    """Raise if the keys that a stage has in a checkpoint are those of another network."""
    blocks, there = [block for block, _ in stage.named_children()], set()
    for key, value in given.items():
        if not key.startswith(inside):
            continue
        if key in own and own[key].shape != value.shape:
            raise _mismatch(key, value.shape, own[key].shape)
        there.add(key[len(inside):].partition('.')[0])
    if there != set(blocks):
        raise SharingError(f'The checkpoint is of another network: {inside[:-1]} has {len(there)} blocks there and '
                           f'{len(blocks)} here. {_WANTED}')


def _mismatch(key: str, there: Sequence[int], here: Sequence[int]) -> SharingError:
    return SharingError(f'The checkpoint is of another network, or shared in another way: {key} has the shape '
                        f'{tuple(there)} there and {tuple(here)} here. {_WANTED}')


def following_norm(parent: nn.Module, name: str) -> Optional[_BatchNorm]:
    """The batch norm that comes right behind the child ``name`` of ``parent``, where one does."""
    children = list(parent._modules.items())
    position = [child for child, _ in children].index(name)
    conv, norm = children[position][1], (children + [('', None)])[position + 1][1]
    return norm if isinstance(norm, _BatchNorm) and norm.num_features == conv.out_channels else None


def _inner_convs(stage: nn.Module) -> Iterator[Tuple[nn.Module, str, nn.Module]]:
    """Whatever looks like a conv outside the first block of a stage: block, name within the block, conv."""
    for block in list(stage.children())[1:]:
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
