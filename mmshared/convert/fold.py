"""Shared networks as plain ones: of the stock classes, and with the keys of torchvision."""

from __future__ import annotations

import copy

import torch
import torchvision
from mmengine.config import Config
from torch import Tensor, nn

from ..engine.build import build_model, relative_difference
from ..engine.config import drop_hooks, plain_twin
from ..sharing import SharingError


def stock_config(cfg: Config) -> Config:
    """The config of the plain network: without sharing, without the hooks and the Runner of mmshared, and without its
    import unless the plain network is one of its own."""
    stock = drop_hooks(Config(copy.deepcopy(cfg.to_dict())))
    stock.model = plain_twin(stock.model)
    stock.pop('runner_type', None)
    imports = (stock.pop('custom_imports', None) or {}).get('imports', [])
    if any(type(module).__module__.startswith('mmshared') for module in build_model(stock).modules()):
        imports = ['mmshared']
    else:
        imports = [name for name in imports if name != 'mmshared']
    if imports:
        stock.custom_imports = dict(imports=imports, allow_failed_imports=False)
    return stock


def to_torchvision(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of a plain classifier of mmpretrain under the keys of the ResNet of torchvision that it is.

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
            '--torchvision is for classifiers whose layers are those of a ResNet, ResNeXt or wide '
            'ResNet of torchvision, and this is none.'
        )
    twin.load_state_dict(state_dict, strict=True, assign=True)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        difference = relative_difference([twin.eval()(images)], [model(images)])
    if not difference < 1e-4:
        raise SharingError(f"torchvision's {name} with these weights differs by a relative {difference:.2g}.")
    return state_dict
