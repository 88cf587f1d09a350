"""The converter of the authors' checkpoints, against a transcription of their forward on their own keys."""

import os
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config

from helpers import ROOT, call, randomise_norms
from mmshared import SharingError
from mmshared.convert import net_rl2
from mmshared.engine.build import build_model
from mmshared.engine.checkpoint import load_checkpoint_file

CONFIGS = ROOT / 'configs/shared_resnet'
NAMES = [
    '34-s32u1_8xb32_in1k',
    '34-s48u1-double_8xb32_in1k',
    '50_8xb32_in1k',
    '50-pp_8xb32_in1k',
    '34-s8u1_b256_cifar100',
    '32-s16u1_b256_cifar10',
    '32-s16u1-double_b256_cifar10',
]

pytestmark = pytest.mark.slow  # networks of full size


class Theirs:
    """A checkpoint as they write it and the network it is of, in functions of PyTorch."""

    def __init__(self, ours):
        """Take the numbers of one of our models over to their keys."""
        state, self.state = ours.state_dict(), {}
        self.bottleneck = 'backbone.layer1.0.conv3.weight' in state
        banks = [key for key in state if key.startswith('backbone.layer1.') and 'bank' in key]
        for key, tensor in state.items():
            key = key.replace('head.fc.', 'fc.').replace('backbone.', '').replace('.downsample.', '.shortcut.')
            bank = re.fullmatch(r'layer(\d)\.1\.conv(\d)\.bank\.filters', key)
            if bank:
                stage, conv = bank.groups()
                number = f'_{int(conv) - self.bottleneck}' if len(banks) > 1 else ''
                self.state[f'shared_basis_{stage}{number}.weight'] = tensor
                for block in range(1, len(ours.backbone.get_submodule(f'layer{stage}'))):
                    self.state[f'layer{stage}.{block}.shared_basis{number}.weight'] = tensor
                continue
            key = re.sub(r'conv(\d)\.unique', r'basis_conv\1.weight', key)
            key = re.sub(r'conv(\d)\.norm', r'basis_bn\1', key)
            self.state[re.sub(r'conv(\d)\.coefficients', r'coeff_conv\1.weight', key)] = tensor

    def norm(self, name, x):
        return F.batch_norm(
            x, *(self.state[f'{name}.{part}'] for part in ('running_mean', 'running_var', 'weight', 'bias'))
        )

    def conv(self, name, x, **kwargs):
        return F.conv2d(x, self.state[f'{name}.weight'], **kwargs)

    def shared(self, block, number):
        return (
            f'{block}.shared_basis'
            if f'{block}.shared_basis.weight' in self.state
            else f'{block}.shared_basis_{number}'
        )

    def based(self, block, number, x):
        """basis_conv and shared_basis side by side, basis_bn, coeff_conv."""
        parts = [self.conv(name, x, padding=1) for name in (f'{block}.basis_conv{number}', self.shared(block, number))]
        return self.conv(f'{block}.coeff_conv{number}', self.norm(f'{block}.basis_bn{number}', torch.cat(parts, 1)))

    def block(self, name, x, stride):
        if f'{name}.basis_conv1.weight' in self.state:
            y = F.relu(self.norm(f'{name}.bn1', self.based(name, 1, x)))
            y = self.norm(f'{name}.bn2', self.based(name, 2, y))
        elif self.bottleneck:
            middle, last = [
                f'{name}.conv{i}' if f'{name}.conv{i}.weight' in self.state else self.shared(name, i - 1)
                for i in (2, 3)
            ]
            y = F.relu(self.norm(f'{name}.bn1', self.conv(f'{name}.conv1', x)))
            y = F.relu(self.norm(f'{name}.bn2', self.conv(middle, y, stride=stride, padding=1)))
            y = self.norm(f'{name}.bn3', self.conv(last, y))
        else:
            y = F.relu(self.norm(f'{name}.bn1', self.conv(f'{name}.conv1', x, stride=stride, padding=1)))
            y = self.norm(f'{name}.bn2', self.conv(f'{name}.conv2', y, padding=1))
        if f'{name}.shortcut.0.weight' in self.state:
            x = self.norm(f'{name}.shortcut.1', self.conv(f'{name}.shortcut.0', x, stride=stride))
        elif y.shape != x.shape:
            extra = (y.shape[1] - x.shape[1]) // 2
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, extra, extra))
        return F.relu(x + y)

    def __call__(self, x):
        imagenet = self.state['conv1.weight'].shape[-1] == 7
        x = F.relu(
            self.norm(
                'bn1', self.conv('conv1', x, stride=2, padding=3) if imagenet else self.conv('conv1', x, padding=1)
            )
        )
        x = F.max_pool2d(x, 3, 2, 1) if imagenet else x
        for name in dict.fromkeys('.'.join(key.split('.')[:2]) for key in self.state if key.startswith('layer')):
            x = self.block(name, x, 2 if name.endswith('.0') and not name.startswith('layer1') else 1)
        return F.linear(x.mean((2, 3)), self.state['fc.weight'], self.state['fc.bias'])


