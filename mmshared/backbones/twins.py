"""Sharing twins of the libraries' classes: one mixin makes ``Shared<Name>`` of each of them."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable
from functools import wraps
from types import ModuleType
from typing import Any

import torch
from mmengine.model import BaseAveragedModel
from mmengine.registry import Registry
from torch import Tensor, nn

from ..sharing import SharingError, banks, share_layers
from ..sharing.bank import generate_once

_KEYS = {'groups', 'bank', 'stages', 'layers', 'own_blocks'}
# What the libraries call of a head in place of its forward.
_ENTRIES = ('loss', 'predict')


class SharingMixin:
    """Shares layers of a network after it is built: ``class SharedNet(SharingMixin, Net)``.

    Args:
        sharing (dict | list[dict]): The arguments of :func:`mmshared.share_layers`, or a list of such dicts, which are
            applied in order.
        *args: The arguments of the plain class.
        **kwargs: The same, by name.
    """

    plain: type[nn.Module]  # the class of the plain network

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        after = cls.__mro__[cls.__mro__.index(SharingMixin) + 1 :]
        cls.plain = vars(cls).get('plain') or next(each for each in after if issubclass(each, nn.Module))

    def __init__(self, *args: Any, sharing: dict | list[dict] | None = None, **kwargs: Any):
        sharings = list(sharing) if isinstance(sharing, (list, tuple)) else [sharing]
        for each in sharings:
            if not isinstance(each, dict) or not {'bank'} < set(each) <= _KEYS:
                raise SharingError(
                    f'{type(self).__name__} needs sharing=dict(groups=[...], bank=dict(type=...)), with '
                    'stages or own_blocks if you want them or with layers in place of groups, or a list '
                    f'of such, and got sharing={sharing}.'
                )
        super().__init__(*args, **kwargs)
        self.sharing = sharing
        if any(isinstance(part, BaseAveragedModel) for part in self.modules()):  # which has parameters by name
            raise SharingError(
                f'{type(self).__name__} keeps a moving average of parts of itself, which would not follow what is '
                'shared: share its backbone instead, by backbone=dict(type="Shared...", sharing=...).'
            )
        weights = _weights_of(self, kwargs.get('pretrained') is True)
        for each in sharings:
            share_layers(self, **each)
        if weights:
            try:
                self.load_state_dict(weights, strict=False)
            except SharingError as error:
                warnings.warn(
                    f'The layers that share lose the weights that {type(self).__name__} begins with: {error}'
                )

    def train(self, mode: bool = True) -> Any:
        """As in the plain network, which may freeze stages here: a bank in them that layers of others use learns."""
        trained = [(bank, each) for bank in banks(self) for each in bank.parameters() if each.requires_grad]
        found = super().train(mode)
        for bank, each in trained:
            # What the libraries freeze they put in eval mode.
            each.requires_grad_(not mode or any(layer.training for layer in bank.layers))
        return found

    def init_weights(self) -> None:
        """Initialise the plain network. Shared parameters keep the initial values of their bank, even if the library
        redraws all two-dimensional parameters, unless a checkpoint is loaded into them.

        The biases of shared layers are left to the library. If it looks for layers by their class, as mmpretrain's
        ``VisionTransformer`` does, they keep PyTorch's own draw.
        """
        found = banks(self)
        starts = [(bank, parameter, parameter.detach().clone()) for bank in found for parameter in _shared(bank)]
        for bank in found:
            bank.loaded = False
        if hasattr(super(), 'init_weights'):  # which networks that are no mmengine's modules lack
            super().init_weights()
        with torch.no_grad():
            for bank, parameter, start in starts:
                if not bank.loaded:
                    parameter.copy_(start)


def _weights_of(network: nn.Module, whole: bool) -> dict[str, Tensor]:
    """The weights that a network, or parts of it, have from the start, as those of timm and Hugging Face: others get
    theirs in ``init_weights``. On the meta device there are none."""
    if any(parameter.is_meta for parameter in network.parameters()):
        return {}
    found = network.state_dict() if whole else {}
    for name, part in network.named_modules():
        if getattr(part, '_is_init', False):
            found.update(part.state_dict(prefix=f'{name}.' if name else ''))
    return found


def _shared(bank: nn.Module) -> list[nn.Parameter]:
    """The parameters of a bank and its layers, without the layers' biases, which are left to the library."""
    return [
        *bank.parameters(),
        *(
            parameter
            for layer in bank.layers
            for name, parameter in layer.named_parameters()
            if name != 'bias' and not name.startswith('bank.')
        ),
    ]


def make_twins(networks: Iterable[Any], registry: Registry, module: str) -> dict[str, type]:
    """Make and register ``Shared<Name>`` for each network.

    Args:
        networks (Iterable): Classes of networks. Anything else is ignored, and so are classes that the registry does
            not know by name.
        registry (Registry): The registry of their library.
        module (str): Name of the module that holds the new classes.

    Returns:
        dict[str, type]: The classes by name.
    """
    twins = {}
    for parent in networks:
        if (
            inspect.isclass(parent)
            and issubclass(parent, nn.Module)
            and hasattr(parent, 'init_weights')
            and registry.module_dict.get(parent.__name__) is parent
            and not issubclass(parent, SharingMixin)
        ):
            name = f'Shared{parent.__name__}'
            doc = f'``{parent.__name__}`` whose layers share parameters. Takes all of its arguments, and ``sharing``.'
            body = {each: _in_one_pass(getattr(parent, each)) for each in _ENTRIES if hasattr(parent, each)}
            body.update({'__doc__': doc, '__module__': module})
            twins[name] = type(name, (SharingMixin, parent), body)
            registry.register_module(module=twins[name])
    return twins


def classes_of(registry: Registry, *packages: ModuleType) -> list[Any]:
    """The classes in a registry that are defined in some packages."""
    inside = tuple(f'{package.__name__}.' for package in packages)
    found = dict.fromkeys(registry.module_dict.values())  # some have several names
    return [each for each in found if each.__module__.startswith(inside)]


def _in_one_pass(method: Callable) -> Callable:
    """A method in which each bank generates once, as in a forward pass."""

    @wraps(method)
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return method(self, *args, **kwargs)
        with generate_once(self):
            return method(self, *args, **kwargs)

    return call
