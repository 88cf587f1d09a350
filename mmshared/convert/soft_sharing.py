"""Converts the authors' checkpoints of implicitly recurrent CNNs (https://github.com/lolemacs/soft-sharing).

Depth, width, templates and classes are inferred from the tensors. Nothing is read except weights and the numbers of
their RecorderMeter. A checkpoint written by Python 2 must be reduced to dict(state_dict=...) first.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from torch import Tensor

from ..backbones.wide_resnet import WideResNet_CIFAR
from ..engine.build import build_empty
from ..engine.checkpoint import load_checkpoint_file, state_dict_of
from ..sharing import SharingError
from .authors import Converted, rename

MODEL = '_base_/models/wrn28-10_cifar10.py'
RULES = [
    (r'^bank_(\d)\.', r'backbone.layer\1.1.conv1.bank.'),
    (r'^conv_3x3\.', 'backbone.conv1.'),
    (r'^stage_(\d)\.', r'backbone.layer\1.'),
    (r'\.bn(\d)\.', r'.norm\1.'),
    (r'\.convShortcut\.', '.downsample.'),
    (r'^lastact\.0\.', 'backbone.norm.'),
    (r'^classifier\.', 'head.fc.'),
]


class Recorder:
    """Stands in for the object that holds the curves in their checkpoints."""


# Its arrays are made by a function that NumPy 1 and 2 have in different places.
SAFE = [
    (Recorder, 'utils.RecorderMeter'),
    type(np.dtype(np.float32)),
    *[(np.empty(0).__reduce__()[0], f'numpy.{core}.multiarray._reconstruct') for core in ('core', '_core')],
]


def convert(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert a state dict of one of their networks.

    Theirs stores a bank under the network and under every block and conv that uses it, ours only under its first conv.

    Raises:
        SharingError: If it is of another network.
    """
    theirs = {re.sub(r'^module\.', '', key): tensor for key, tensor in theirs.items()}
    if not {'conv_3x3.weight', 'bank_1.templates'} <= set(theirs):
        raise SharingError('The checkpoint has no conv_3x3 or no bank_1: it is not of a network of soft-sharing.')
    shares = any(key.endswith('.coefficients') for key in theirs)
    ours = {}
    for key, tensor in theirs.items():
        if '.bank.' in key or key.startswith('bank_') and not shares:
            continue
        if key.endswith('.coefficients'):
            tensor = tensor.flatten()  # (K, )
        elif key.endswith('.templates'):
            tensor = tensor.flatten(2)  # (K, O, I k k)
        ours[rename(key, RULES)] = tensor
    return ours


def model_config(state_dict: dict[str, Tensor], base: Path) -> Config:
    """The config for a converted state dict. A network of depth 10 is plain: its stages have one block, which keeps
    its own convs.

    Args:
        state_dict (dict): The converted state dict.
        base (Path): The config of a network of the family.

    Raises:
        SharingError: If there is no network of this depth.
    """
    depth = 6 * sum(key.startswith('backbone.layer1.') and key.endswith('.norm1.weight') for key in state_dict) + 4
    if depth not in WideResNet_CIFAR.arch_settings:
        raise SharingError(
            f'The checkpoint is of a network of depth {depth}, and WideResNet_CIFAR has the depths '
            f'{", ".join(map(str, WideResNet_CIFAR.arch_settings))}.'
        )
    classes, channels = state_dict['head.fc.weight'].shape
    cfg = Config.fromfile(base)
    cfg.merge_from_dict(
        {
            'model.backbone.depth': depth,
            'model.backbone.widen_factor': channels // 64,
            'model.head.num_classes': classes,
            'model.head.in_channels': channels,
        }
    )
    templates = state_dict.get('backbone.layer1.1.conv1.bank.templates')
    if templates is not None:
        cfg.model.backbone.type = 'SharedWideResNet_CIFAR'
        cfg.model.backbone.sharing = dict(
            groups=['conv[12]'], bank=dict(type='TemplateBank', num_templates=len(templates))
        )
    cfg.default_scope = 'mmpretrain'
    cfg.custom_imports = dict(imports=['mmshared'], allow_failed_imports=False)
    return cfg


def convert_checkpoint(file: str, configs: Path) -> Converted:
    """Convert a checkpoint.

    Args:
        file (str): The checkpoint.
        configs (Path): The folder of the configs of mmshared.

    Raises:
        SharingError: If it is of another network.
    """
    try:
        with torch.serialization.safe_globals(SAFE):
            checkpoint = load_checkpoint_file(file)
        state_dict = convert(state_dict_of(checkpoint))
        cfg = model_config(state_dict, configs / MODEL)
        build_empty(cfg).load_state_dict(state_dict, strict=True, assign=True)
    except (IndexError, KeyError, RuntimeError, TypeError) as error:
        reason = str(error).split('\n\t')[-1].strip()
        raise SharingError(f'The checkpoint is not of a network of soft-sharing: {reason}') from None
    backbone, sharing = cfg.model.backbone, cfg.model.backbone.get('sharing')
    told = f'{sharing.bank.num_templates} templates a stage' if sharing else 'no shared conv'
    note = (
        f'a wide ResNet of depth {backbone.depth} and width {backbone.widen_factor} with {told}, '
        f'{cfg.model.head.num_classes} classes'
    )
    return Converted(state_dict, cfg, note=note)
