"""Turn a checkpoint of the authors of implicitly recurrent CNNs (https://github.com/lolemacs/soft-sharing) into one of
mmshared, and write beside it the config of its model: depth, width, templates and classes are read off the tensors.

Nothing but weights and the numbers of their RecorderMeter is read. A checkpoint that Python 2 wrote has to be reduced
to dict(state_dict=...) first.
"""

import argparse
import re
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from torch import Tensor

from mmshared import SharingError
from mmshared.backbones.wide_resnet import WideResNet_CIFAR
from mmshared.cli import check_files, errors_in_a_sentence, output_file, own_files
from mmshared.engine.build import build_model
from mmshared.engine.checkpoint import load_checkpoint_file, save_checkpoint, state_dict_of

MODEL = Path(__file__).parents[2] / 'configs/_base_/models/wrn28-10_cifar10.py'


class Recorder:
    """Stands for the object that their checkpoints keep their curves in."""


# Its arrays are made by a function that NumPy 1 and 2 have at different places.
SAFE = [
    (Recorder, 'utils.RecorderMeter'),
    type(np.dtype(np.float32)),
    *[(np.empty(0).__reduce__()[0], f'numpy.{core}.multiarray._reconstruct') for core in ('core', '_core')],
]


def rename(key: str) -> str | None:
    """The key of a tensor of theirs in our model; None for templates that they hold a second time.

    A bank stands under the network and under every block and conv that uses it; ours stands under its first conv.
    """
    if '.bank.' in key:
        return None
    for pattern, replacement in [
        (r'^bank_(\d)\.', r'backbone.layer\1.1.conv1.bank.'),
        (r'^conv_3x3\.', 'backbone.conv1.'),
        (r'^stage_(\d)\.', r'backbone.layer\1.'),
        (r'\.bn(\d)\.', r'.norm\1.'),
        (r'\.convShortcut\.', '.downsample.'),
        (r'^lastact\.0\.', 'backbone.norm.'),
        (r'^classifier\.', 'head.fc.'),
    ]:
        key = re.sub(pattern, replacement, key)
    return key


def convert(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert a state dict of theirs.

    Raises:
        SharingError: If it is of another network.
    """
    theirs = {re.sub(r'^module\.', '', key): tensor for key, tensor in theirs.items()}
    if not {'conv_3x3.weight', 'bank_1.templates'} <= set(theirs):
        raise SharingError('The checkpoint has no conv_3x3 or no bank_1: it is none of the networks of soft-sharing.')
    shares = any(key.endswith('.coefficients') for key in theirs)
    # Our coefficients are vectors, and the filters of our templates rows.
    renamed = {
        rename(key): tensor.flatten()
        if key.endswith('.coefficients')
        else tensor.flatten(2)
        if key.endswith('.templates')
        else tensor
        for key, tensor in theirs.items()
        if shares or 'bank_' not in key
    }
    renamed.pop(None, None)
    return renamed


def model_config(state_dict: dict[str, Tensor]) -> Config:
    """The config of the model that a converted state dict is of. A network of depth 10, whose stages are of one block
    that keeps its own convs, is the plain one."""
    depth = 6 * sum(key.startswith('backbone.layer1.') and key.endswith('.norm1.weight') for key in state_dict) + 4
    if depth not in WideResNet_CIFAR.arch_settings:
        raise SharingError(
            f'The checkpoint is of a network of depth {depth}, and WideResNet_CIFAR has the depths '
            f'{", ".join(map(str, WideResNet_CIFAR.arch_settings))}.'
        )
    classes, channels = state_dict['head.fc.weight'].shape
    cfg = Config.fromfile(MODEL)
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


@errors_in_a_sentence()
@own_files()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('src', help='their checkpoint')
    parser.add_argument('dst', type=output_file, help='the checkpoint to write; its config gets the same name')
    args = parser.parse_args()
    out_config = args.dst.with_suffix('.py')
    check_files(parser, args.src, args.dst, out_config)
    try:
        with torch.serialization.safe_globals(SAFE):
            checkpoint = load_checkpoint_file(args.src)
        state_dict = convert(state_dict_of(checkpoint))
        cfg = model_config(state_dict)
        build_model(cfg).load_state_dict(state_dict, strict=True)
    except (IndexError, KeyError, RuntimeError, TypeError) as error:
        reason = str(error).split('\n\t')[-1].strip()
        raise SharingError(f'The checkpoint is of another network than those of soft-sharing: {reason}') from None
    save_checkpoint(dict(state_dict=state_dict), args.dst)
    cfg.dump(out_config)
    backbone, sharing = cfg.model.backbone, cfg.model.backbone.get('sharing')
    told = f'{sharing.bank.num_templates} templates a stage' if sharing else 'no shared conv'
    print(
        f'wrote {args.dst} and {out_config}: a wide ResNet of depth {backbone.depth} and width '
        f'{backbone.widen_factor} with {told}, {cfg.model.head.num_classes} classes'
    )


if __name__ == '__main__':
    main()
