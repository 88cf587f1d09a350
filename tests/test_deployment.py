"""A deployed network is the same, in the form that is fastest."""

import pytest
import torch
from torch import nn

from helpers import (
    BASIS,
    TEMPLATES,
    TIED,
    backbone,
    evaluating,
    image,
    randomise_norms,
)
from mmshared import SharingError, banks, deploy, share_layers
from mmshared.sharing import deployment
from mmshared.sharing.deployment import relative_difference


@pytest.mark.parametrize(
    'type, bank, norms',
    [
        ('ResNet', TIED, 0),
        ('ResNet', BASIS, 0),
        ('MobileNetV2', TIED, 0),
        ('WideResNet_CIFAR', TEMPLATES, 7),  # the first of each block, and the last: no conv comes right before
        ('DenseNet_CIFAR', TIED, 9),  # all but those between the two convs of a layer
    ],
)
def test_a_deployed_network_is_the_same_with_batch_norms_in_its_convs(mmpretrain, type, bank, norms):
    kwargs = {
        'ResNet': dict(depth=34, groups=['conv[12]']),
        'MobileNetV2': dict(widen_factor=0.25, groups=['conv.0.conv']),
        'WideResNet_CIFAR': dict(depth=16, widen_factor=1, groups=['conv[12]']),
        'DenseNet_CIFAR': dict(
            arch=dict(growth_rate=8, depths=[3, 4], init_channels=16), out_indices=(1,), groups=['conv2']
        ),
    }[type]
    model = evaluating(randomise_norms(backbone(bank=bank, type=type, **kwargs)))
    x = image()
    network = deploy(model, x)
    assert not banks(network) and banks(model)  # a copy
    assert sum(isinstance(module, nn.BatchNorm2d) for module in network.modules()) == norms
    assert relative_difference(network(x), model(x)) < 1e-4


def test_batch_norms_that_are_called_elsewhere_are_left_there(mmpretrain):
    class PreNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.conv(self.norm(x))

    model, x = evaluating(randomise_norms(PreNorm())), image()
    network = deploy(model, x)
    assert type(network.norm) is nn.BatchNorm2d and relative_difference([network(x)], [model(x)]) < 1e-5


def test_a_batch_norm_that_does_not_read_a_conv_alone_is_not_fused():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

        def forward(self, x):
            y = self.conv(x)
            return y + self.norm(y).relu()

    model, x = evaluating(randomise_norms(nn.Sequential(Both(), Both()))), image()
    share_layers(model, layers=r'\d\.conv', bank=TIED)
    network = deploy(model, x)
    assert not banks(network) and relative_difference([network(x)], [model(x)]) < 1e-5


def test_the_form_that_is_faster_is_deployed(mmpretrain, monkeypatch):
    model = evaluating(backbone(depth=34, groups=['conv[12]'], bank=BASIS))
    x, kinds = image(32), []
    for position in (0, 1):
        monkeypatch.setattr(deployment, 'fastest', lambda forms, x, position=position: position)
        kinds.append(type(deploy(model, x).layer1[1].conv1))
    assert kinds == [nn.Conv2d, nn.Sequential]
    monkeypatch.undo()
    slow = nn.Sequential(*[nn.Conv2d(3, 3, 9, padding=4) for _ in range(20)])
    assert [deployment.fastest(forms, x) for forms in ([slow, nn.Identity()], [nn.Identity(), slow])] == [1, 0]


def test_the_form_is_chosen_anew_for_maps_of_another_size(monkeypatch):
    blocks = [nn.Sequential(nn.Conv2d(16, 16, 3, padding=1)) for _ in range(4)]
    network = evaluating(nn.Sequential(*blocks[:2], nn.MaxPool2d(2), *blocks[2:]))
    share_layers(network, layers=r'\d\.0', bank=dict(BASIS, base_channels=16, shared_rank=4, unique_rank=0))
    sizes = []
    monkeypatch.setattr(deployment, 'fastest', lambda forms, x: sizes.append(x.shape[2]) or len(sizes) - 1)
    deployed = deploy(network, torch.randn(1, 16, 8, 8))
    assert sizes == [8, 4]
    kinds = [type(deployed[i][0]) for i in (0, 1, 3, 4)]
    assert kinds == [nn.Conv2d, nn.Conv2d, nn.Sequential, nn.Sequential]


@pytest.mark.parametrize('dtype, allowed', [(torch.float32, False), (torch.bfloat16, True)])
def test_deploy_allows_what_rounding_brings_and_no_more(mmpretrain, dtype, allowed):

    class Odd(nn.Module):
        """One that differs by 1 % where nothing shares."""

        def __init__(self):
            super().__init__()
            self.inner = backbone(depth=18, groups=['conv[12]'], bank=TIED)

        def forward(self, x):
            return self.inner(x)[0] * (1 if banks(self) else 1.01)

    network = Odd().to(dtype)
    x = image().to(dtype)
    if allowed:
        deploy(network, x)
    else:
        with pytest.raises(SharingError, match='cannot be deployed: its outputs would differ by a relative 0.01'):
            deploy(network, x)
