"""The converter of the authors' checkpoints, against their forward written from its formulas on their own keys."""

import re
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config

from helpers import call
from mmshared.engine.build import build_model

TOOL = 'model_converters/soft_sharing_to_mmshared.py'


def their_state(depth, width, templates, classes):
    """A state dict as they write it, of random numbers: banks stand under each of their users too."""
    blocks, state = (depth - 4) // 6, {}

    def norm(name, channels):
        state[f'{name}.weight'] = torch.rand(channels) + 0.5
        state[f'{name}.bias'] = 0.2 * torch.randn(channels)
        state[f'{name}.running_mean'] = 0.2 * torch.randn(channels)
        state[f'{name}.running_var'] = torch.rand(channels) + 0.5
        state[f'{name}.num_batches_tracked'] = torch.tensor(7)

    def kernel(*shape):
        return torch.randn(shape) * (2 / shape[-1] / shape[-2] / shape[-3]) ** 0.5

    state['conv_3x3.weight'] = kernel(16, 3, 3, 3)
    before = 16
    for stage in (1, 2, 3):
        channels = 16 * width * 2 ** (stage - 1)
        bank = state[f'bank_{stage}.templates'] = kernel(templates, channels, channels, 3, 3)
        for block in range(blocks):
            name = f'stage_{stage}.{block}'
            norm(f'{name}.bn1', channels if block else before)
            norm(f'{name}.bn2', channels)
            if block:
                state[f'{name}.bank.templates'] = bank
                for conv in ('conv1', 'conv2'):
                    state[f'{name}.{conv}.coefficients'] = torch.randn(templates, 1, 1, 1, 1) / templates
                    state[f'{name}.{conv}.bank.templates'] = bank
            else:
                state[f'{name}.conv1.weight'] = kernel(channels, before, 3, 3)
                state[f'{name}.conv2.weight'] = kernel(channels, channels, 3, 3)
                if before != channels:
                    state[f'{name}.convShortcut.weight'] = kernel(channels, before, 1, 1)
        before = channels
    norm('lastact.0', before)
    state['classifier.weight'], state['classifier.bias'] = torch.randn(classes, before), torch.randn(classes)
    return state


def their_logits(state, x):
    """Their network in functions of PyTorch."""

    def active(name, x):
        mean, var, weight, bias = [
            state[f'{name}.{key}'].view(-1, 1, 1) for key in ('running_mean', 'running_var', 'weight', 'bias')
        ]
        return ((x - mean) / (var + 1e-5).sqrt() * weight + bias).clamp(min=0)

    def conv(name, x, stride):
        weight = state.get(f'{name}.weight')
        if weight is None:
            weight = torch.einsum(
                'k,koihw->oihw', state[f'{name}.coefficients'].flatten(), state[f'{name}.bank.templates']
            )
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    x = conv('conv_3x3', x, 1)
    for name in dict.fromkeys(key[:9] for key in state if key.startswith('stage_')):
        stride = 2 if name in ('stage_2.0', 'stage_3.0') else 1
        first = active(f'{name}.bn1', x)
        out = conv(f'{name}.conv2', active(f'{name}.bn2', conv(f'{name}.conv1', first, stride)), 1)
        x = out + (conv(f'{name}.convShortcut', first, stride) if out.shape != x.shape else x)
    return active('lastact.0', x).mean((2, 3)) @ state['classifier.weight'].T + state['classifier.bias']


@pytest.mark.parametrize(
    'depth, width, templates, classes, parallel',
    [(16, 1, 1, 10, False), (16, 2, 4, 100, True), (28, 1, 2, 10, True), (10, 2, 2, 10, False)],
)
def test_the_logits_are_theirs(tmp_path, depth, width, templates, classes, parallel):
    theirs = their_state(depth, width, templates, classes)
    saved = dict(state_dict={f'module.{key}': tensor for key, tensor in theirs.items()}, epoch=200, arch='swrn')
    torch.save(saved if parallel else theirs, tmp_path / 'theirs.pth')
    result = call(TOOL, tmp_path / 'theirs.pth', tmp_path / 'ours.pth')
    assert result.returncode == 0, result.stderr
    told = f'{templates} templates a stage' if depth > 10 else 'no shared conv'
    assert f'a wide ResNet of depth {depth} and width {width} with {told}, {classes} classes' in result.stdout
    cfg = Config.fromfile(tmp_path / 'ours.py')
    assert ('sharing' in cfg.model.backbone) is (depth > 10)
    ours = build_model(cfg).eval()
    ours.load_state_dict(torch.load(tmp_path / 'ours.pth', weights_only=True)['state_dict'], strict=True)
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        expected, found = their_logits(theirs, x), ours(x)
    worst = (found - expected).abs().max().item()
    print(f'largest difference of the logits: {worst:.2g}, of values up to {expected.abs().max():.3g}')
    assert expected.std() > 0.1 and worst < 1e-5 * expected.abs().max()


def test_a_whole_checkpoint_is_read_and_none_of_its_code_is_run(tmp_path, monkeypatch):
    utils = ModuleType('utils')
    utils.RecorderMeter = type('RecorderMeter', (), dict(__module__='utils', __qualname__='RecorderMeter'))
    monkeypatch.setitem(sys.modules, 'utils', utils)
    recorder = utils.RecorderMeter()
    recorder.epoch_losses = np.zeros((200, 2), np.float32)
    checkpoint = dict(
        epoch=200,
        arch='swrn',
        state_dict=their_state(16, 1, 2, 10),
        recorder=recorder,
        optimizer=dict(state={}, param_groups=[]),
    )
    torch.save(checkpoint, tmp_path / 'theirs.pth')
    utils.RecorderMeter.__setstate__ = lambda self, state: pytest.fail('their class was made')
    result = call(TOOL, tmp_path / 'theirs.pth', tmp_path / 'ours.pth')
    assert result.returncode == 0 and (tmp_path / 'ours.pth').exists(), result.stderr


def without(state, pattern):
    return {key: tensor for key, tensor in state.items() if not re.search(pattern, key)}


@pytest.mark.parametrize(
    'change, words',
    [
        (lambda state: without(state, 'conv_3x3'), 'it is not of a network of soft-sharing'),
        (lambda state: without(state, r'bn2\.bias'), 'is not of a network of soft-sharing'),
        (lambda state: {**state, **{f'stage_1.{i}.bn1.weight': torch.ones(16) for i in range(9)}}, 'of depth 58'),
    ],
)
def test_another_network_is_refused(tmp_path, change, words):
    torch.save(change(their_state(16, 1, 2, 10)), tmp_path / 'theirs.pth')
    result = call(TOOL, tmp_path / 'theirs.pth', tmp_path / 'ours.pth')
    assert result.returncode == 1 and words in result.stderr and not (tmp_path / 'ours.pth').exists()
