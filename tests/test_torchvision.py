"""Classifiers of torchvision and of timm become mmpretrain's, with the same outputs."""

import pytest
import torch
import torchvision

from helpers import TIED, call, evaluating, image, randomise_norms
from mmshared import SharingError, share_layers
from mmshared.convert.torchvision import from_torchvision, matching_config
from mmshared.engine.build import build_model
from mmshared.engine.checkpoint import load_checkpoint_file
from mmshared.engine.config import load_config
from mmshared.sharing.deployment import relative_difference

TOOL = 'model_converters/torchvision_to_mmshared.py'
NETWORKS = {
    'resnet18': 'resnet/resnet18_8xb32_in1k.py',
    'resnet50': 'resnet/resnet50_8xb32_in1k.py',
    'resnext50_32x4d': 'resnext/resnext50-32x4d_8xb32_in1k.py',
    'wide_resnet50_2': 'wrn/wide-resnet50_8xb32_in1k.py',
    'mobilenet_v2': 'mobilenet_v2/mobilenet-v2_8xb32_in1k.py',
}


def theirs(name, classes=10):
    return evaluating(randomise_norms(torchvision.models.get_model(name, num_classes=classes)))


def timm_names():
    """The modules of timm's mobilenetv2_100 with parameters, in their order, as timm 1.0.31 has them."""
    yield from ('conv_stem', 'bn1')
    for stage, blocks in enumerate((1, 2, 3, 4, 3, 3, 1)):
        for block in range(blocks):
            layers = (
                ('conv_dw', 'bn1', 'conv_pw', 'bn2')
                if stage == 0
                else ('conv_pw', 'bn1', 'conv_dw', 'bn2', 'conv_pwl', 'bn3')
            )
            yield from (f'blocks.{stage}.{block}.{layer}' for layer in layers)
    yield from ('conv_head', 'bn2', 'classifier')


def as_timm(state_dict):
    """The state dict of torchvision's MobileNetV2 under timm's keys: both libraries have the modules in one order."""
    modules = dict.fromkeys(key.rpartition('.')[0] for key in state_dict)
    names = dict(zip(modules, timm_names(), strict=True))
    return {
        f'{names[module]}.{key}': state_dict[f'{module}.{key}']
        for module, _, key in (k.rpartition('.') for k in state_dict)
    }


@pytest.mark.parametrize('name', NETWORKS)
@pytest.mark.slow
def test_the_networks_of_torchvision_are_those_of_mmpretrain(name):
    network = theirs(name)
    state_dict = from_torchvision({f'module.{key}': tensor for key, tensor in network.state_dict().items()})
    config = matching_config(state_dict)
    assert config == f'mmpretrain::{NETWORKS[name]}'
    old = {key: tensor for key, tensor in state_dict.items() if not key.endswith('num_batches_tracked')}
    assert len(old) < len(state_dict) and matching_config(old) == config
    cfg = load_config(config)
    cfg.model.head.num_classes = 10
    model = evaluating(build_model(cfg))
    model.load_state_dict(state_dict, strict=True)
    images = image()
    with torch.no_grad():
        assert relative_difference([model(images)], [network(images)]) < 1e-5


def test_timms_mobilenet_is_torchvisions():
    network = theirs('mobilenet_v2').state_dict()
    expected, found = from_torchvision(network), from_torchvision(as_timm(network))
    assert found.keys() == expected.keys()
    assert all(found[key] is expected[key] for key in found)


@pytest.mark.slow
def test_the_command_writes_what_a_network_that_shares_starts_from(tmp_path):
    network = theirs('resnet18', 7)
    torch.save(network.state_dict(), tmp_path / 'theirs.pth')
    result = call(TOOL, tmp_path / 'theirs.pth', tmp_path / 'ours.pth')
    assert 'is for mmpretrain::resnet/resnet18_8xb32_in1k.py, with --cfg-options model.head.num_classes=7' in (
        result.stdout
    ), result.stderr
    cfg = load_config('mmpretrain::resnet/resnet18_8xb32_in1k.py')
    cfg.model.head.num_classes = 7
    model = build_model(cfg)
    share_layers(model, ['conv[12]'], TIED)
    model.load_state_dict(load_checkpoint_file(str(tmp_path / 'ours.pth'))['state_dict'])
    assert torch.equal(model.head.fc.weight, network.fc.weight)


@pytest.mark.parametrize('change', [dict(fc='linear'), {'layer1.0.conv1': 'layer1.0.conv0'}, dict(layer1='stage1')])
def test_another_network_is_refused(change):
    state_dict = theirs('resnet18').state_dict()
    for old, new in change.items():
        state_dict = {key.replace(old, new): tensor for key, tensor in state_dict.items()}
    with pytest.raises(SharingError, match='is not of a whole classifier that is known'):
        matching_config(from_torchvision(state_dict))
