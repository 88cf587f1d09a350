"""A checkpoint of the plain network, loaded into the shared one; one that fits neither way, refused."""
import copy
from typing import Dict, List, NamedTuple

import torch
from torch import Tensor, nn

from .base import Bank, SharedConv2d, SharingError
from .surgery import shared_stages

_WANTED = ('Nothing of it was loaded into the shared network. Give a checkpoint of the same network, either plain or '
           'shared by the same groups and bank; tools/model_converters has what makes others fit.')


class Conversion(NamedTuple):
    """A group of plain kernels that became a bank.

    Attributes:
        stage (str): The name of the stage.
        convs (list[str]): The names of the convs of the group within it.
        bank (Bank): The bank fitted to their kernels, a copy of the network's own.
        kernels (list[Tensor]): The kernels, (O, I / groups, k, k) each.
        error (float): ``|kernels - fitted| / |kernels|`` in the Frobenius norm.
    """

    stage: str
    convs: List[str]
    bank: Bank
    kernels: List[Tensor]
    error: float

    def __str__(self) -> str:
        return (f'{self.stage}: the kernels of {", ".join(self.convs)} became one {type(self.bank).__name__}, '
                f'relative error {self.error:.4f}')


@torch.no_grad()
def share_state_dict(module: nn.Module, state_dict: Dict[str, Tensor], prefix: str = '') -> List[Conversion]:
    """Make a state dict that is to be loaded into a shared network fit it, in place, or refuse it.

    The kernels of a plain network become the parameters of the shared one (:meth:`Bank.fit`). What is shared as the
    network is stays as it is.

    Args:
        module (nn.Module): The shared network.
        state_dict (dict): The state dict. What it holds or lacks outside the convs that share is as ever a matter of
            the loader.
        prefix (str): What comes before the keys of the network in the state dict.

    Returns:
        list[Conversion]: The groups that were plain.

    Raises:
        SharingError: If the shared stages fit neither way. Nothing is changed then.
    """
    names = {conv: name for name, conv in module.named_modules() if isinstance(conv, SharedConv2d)}
    given = {key[len(prefix):]: value for key, value in state_dict.items() if key.startswith(prefix)}
    added, dropped, conversions = {}, [], []
    for stage, banks in shared_stages(module).items():
        inside = f'{stage}.' if stage else ''
        _check_stage(module.get_submodule(stage), inside, given)
        for bank in banks.values():
            group = {names[conv]: conv for conv in bank.convs}
            _check_convs(group, given)
            dense = [f'{name}.weight' for name in group]
            if all(key in given for key in dense):
                kernels = [given[key].float().cpu() for key in dense]
                fitted, error = _fit(bank, kernels)
                added.update({f'{name}.{key}': value for name, conv in zip(group, fitted.convs)
                              for key, value in conv.state_dict().items() if key != 'bias'})
                dropped += dense
                convs = [name[len(inside):] for name in group]
                conversions.append(Conversion(stage, convs, fitted, kernels, error))
    for key in dropped:
        del state_dict[prefix + key]
    state_dict.update({prefix + key: value for key, value in added.items()})
    return conversions


def _check_stage(stage: nn.Module, inside: str, given: Dict[str, Tensor]) -> None:
    """Raise if what a checkpoint has of a stage, under keys that begin with ``inside``, is of another network."""
    own, blocks = stage.state_dict(), [name for name, _ in stage.named_children()]
    keys = [key[len(inside):] for key in given if key.startswith(inside)]
    there = {key.partition('.')[0] for key in keys}
    if there != set(blocks):
        raise SharingError(f'The checkpoint is of another network: {inside[:-1]} has {len(there)} blocks there and '
                           f'{len(blocks)} here. {_WANTED}')
    for key in keys:
        if key in own and own[key].shape != given[inside + key].shape:
            _raise_shape(inside + key, given, own[key].shape)


def _check_convs(group: Dict[str, SharedConv2d], given: Dict[str, Tensor]) -> None:
    """Raise unless a checkpoint has what the convs of a group need, shared or plain, and nothing else of them."""
    dense = [f'{name}.weight' for name in group]
    missing = [f'{name}.{key}' for name, conv in group.items() for key in conv.state_dict()
               if f'{name}.{key}' not in given and not key.endswith('num_batches_tracked')]
    if missing and not all(key in given for key in dense):
        raise SharingError(f'The checkpoint fits neither as a plain nor as a shared network: it has no '
                           f'{next(key for key in dense if key not in given)} and no {missing[0]}. {_WANTED}')
    for name, conv in group.items():
        known = {f'{name}.{key}' for key in (*conv.state_dict(), 'weight')}
        alien = next((key for key in given if key.startswith(f'{name}.') and key not in known), None)
        if alien is not None:
            raise SharingError(f'The checkpoint is shared in another way: it has {alien}, and {name} has no such '
                               f'tensor here. {_WANTED}')
        kernel = given.get(f'{name}.weight')
        shape = (conv.out_channels, conv.in_channels // conv.groups, *conv.kernel_size)
        if kernel is not None and kernel.shape != shape:
            _raise_shape(f'{name}.weight', given, shape)
        if kernel is not None and not kernel.isfinite().all():
            raise SharingError(f'The checkpoint holds numbers that are not finite in {name}.weight. {_WANTED}')


def _raise_shape(key: str, given: Dict[str, Tensor], here: tuple) -> None:
    raise SharingError(f'The checkpoint is of another network, or shared in another way: {key} has the shape '
                       f'{tuple(given[key].shape)} there and {tuple(here)} here. {_WANTED}')


def _fit(bank: Bank, kernels: List[Tensor]):
    """A copy of a bank fitted to kernels, and the relative error."""
    fitted = copy.deepcopy(bank)
    for conv in fitted.convs:  # the first of them holds the bank
        conv.float().cpu()
    fitted.fit(kernels)
    error = sum((conv.dense()[0] - kernel).square().sum() for conv, kernel in zip(fitted.convs, kernels))
    norm = sum(kernel.square().sum() for kernel in kernels)
    return fitted, (error / norm).sqrt().item() if norm else 0.
