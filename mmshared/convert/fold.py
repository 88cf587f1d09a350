"""Converts shared networks to plain ones: of the stock classes, and with the keys of torchvision."""

from __future__ import annotations

import copy
import inspect
import sys
from pathlib import Path
from typing import NamedTuple

import torch
import torchvision
from mmengine.config import Config
from torch import Tensor, nn

from ..engine.build import build_empty, build_model, feature_maps
from ..engine.checkpoint import written_whole
from ..engine.config import drop_hooks, plain_twin
from ..sharing import Bank, SharedLayer, SharingError, banks, fold_layers
from ..sharing.deployment import relative_difference

TOLERANCE = 1e-4


class Folded(NamedTuple):
    """A shared network, folded into a plain one.

    Attributes:
        config (Config): The config of the plain network.
        plain (nn.Module): The plain network, in eval mode.
        difference (float): The largest relative difference of its outputs from those of the shared one.
    """

    config: Config
    plain: nn.Module
    difference: float


@torch.no_grad()
def fold_model(cfg: Config, shared: nn.Module, images: Tensor) -> Folded:
    """Fold a model into one of the stock classes and compare their outputs; of a detector, the maps of its neck.

    Args:
        cfg (Config): The config of the shared model.
        shared (nn.Module): The shared model, in eval mode. It is not changed.
        images (Tensor): Images to compare the outputs on, (N, C, H, W).

    Raises:
        SharingError: If the model shares nothing, if the stock class lacks a bias that folding adds, or if the outputs
            differ by more than a relative 1e-4.
    """
    if not banks(shared):
        raise SharingError('The network of this config shares nothing: there is nothing to fold.')
    stock = stock_config(cfg)
    plain = build_model(stock)
    if banks(plain):
        raise SharingError(
            'The network shares layers by its own code, also without sharing in its config: give its class a twin '
            '(docs/en/choosing_groups_and_banks.md), or use fold_layers(model) in Python.'
        )
    state_dict = fold_layers(copy.deepcopy(shared)).state_dict()
    added = sorted(state_dict.keys() - plain.state_dict().keys())
    if added:
        raise SharingError(
            f'Folding adds {added[0]}, which no batch norm behind it takes and for which the plain network of the '
            'config has no place: use fold_layers(model) in Python, which keeps it.'
        )
    plain.load_state_dict(state_dict, strict=True)
    plain.eval()
    difference = relative_difference(feature_maps(plain, images), feature_maps(shared, images))
    if not difference < TOLERANCE:
        raise SharingError(
            f'The outputs of the folded network differ by a relative {difference:.2g}, more than {TOLERANCE:g}.'
        )
    return Folded(stock, plain, difference)


def stock_config(cfg: Config) -> Config:
    """The config of the plain network: without sharing, without the hooks and the Runner of mmshared, and without the
    checkpoint and the folder of the training.

    It imports mmshared if the plain network is one of its own, and no module that only defines banks. A
    detector's or segmentor's tries to import mmcv's operators from it: without mmshared, the network runs where mmcv
    has its compiled ones.
    """
    stock = drop_hooks(Config(copy.deepcopy(cfg.to_dict())))
    stock.model = plain_twin(stock.model)
    for key in ('runner_type', 'load_from', 'resume', 'work_dir'):
        stock.pop(key, None)
    imports = (stock.pop('custom_imports', None) or {}).get('imports', [])
    imports = [name for name in ([imports] if isinstance(imports, str) else imports) if name != 'mmshared']
    imports = [name for name in imports if not _is_of_banks(name)]
    if any(type(module).__module__.startswith('mmshared') for module in build_empty(stock).modules()):
        imports.insert(0, 'mmshared')
    elif stock.default_scope != 'mmpretrain':  # which uses no operator of mmcv
        imports.insert(0, 'mmshared.compat')
    if imports:
        stock.custom_imports = dict(imports=imports, allow_failed_imports='mmshared.compat' in imports)
    return stock


def _is_of_banks(name: str) -> bool:
    """Whether the classes of a module that was imported are banks and shared layers."""
    values = vars(sys.modules[name]).values() if name in sys.modules else ()
    kinds = [each for each in values if inspect.isclass(each) and each.__module__ == name]
    return bool(kinds) and all(issubclass(each, (Bank, SharedLayer)) for each in kinds)


def to_torchvision(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of a plain classifier of mmpretrain with the keys of the same ResNet in torchvision.

    Raises:
        SharingError: If torchvision has no such network.
    """
    state_dict = {
        key.replace('backbone.', '', 1).replace('head.fc.', 'fc.', 1): tensor
        for key, tensor in model.state_dict().items()
    }
    shapes = {key: tensor.shape for key, tensor in state_dict.items()}
    classes = len(state_dict.get('fc.weight', ()))
    for name in torchvision.models.list_models(torchvision.models, include='*res*'):
        with torch.device('meta'):
            twin = torchvision.models.get_model(name, num_classes=classes)
        if {key: tensor.shape for key, tensor in twin.state_dict().items()} == shapes:
            break
    else:
        raise SharingError(
            'Only classifiers with the layers of a ResNet, ResNeXt or wide ResNet of torchvision have its keys, and '
            'this is not one.'
        )
    twin.load_state_dict(state_dict, strict=True, assign=True)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        difference = relative_difference([twin.eval()(images)], [model(images)])
    if not difference < TOLERANCE:
        raise SharingError(f"torchvision's {name} with these weights differs by a relative {difference:.2g}.")
    return state_dict


def safetensors(state_dict: dict[str, Tensor], **metadata: str) -> bytes:
    """The content of a safetensors file. (``save_file`` of the library makes files that only their owner may read.)"""
    from safetensors.torch import save

    # Clones: the heads of some detectors also share layers.
    tensors = {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in state_dict.items()}
    return save(tensors, metadata or None)


def save_safetensors(state_dict: dict[str, Tensor], path: Path) -> None:
    """Write a state dict as safetensors.

    Raises:
        SharingError: If it cannot be written.
    """
    content = safetensors(state_dict)
    with written_whole(path) as partial:
        partial.write_bytes(content)
