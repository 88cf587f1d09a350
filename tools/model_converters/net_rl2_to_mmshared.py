"""Turn a checkpoint of the authors of deeply shared filter bases (https://github.com/ssregibility/Net_RL2) into one of
mmshared, and print the config whose model it loads into."""

import re
from pathlib import Path

from mmengine.config import Config
from torch import Tensor
from tqdm import tqdm

from mmshared import SharingError
from mmshared.analysis import conversion
from mmshared.analysis.conversion import convert_file
from mmshared.analysis.conversion import rename as apply_rules
from mmshared.engine.build import build_model
from mmshared.engine.checkpoint import state_dict_of

CONFIGS = conversion.CONFIGS / 'shared_resnet'


def rename(key: str, bottleneck: bool) -> str | None:
    """The key of a tensor of theirs in our model; None for what their checkpoints hold a second time.

    A basis stands under the network and under every block that uses it; ours stands under its first conv.

    Args:
        key (str): The key, ``layer1.2.basis_conv1.weight`` say.
        bottleneck (bool): Whether the network is of bottleneck blocks, whose bases are whole kernels.
    """
    shared = re.fullmatch(r'(?:(layer\d+\.)(\d+)\.)?shared_basis(?:_(\d))?(?:_\d)?\.weight', key)
    if shared:
        stage, block, basis = shared.groups()
        conv = int(basis or 1) + bottleneck
        return f'backbone.{stage}1.conv{conv}.bank.filters' if block == '1' else None
    return apply_rules(
        key,
        [
            (r'^fc\.', 'head.fc.'),
            (r'^(?!head)', 'backbone.'),
            (r'\.shortcut\.', '.downsample.'),
            (r'\.basis_conv(\d)\.weight$', r'.conv\1.unique'),
            (r'\.basis_bn(\d)\.', r'.conv\1.norm.'),
            (r'\.coeff_conv(\d)\.weight$', r'.conv\1.coefficients'),
        ],
    )


def convert(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert a state dict of a ResNet of theirs.

    Raises:
        SharingError: If it is of another network.
    """
    theirs = {re.sub(r'^module\.', '', key): tensor for key, tensor in theirs.items()}
    if not any('shared_basis' in key for key in theirs):
        raise SharingError('The checkpoint has no shared_basis: it is none of the shared networks of Net_RL2.')
    if 'layer1.0.conv1.weight' not in theirs:
        raise SharingError(
            'The checkpoint is of none of their ResNets. Their MobileNetV2 differs from the standard '
            'network (biases of stem and head, ReLU in the blocks, an expansion in the first), and '
            'their DenseNet and ResNeXt have other blocks: those are not converted.'
        )
    bottleneck = 'layer1.0.conv3.weight' in theirs
    renamed = {rename(key, bottleneck): tensor for key, tensor in theirs.items()}
    renamed.pop(None, None)
    return renamed


def matching_config(state_dict: dict[str, Tensor]) -> Path:
    """The config of mmshared whose model has exactly these tensors."""
    shapes = {key: tensor.shape for key, tensor in state_dict.items()}
    for path in tqdm(sorted(CONFIGS.glob('shared-*.py')), desc='looking for the config', disable=None, leave=False):
        own = {key: tensor.shape for key, tensor in build_model(Config.fromfile(path)).state_dict().items()}
        if own == shapes:
            return path
    raise SharingError(f'No config in {CONFIGS} has this network: write one for its depth, ranks and classes.')


def convert_checkpoint(checkpoint: dict) -> tuple[dict[str, Tensor], Path, str]:
    state_dict = convert(state_dict_of(checkpoint, 'net_state_dict'))
    note = f'accuracy {float(checkpoint["acc"]):.2f} by their own record' if 'acc' in checkpoint else ''
    return state_dict, matching_config(state_dict), note


def main() -> None:
    convert_file(__doc__, convert_checkpoint)


if __name__ == '__main__':
    main()
