"""The converter of RepeatNet's checkpoints, against a transcription of their forward on their own keys."""

import argparse
import re
import sys
import types
from functools import partial
from math import sqrt

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config

from helpers import ROOT, call
from mmshared import SharingError
from mmshared.convert.repeatnet import convert
from mmshared.engine.build import build_model
from mmshared.engine.checkpoint import load_checkpoint_file

TOOL = 'model_converters/repeatnet_to_mmshared.py'
CONFIGS = ROOT / 'configs'

VGG_SOURCES = {4: '1111111', 5: '121212', 6: '12323', 7: '1234', 8: '345', 9: '56', 10: '7'}  # from conv2_1 on


def spread(shape):
    return torch.rand(shape) + 0.5


class Theirs:
    """A network of theirs in functions of PyTorch; it makes its checkpoint as it first computes."""

    def __init__(self, transform='linear', repeated=True, classes=10):
        self.state, self.transform, self.repeated, self.classes = {}, transform, repeated, classes

    def get(self, key, *shape, draw=torch.randn):
        if key not in self.state:
            self.state[key] = draw(shape)
        return self.state[key]

    def norm(self, name, x):
        width = x.shape[1]
        mean, bias = (self.get(f'{name}.{part}', width) for part in ('running_mean', 'bias'))
        var, weight = (self.get(f'{name}.{part}', width, draw=spread) for part in ('running_var', 'weight'))
        self.get(f'{name}.num_batches_tracked', draw=lambda shape: torch.tensor(7))
        return F.batch_norm(x, mean, var, weight, bias)

    def linear(self, name, x, outputs):
        return F.linear(x, self.get(f'{name}.weight', outputs, x.shape[1]), self.get(f'{name}.bias', outputs))

    def conv(self, name, x, outputs, k, small=None, source=None, bias=False, **kwargs):
        shape = (outputs, x.shape[1], k, k)
        if small is None or not self.repeated:
            weight = self.get(f'{name}.weight', *shape) if source is None else None
            return F.conv2d(x, weight, self.get(f'{name}.bias', outputs) if bias else None, **kwargs)
        kernel = self.kernel(name, source or name, (*small, k, k), shape)
        return F.conv2d(x, kernel, self.get(f'{name}.bias', outputs), **kwargs)

    def sign(self, name, *shape):
        return self.get(f'{name}.weight', *shape).sign()

    def kernel(self, name, source, small, shape):
        weight, (o, i, k, _), (rows, columns) = self.get(f'{source}.weight', *small), small, shape[:2]
        (r0, e0), (r1, e1) = divmod(rows, o), divmod(columns, i)
        if small == shape:
            if self.transform == 'bireal':
                self.sign(f'{name}.binary_activation', *shape)  # a mask that takes part in nothing
            if self.transform == 'static-drop':
                self.get(f'{name}.drop_mask', *shape, draw=torch.zeros)  # so does this
            return weight
        if self.transform == 'random-bireal':
            random = self.get(f'{name}.random_weights', rows * columns - o * i, k, k)
            filters = torch.cat([weight.view(-1, k, k), random]).view(shape)
            return filters * self.sign(f'{name}.binary_activation', *shape)
        tiled = weight.repeat(r0, r1, 1, 1)
        if self.transform == 'static-drop':
            return tiled * self.get(f'{name}.drop_mask', *shape, draw=lambda shape: torch.rand(shape).round())
        if self.transform == 'bireal':
            tiled = tiled * self.sign(f'{name}.binary_activation', *tiled.shape)
            if e0:
                tiled = torch.cat([tiled, tiled[:e0] * self.sign(f'{name}.binary_activation0', e0, r1 * i, k, k)])
            if e1:
                more = tiled[:, :e1] * self.sign(f'{name}.binary_activation1', rows, e1, k, k)
                tiled = torch.cat([tiled, more], 1)
        if self.transform == 'swish':
            blocks = [
                self.get(f'{name}.{part}', 1, r0 * r1)
                .view(r0, r1)
                .repeat_interleave(o, 0)
                .repeat_interleave(i, 1)[..., None, None]
                for part in ('alphas', 'betas')
            ]
            tiled = tiled * blocks[0] / (1 + torch.exp(tiled * blocks[1]))
            for axis, rest, size in ((0, e0, (1,)), (1, e1, (1, 1))):
                if rest:
                    alpha, beta = (
                        self.get(f'{name}.e{part}{axis + 1}', *size, draw=torch.rand) for part in ('alpha', 'beta')
                    )
                    more = tiled.narrow(axis, 0, rest)
                    tiled = torch.cat([tiled, more * alpha / (1 + torch.exp(more * beta))], axis)
        return tiled


