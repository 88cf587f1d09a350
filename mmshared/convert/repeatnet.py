"""Converts the authors' checkpoints of RepeatNet (https://github.com/transmuteAI/RepeatNet)."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from torch import Tensor

from ..engine.build import build_empty
from ..engine.checkpoint import load_checkpoint_file, state_dict_of
from ..sharing import SharingError
from .authors import Converted, rename


class Callback:
    """Stands in for the class under which PyTorch Lightning stores the state of its checkpoint callback."""


# What their checkpoints hold besides weights and plain data: their arguments, and the name of a class.
SAFE = [argparse.Namespace, (Callback, 'pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint')]

TRANSFORM = 'model.backbone.sharing.bank.transform.type'
RESNET = [(r'^fc\.', 'head.fc.'), (r'^(?!head)', 'backbone.')]
# VGG's batch norms are numbered consecutively.
VGG = [
    *[(rf'^bn{2 * stage + i - 2}\.', f'bn{stage}_{i}.') for stage in range(1, 6) for i in (1, 2)],
    (r'^(fc|classifier)\.', 'head.fc.'),
    (r'^(?!head)', 'backbone.features.0.'),
]
CNN = [
    (r'^fully_net\.0\.', 'head.layers.0.fc.'),
    (r'^fully_net\.1\.', 'head.layers.0.norm.'),
    (r'^fully_net\.3\.', 'head.layers.1.fc.'),
    (r'^(?!head)', 'backbone.features.0.'),
]


# The transform of their networks' tiles, as in the names of our configs, by a key that only this transform has.
TRANSFORMS = {
    'alphas': 'swish',
    'random_weights': 'random-bireal',
    'binary_activation.weight': 'bireal',
    'drop_mask': 'static-drop',
}


class Recognised(NamedTuple):
    """One of their networks.

    Attributes:
        config (Path): Our config for it.
        options (dict): The options that the config needs.
        state_dict (dict): Their tensors under the names of the modules in our model.
    """

    config: Path
    options: dict[str, Any]
    state_dict: dict[str, Tensor]


def recognise(theirs: dict[str, Tensor], configs: Path) -> Recognised:
    """Recognise one of their networks by its tensors.

    Raises:
        SharingError: If it is not one of their networks that can be converted.
    """
    nearest, size = '', {}
    if 'layer1.0.conv1.weight' in theirs:
        imagenet, channels = theirs['conv1.weight'].shape[-1] == 7, len(theirs['layer1.0.bn1.weight'])
        kind, width = ('resnet18', channels // 64) if imagenet else ('resnet', channels // 16)
        network, rules, data = f'{kind}-w{width}', RESNET, '8xb32_in1k' if imagenet else 'b128_cifar10'
        repeated = 'layer1.0.conv1.bias' in theirs
        nearest = f'{kind}-w{2 if repeated else 1}'
        size = {'model.backbone.base_channels': channels, 'model.head.in_channels': channels * (8 if imagenet else 4)}
        if repeated:
            size['model.backbone.sharing.bank.width'] = width
    elif 'conv1_1.weight' in theirs:
        convs = [key for key in theirs if re.fullmatch(r'conv\d_\d\.weight', key)]
        network, rules, data, repeated = f'vgg{len(convs) + 1}', VGG, 'b128_cifar10', True
    elif 'features.0.weight' in theirs:
        theirs, depth = number_layers(theirs)
        network, rules, data, repeated = f'vgg{depth}', VGG, 'b128_cifar10', False
        nearest = 'vgg11'
        size = {'model.backbone.depth': depth, 'model.head.in_channels': min(512, 64 << (depth // 2 - 1))}
    elif 'fully_net.0.weight' in theirs and 'conv1.weight' in theirs:
        rotations = {64: '-c4', 90: '-c8', 128: '-c16'}.get(len(theirs['bn1.weight']), '')
        network, rules, data = f'cnn{rotations}', CNN, 'b128_rotmnist'
        repeated = 'conv1.bias' in theirs
    else:
        raise SharingError(
            'The checkpoint is not of one of their ResNets, VGGs and CNNs for rotated MNIST with plain or '
            'repeated convs (the steerable networks are of another library).'
        )
    renamed = {rename(key, rules): tensor for key, tensor in theirs.items()}
    transform = next(
        (name for part, name in TRANSFORMS.items() if any(key.endswith(part) for key in theirs)), 'linear'
    )
    # The config of the network itself, otherwise one for which its size or its transform is an option.
    for name, sizes in ((network, {}), (nearest, size)):
        for each in (transform, 'linear', 'swish') if repeated else ('',):
            path = configs / f'{f"repeat-{name}-{each}" if repeated else name}_{data}.py'
            if path.is_file():
                kind = {} if each in (transform, '') else {TRANSFORM: transform.replace('-', '_')}
                return Recognised(path, {**sizes, **kind}, renamed)
    raise SharingError(f'The checkpoint is of the network {network}, and there is no config for it in {configs}.')


def number_layers(theirs: dict[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    """The tensors of a plain VGG, whose layers are numbered consecutively, named as in the repeated one; its depth."""
    # Convs and batch norms alternate.
    layers = list(dict.fromkeys(key.split('.')[1] for key in theirs if key.startswith('features.')))
    names = {}
    for position, layer in enumerate(layers):
        conv, norm = divmod(position, 2)
        names[layer] = f'bn{conv + 1}' if norm else f'conv{conv // 2 + 1}_{conv % 2 + 1}'
    renamed = {
        re.sub(r'^features\.(\d+)', lambda match: names[match[1]], key): tensor for key, tensor in theirs.items()
    }
    return renamed, len(layers) // 2 + 1


def transform_state(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of a kernel's transform from theirs, which splits values and masks into tiles, rows and columns."""
    state = {}
    for name in ('alpha', 'beta'):
        if f'{name}s' in parts:
            state[name] = parts[f'{name}s']
            rest = [parts[f'e{name}{i}'].flatten() for i in (1, 2) if f'e{name}{i}' in parts]
            if rest:
                state[f'rest_{name}'] = torch.cat(rest)
    if 'binary_activation.weight' in parts:
        mask = parts['binary_activation.weight']
        for axis in (0, 1):  # the remaining rows, then the remaining columns
            if f'binary_activation{axis}.weight' in parts:
                mask = torch.cat([mask, parts[f'binary_activation{axis}.weight']], axis)
        state['mask'] = mask
    if 'drop_mask' in parts:
        state['kept'] = parts['drop_mask'].bool()
    if 'random_weights' in parts:
        state['random'] = parts['random_weights']
    return state