@pytest.mark.parametrize('name', NAMES)
def test_a_converted_checkpoint_gives_their_outputs(name, tmp_path):
    path = CONFIGS / f'shared-resnet{name}.py'
    theirs = Theirs(randomise_norms(build_model(Config.fromfile(path))))
    torch.save(
        dict(net_state_dict={f'module.{key}': tensor for key, tensor in theirs.state.items()}, acc=torch.tensor(92.5)),
        tmp_path / 'theirs.pth',
    )
    result = call('model_converters/net_rl2_to_mmshared.py', tmp_path / 'theirs.pth', tmp_path / 'ours.pth')
    assert f'is for mmshared::shared_resnet/{path.name}, accuracy 92.50 by their own' in result.stdout, result.stderr
    ours = build_model(Config.fromfile(path))
    ours.load_state_dict(load_checkpoint_file(str(tmp_path / 'ours.pth'))['state_dict'], strict=True)
    ours.eval()
    x = torch.randn(2, 3, 64, 64)
    expected = theirs(x)
    assert (ours(x) - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    'state, words',
    [
        ({'conv1.weight': torch.zeros(1)}, 'has no shared_basis'),
        (
            {'shared_basis_1.weight': torch.zeros(1), 'layers.0.conv1.weight': torch.zeros(1)},
            'Their MobileNetV2 differs',
        ),
    ],
)
def test_another_network_is_refused(state, words):
    with pytest.raises(SharingError, match=words):
        net_rl2.convert(state)


def test_a_network_without_a_config_is_refused():
    with pytest.raises(SharingError, match='No config in .* has this network'):
        net_rl2.matching_config({'backbone.conv1.weight': torch.zeros(1)}, CONFIGS)


@pytest.mark.skipif(
    'NET_RL2_CHECKPOINTS' not in os.environ, reason='NET_RL2_CHECKPOINTS names no folder of checkpoints of the authors'
)
def test_their_trained_checkpoints_convert():
    paths = sorted(Path(os.environ['NET_RL2_CHECKPOINTS']).glob('*ResNet*.pth'))
    assert paths
    for path in paths:
        state = load_checkpoint_file(str(path))['net_state_dict']
        converted = net_rl2.convert(state)
        ours = build_model(Config.fromfile(net_rl2.matching_config(converted, CONFIGS)))
        ours.load_state_dict(converted, strict=True)
        ours.eval()
        theirs = Theirs(ours)
        for key, tensor in theirs.state.items():
            assert torch.equal(tensor, state.get(f'module.{key}', state.get(key)))
        x = torch.randn(4, 3, 32, 32)
        assert (ours(x) - theirs(x)).abs().max() < 1e-4
