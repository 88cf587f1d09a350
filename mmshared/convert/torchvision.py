"""Converts classifiers of torchvision and of timm under their own keys to mmpretrain's networks."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from ..engine.build import build_empty
from ..engine.checkpoint import load_checkpoint_file, state_dict_of
from ..engine.config import load_config
from ..sharing import SharingError
from .authors import Converted, rename

#: The configs of the networks that the libraries have in common.
CONFIGS = (
    *(f'resnet/resnet{depth}_8xb32_in1k.py' for depth in (18, 34, 50, 101, 152)),
    'resnext/resnext50-32x4d_8xb32_in1k.py',
    'resnext/resnext101-32x8d_8xb32_in1k.py',
    'wrn/wide-resnet50_8xb32_in1k.py',
    'wrn/wide-resnet101_8xb32_in1k.py',
    'mobilenet_v2/mobilenet-v2_8xb32_in1k.py',
)

# The blocks of a MobileNetV2 by number as stage.block.
_BLOCKS = [f'{stage}.{block}' for stage, blocks in enumerate((1, 2, 3, 4, 3, 3, 1), 1) for block in range(blocks)]

#: The rules for each kind of network, by a key that only it has. The first block of a MobileNetV2 has no expansion.
RULES = {
    'layer1.0.conv1.weight': [(r'^fc\.', 'head.fc.')],
    'features.0.0.weight': [
        (r'^features\.0\.0\.', 'conv1.conv.'),
        (r'^features\.0\.1\.', 'conv1.bn.'),
        (r'^features\.18\.0\.', 'conv2.conv.'),
        (r'^features\.18\.1\.', 'conv2.bn.'),
        (r'^(features\.\d+\.conv\.\d)\.0\.', r'\1.conv.'),
        (r'^(features\.\d+\.conv\.\d)\.1\.', r'\1.bn.'),
        (r'^(features\.1\.conv\.1)\.weight$', r'\1.conv.weight'),
        (r'^(features\.1\.conv)\.2\.', r'\1.1.bn.'),
        (r'^(features\.\d+\.conv\.2)\.weight$', r'\1.conv.weight'),
        (r'^(features\.\d+\.conv)\.3\.', r'\1.2.bn.'),
        *((rf'^features\.{number}\.', f'layer{block}.') for number, block in enumerate(_BLOCKS, 1)),
        (r'^classifier\.1\.', 'head.fc.'),
    ],
    'conv_stem.weight': [
        (r'^conv_stem\.', 'conv1.conv.'),
        (r'^bn1\.', 'conv1.bn.'),
        (r'^conv_head\.', 'conv2.conv.'),
        (r'^bn2\.', 'conv2.bn.'),
        (r'^(blocks\.0\.0)\.conv_dw\.', r'\1.conv.0.conv.'),
        (r'^(blocks\.0\.0)\.conv_pw\.', r'\1.conv.1.conv.'),
        (r'^(blocks\.\d\.\d)\.conv_pw\.', r'\1.conv.0.conv.'),
        (r'^(blocks\.\d\.\d)\.conv_dw\.', r'\1.conv.1.conv.'),
        (r'^(blocks\.\d\.\d)\.conv_pwl\.', r'\1.conv.2.conv.'),
        *((rf'^(blocks\.\d\.\d)\.bn{number + 1}\.', rf'\1.conv.{number}.bn.') for number in range(3)),
        *((rf'^blocks\.{stage}\.', f'layer{stage + 1}.') for stage in range(7)),
        (r'^classifier\.', 'head.fc.'),
    ],
}


def from_torchvision(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert the state dict of a ResNet, ResNeXt, wide ResNet or MobileNetV2 of torchvision or of timm to that of the
    same classifier of mmpretrain.

    Raises:
        SharingError: If it is of another network.
    """
    theirs = {re.sub(r'^module\.', '', key): tensor for key, tensor in state_dict.items()}
    rules = next((rules for key, rules in RULES.items() if key in theirs), [])
    converted = {rename(key, [*rules, (r'^(?!head\.)', 'backbone.')]): tensor for key, tensor in theirs.items()}
    if 'head.fc.bias' not in converted:
        raise SharingError(_UNKNOWN)
    return converted


_UNKNOWN = (
    'The checkpoint is not of a whole classifier that is known: these are the ResNets, ResNeXts, wide ResNets and the '
    'MobileNetV2 that torchvision, timm and mmpretrain have in common.'
)


def matching_config(state_dict: dict[str, Tensor]) -> str:
    """The name of mmpretrain's config whose network, apart from the number of classes, has exactly these tensors
    (without ``num_batches_tracked``, which files from before PyTorch 0.4.1 lack).

    Raises:
        SharingError: If there is none among :data:`CONFIGS`.
    """
    shapes = _shapes_of(state_dict)
    for name in CONFIGS:
        cfg = load_config(f'mmpretrain::{name}')
        cfg.model.head.num_classes = len(state_dict['head.fc.bias'])
        if _shapes_of(build_empty(cfg).state_dict()) == shapes:
            return f'mmpretrain::{name}'
    raise SharingError(_UNKNOWN)


def _shapes_of(state_dict: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {key: tensor.shape for key, tensor in state_dict.items() if not key.endswith('num_batches_tracked')}


def convert_checkpoint(file: str, configs: Path) -> Converted:
    """Convert a checkpoint. The folder of the configs of mmshared is not used: the network is mmpretrain's.

    Raises:
        SharingError: If it is of another network.
    """
    state_dict = from_torchvision(state_dict_of(load_checkpoint_file(file)))
    config, classes = matching_config(state_dict), len(state_dict['head.fc.bias'])
    return Converted(state_dict, config, {} if classes == 1000 else {'model.head.num_classes': classes})