def convert(theirs: dict[str, Tensor], configs: Path) -> Converted:
    """Convert a state dict of one of their networks.

    Args:
        theirs (dict): The state dict.
        configs (Path): The folder of the configs of mmshared.

    Raises:
        SharingError: If it is not of one of their networks, or damaged.
    """
    theirs = {re.sub(r'^model\.', '', key): tensor for key, tensor in theirs.items()}
    _check(theirs)
    try:
        config, options, renamed = recognise(theirs, configs / 'repeatnet')
    except (IndexError, KeyError, TypeError) as error:
        raise SharingError(f'The checkpoint is not of a whole network of theirs: {error}.') from None
    cfg = Config.fromfile(config)
    fc = 'head.fc.weight' if 'head.fc.weight' in renamed else 'head.layers.1.fc.weight'
    if fc in renamed and len(renamed[fc]) != cfg.model.head.num_classes:
        options['model.head.num_classes'] = len(renamed[fc])
    cfg.merge_from_dict(options)
    state_dict, used = {}, set()
    for key, own in build_empty(cfg).state_dict().items():
        tensor, sources = _find(key, renamed)
        in_a_row = key.endswith(('.transform.alpha', '.transform.beta'))  # in theirs; ours have two dimensions
        if tensor is None or (tensor.numel() != own.numel() if in_a_row else tensor.shape != own.shape):
            raise SharingError(
                f'The checkpoint is not of the whole network of {config.name}: it has nothing that '
                f'becomes {key}, {tuple(own.shape)}.'
            )
        state_dict[key] = tensor.view(own.shape)
        used |= sources
    # The masks of kernels that are not repeated are unused.
    idle = ('.binary_activation.weight', '.drop_mask')
    alien = next((key for key in renamed if key not in used and not key.endswith(idle)), None)
    if alien is not None:
        raise SharingError(f'The checkpoint is not of the network of {config.name}, which has nothing like {alien}.')
    return Converted(state_dict, config, options)


def _check(theirs: dict[str, Tensor]) -> None:
    """Raise if a state dict holds something that cannot be converted for any network."""
    for key, tensor in theirs.items():
        if not tensor.numel() and key.endswith('.random_weights'):
            raise SharingError(
                'The checkpoint has masks on kernels of full size (random_bireal of width 1): here a '
                'kernel that is not repeated is not transformed.'
            )
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise SharingError(f'The checkpoint holds numbers that are not finite in {key}.')


def _find(key: str, renamed: dict[str, Tensor]) -> tuple[Tensor | None, set[str]]:
    """The tensor for a key of ours, or None, and the names of their tensors that it is made from."""
    layer, inside, part = key.partition('.transform.')
    if inside:
        sources = {name for name in renamed if name.startswith(f'{layer}.')}
        return transform_state({name[len(layer) + 1 :]: renamed[name] for name in sources}).get(part), sources
    source = re.sub(r'(\.bank)?\.kernel$', '.weight', key).replace('.added_bias', '.bias')
    return renamed.get(source), {source}


def convert_checkpoint(file: str, configs: Path) -> Converted:
    """Convert a checkpoint: see :func:`convert`."""
    with torch.serialization.safe_globals(SAFE):
        return convert(state_dict_of(load_checkpoint_file(file)), configs)
