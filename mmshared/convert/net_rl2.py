"""Converts the authors' checkpoints of deeply shared filter bases (https://github.com/ssregibility/Net_RL2)."""

from __future__ import annotations

import re
from pathlib import Path

from mmengine.config import Config
from torch import Tensor
from tqdm import tqdm

from ..engine.build import build_empty
from ..engine.checkpoint import load_checkpoint_file, state_dict_of
from ..sharing import SharingError
from .authors import Converted, rename

RULES = [
    (r'^fc\.', 'head.fc.'),
    (r'^(?!head)', 'backbone.'),
    (r'\.shortcut\.', '.downsample.'),
    (r'\.basis_conv(\d)\.weight$', r'.conv\1.unique'),
    (r'\.basis_bn(\d)\.', r'.conv\1.norm.'),
    (r'\.coeff_conv(\d)\.weight$', r'.conv\1.coefficients'),
]


def our_key(key: str, bottleneck: bool) -> str | None:
    """The key of their tensor in our model; None for the duplicates in their checkpoints.

    Their checkpoints store a basis under the network and under every block that uses it, ours only under its first
    conv.

    Args:
        key (str): The key, for example ``layer1.2.basis_conv1.weight``.
        bottleneck (bool): Whether the network has bottleneck blocks, whose bases are whole kernels.
    """
    shared = re.fullmatch(r'(?:(layer\d+\.)(\d+)\.)?shared_basis(?:_(\d))?(?:_\d)?\.weight', key)
    if shared:
        stage, block, basis = shared.groups()
        conv = int(basis or 1) + bottleneck
        return f'backbone.{stage}1.conv{conv}.bank.filters' if block == '1' else None
    return rename(key, RULES)


def convert(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert a state dict of one of their ResNets.

    Raises:
        SharingError: If it is of another network.
    """
    theirs = {re.sub(r'^module\.', '', key): tensor for key, tensor in theirs.items()}
    if not any('shared_basis' in key for key in theirs):
        raise SharingError('The checkpoint has no shared_basis: it is not of a shared network of Net_RL2.')
    if 'layer1.0.conv1.weight' not in theirs:
        raise SharingError(
            'The checkpoint is not of one of their ResNets. Their MobileNetV2 differs from the standard '
            'network (biases of stem and head, ReLU in the blocks, an expansion in the first), and '
            'their DenseNet and ResNeXt have other blocks: those are not converted.'
        )
    bottleneck = 'layer1.0.conv3.weight' in theirs
    renamed = {our_key(key, bottleneck): tensor for key, tensor in theirs.items()}
    renamed.pop(None, None)
    return renamed


def matching_config(state_dict: dict[str, Tensor], configs: Path) -> Path:
    """The file in a folder of configs whose model has exactly these tensors.

    Raises:
        SharingError: If there is no such file.
    """
    shapes = {key: tensor.shape for key, tensor in state_dict.items()}
    for path in tqdm(sorted(configs.glob('shared-*.py')), desc='looking for the config', disable=None, leave=False):
        own = {key: tensor.shape for key, tensor in build_empty(Config.fromfile(path)).state_dict().items()}
        if own == shapes:
            return path
    raise SharingError(f'No config in {configs} has this network: write one for its depth, ranks and classes.')


def convert_checkpoint(file: str, configs: Path) -> Converted:
    """Convert a checkpoint.

    Args:
        file (str): The checkpoint.
        configs (Path): The folder of the configs of mmshared.

    Raises:
        SharingError: If it is of another network, or if there is no config for its network.
    """
    checkpoint = load_checkpoint_file(file)
    state_dict = convert(state_dict_of(checkpoint, 'net_state_dict'))
    note = f'accuracy {float(checkpoint["acc"]):.2f} by their own record' if 'acc' in checkpoint else ''
    return Converted(state_dict, matching_config(state_dict, configs / 'shared_resnet'), note=note)