class TheirResNet(Theirs):
    def __init__(self, width, imagenet=False, **kwargs):
        super().__init__(**kwargs)
        self.width, self.imagenet = width, imagenet

    def block(self, name, x, outputs, stride, first):
        w, inputs = self.width, x.shape[1]
        small = (outputs // w, inputs if first else inputs // w)
        y = self.conv(f'{name}.conv1', x, outputs, 3, small, stride=stride, padding=1)
        y = F.relu(self.norm(f'{name}.bn1', y))
        y = self.norm(f'{name}.bn2', self.conv(f'{name}.conv2', y, outputs, 3, (outputs // w,) * 2, padding=1))
        if stride != 1 or inputs != outputs:
            x = self.conv(f'{name}.downsample.0', x, outputs, 1, small, stride=stride)
            x = self.norm(f'{name}.downsample.1', x)
        return F.relu(x + y)

    def __call__(self, x):
        base = 64 if self.imagenet else 16
        x = self.conv(
            'conv1',
            x,
            base,
            *(7,) if self.imagenet else (3,),
            stride=1 + self.imagenet,
            padding=3 if self.imagenet else 1,
        )
        x = F.relu(self.norm('bn1', x))
        x = F.max_pool2d(x, 3, 2, 1) if self.imagenet else x
        for stage in range(4 if self.imagenet else 3):
            for block in range(2):
                x = self.block(
                    f'layer{stage + 1}.{block}',
                    x,
                    base * self.width * 2**stage,
                    1 + (stage > 0 and block == 0),
                    stage == 0 and block == 0,
                )
        return self.linear('fc', x.mean((2, 3)), self.classes)


class TheirVGG(Theirs):
    def __init__(self, number, **kwargs):
        super().__init__(**kwargs)
        self.number = number

    def __call__(self, x):
        names = [f'conv{stage}_{i}' for stage in range(1, 6) for i in (1, 2)]
        depth, shapes = 10 if self.repeated else self.number - 1, []
        for i, name in enumerate(names[:depth]):
            outputs = (64, 128, 256, 512, 512)[i // 2]
            shapes.append((outputs, x.shape[1]))
            layer = 3 * i + i // 2  # convs, batch norms, ReLUs and the poolings behind every second
            if i < self.number - 1:
                own = name if self.repeated else f'features.{layer}'
                x = self.conv(own, x, outputs, 3, bias=True, padding=1)
            else:
                source = 1 + int(VGG_SOURCES[self.number][i - self.number + 1])
                x = self.conv(name, x, outputs, 3, shapes[source], names[source], padding=1)
            x = F.relu(self.norm(f'bn{i + 1}' if self.repeated else f'features.{layer + 1}', x))
            x = F.max_pool2d(x, 2) if i % 2 or i == depth - 1 else x
        return self.linear('fc' if self.repeated else 'classifier', x.mean((2, 3)), self.classes)


class TheirCNN(Theirs):
    def __init__(self, factor=1.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def __call__(self, x):
        small = [1, *(int(width / sqrt(2)) for width in (32, 48, 64, 64, 96, 128))]
        large = [1, *(int(width * (1 / sqrt(2)) * self.factor) for width in (32, 48, 64, 64, 96, 128))]
        for i in range(1, 7):
            x = self.conv(
                f'conv{i}',
                x,
                large[i],
                7 if i == 1 else 5,
                (small[i], small[i - 1]),
                padding=(1, 2, 2, 2, 2, 0)[i - 1],
            )
            x = F.elu(self.norm(f'bn{i}', x))
            x = F.max_pool2d(x, 2) if i in (2, 4) else x
        x = self.linear('fully_net.0', x.mean((2, 3)), 64)
        return self.linear('fully_net.3', F.elu(self.norm('fully_net.1', x)), self.classes)


# Networks of theirs by the configs of ours that they are converted to.
NETWORKS = [
    *(
        (f'repeat-resnet-w2-{config}_b128_cifar10', partial(TheirResNet, 2, transform=transform))
        for config, transform in (
            *((transform, transform) for transform in ('linear', 'swish', 'bireal')),
            # Those that have no config of their own are an option of another.
            *(('linear', transform) for transform in ('static-drop', 'random-bireal')),
        )
    ),
    ('repeat-resnet-w2-bireal_b128_cifar10', partial(TheirResNet, 1, transform='bireal', classes=100)),
    ('repeat-resnet-w2-linear_b128_cifar10', partial(TheirResNet, 1, transform='static-drop')),
    ('repeat-resnet-w2-swish_b128_cifar10', partial(TheirResNet, 3, transform='swish')),
    ('resnet-w1_b128_cifar10', partial(TheirResNet, 2, repeated=False)),
    ('repeat-resnet18-w2-linear_8xb32_in1k', partial(TheirResNet, 1, True, classes=1000)),
    *(
        (f'repeat-vgg{n}-swish_b128_cifar10', partial(TheirVGG, n, transform=transform))
        for n, transform in (
            (4, 'random-bireal'),
            (5, 'linear'),
            (6, 'bireal'),
            (7, 'swish'),
            (8, 'swish'),
            (9, 'bireal'),
            (10, 'bireal'),
        )
    ),
    *(
        ('vgg11_b128_cifar10', partial(TheirVGG, depth, repeated=False, classes=classes))
        for depth, classes in ((4, 10), (6, 200), (9, 10))
    ),
    ('cnn_b128_rotmnist', partial(TheirCNN, repeated=False)),
    ('repeat-cnn-c4-swish_b128_rotmnist', partial(TheirCNN, 2 * sqrt(2), transform='swish')),
    ('repeat-cnn-c8-swish_b128_rotmnist', partial(TheirCNN, 4, transform='swish')),
    ('repeat-cnn-c16-linear_b128_rotmnist', partial(TheirCNN, 4 * sqrt(2), transform='bireal')),
]


def checkpoint_of(network, path):
    """A checkpoint as PyTorch Lightning writes it: with a class of its own as a key, and their arguments."""
    module = types.ModuleType('pytorch_lightning.callbacks.model_checkpoint')
    module.ModelCheckpoint = type('ModelCheckpoint', (), {'__module__': module.__name__})
    parents = {name: types.ModuleType(name) for name in ('pytorch_lightning', 'pytorch_lightning.callbacks')}
    with pytest.MonkeyPatch.context() as patch:
        for name, each in {**parents, module.__name__: module}.items():
            patch.setitem(sys.modules, name, each)
        torch.save(
            dict(
                state_dict={f'model.{key}': tensor for key, tensor in network.state.items()},
                epoch=3,
                callbacks={module.ModelCheckpoint: dict(best_model_score=torch.tensor(0.5))},
                hyper_parameters=dict(args=argparse.Namespace(model_name='?'), batch_size=128),
            ),
            path,
        )


@pytest.mark.parametrize('name, make', NETWORKS, ids=[name for name, _ in NETWORKS])
@pytest.mark.slow
def test_a_converted_checkpoint_gives_their_outputs(name, make, tmp_path):
    theirs = make()
    x = torch.randn(2, *((1, 29, 29) if 'rotmnist' in name else (3, 64, 64) if 'in1k' in name else (3, 32, 32)))
    expected = theirs(x)
    checkpoint_of(theirs, tmp_path / 'theirs.ckpt')
    result = call(TOOL, tmp_path / 'theirs.ckpt', tmp_path / 'ours.pth')
    assert f'is for mmshared::repeatnet/{name}.py' in result.stdout, result.stderr
    cfg = Config.fromfile(CONFIGS / f'repeatnet/{name}.py')
    cfg.merge_from_dict(
        {
            key: int(value) if value.isdigit() else value
            for key, value in re.findall(r'(model\.\S+)=(\S+)', result.stdout)
        }
    )
    assert cfg.model.head.num_classes == theirs.classes
    ours = build_model(cfg)
    ours.load_state_dict(load_checkpoint_file(str(tmp_path / 'ours.pth'))['state_dict'], strict=True)
    ours.eval()
    with torch.no_grad():
        assert (ours(x) - expected).abs().max() < 1e-4 * expected.abs().max()


def test_other_checkpoints_are_refused():
    theirs = TheirResNet(2, transform='swish')
    theirs(torch.randn(1, 3, 8, 8))
    for change, words in [
        (lambda state: state.pop('layer2.0.conv1.betas'), 'that becomes backbone.layer2.0.conv1.transform.beta'),
        (lambda state: state.update({'layer4.0.conv1.weight': torch.zeros(1)}), 'nothing like backbone.layer4.0'),
        (lambda state: state.pop('layer1.0.conv1.weight'), 'is not of one of their ResNets'),
        (lambda state: state.pop('conv1.weight'), "is not of a whole network of theirs: 'conv1.weight'"),
        (
            lambda state: state.update({'layer2.0.conv1.weight': state['layer2.0.conv1.weight'].transpose(0, 1)}),
            'nothing that becomes backbone.layer2.0.conv1.kernel',
        ),
        (lambda state: state.update({'bn1.weight': torch.full((16,), torch.nan)}), 'not finite in bn1.weight'),
        (lambda state: state.update({'layer1.0.conv1.random_weights': torch.zeros(0, 3, 3)}), 'of full size'),
    ]:
        state = dict(theirs.state)
        change(state)
        with pytest.raises(SharingError, match=words):
            convert(state, CONFIGS)
    wide = TheirCNN(3, transform='swish')
    wide(torch.randn(1, 1, 29, 29))
    with pytest.raises(SharingError, match='of the network cnn, and there is no config for it'):
        convert(wide.state, CONFIGS)
