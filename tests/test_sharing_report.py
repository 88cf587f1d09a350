"""The report of who shares what, and of what could."""

import json

import pytest
import torch
from mmengine.config import Config
from torch import nn
from torchvision.ops import DeformConv2d

from helpers import ROOT, call
from mmshared import banks, share_layers
from mmshared.analysis.complexity import complexity, count_multiply_adds, sharing_groups
from mmshared.engine.build import build_empty, build_model
from mmshared.engine.config import load_config

pytestmark = pytest.mark.slow  # a tool

TOOL = 'analysis_tools/sharing_report.py'
CONFIGS = ROOT / 'configs/shared_resnet'


def test_a_plain_network_is_told_what_could_share():
    result = call(TOOL, CONFIGS / 'resnet32_b256_cifar10.py', '--shape', 32)
    assert 'Nothing is shared in this network: these layers could be.' in result.stdout, result.stderr
    assert 'backbone.layer3 │ conv2 │ 64x64x3x3 │      4 │' in result.stdout
    assert 'parameters of the whole model: 464,154, plain 464,154 (+0.0%)' in result.stdout


def test_a_network_without_repeated_layers_has_a_sentence_and_no_table():
    result = call(TOOL, 'mmpretrain::lenet/lenet5_mnist.py', '--shape', 1, 32, 32)
    assert 'Nothing is shared in this network, and nothing repeats.' in result.stdout, result.stderr
    assert '│' not in result.stdout


def test_options_change_the_network_that_is_reported(tmp_path):
    config, option = CONFIGS / 'shared-resnet32-s8u1_b256_cifar10.py', 'model.backbone.sharing.bank.shared_rank=4'
    found = []
    for name, options in (('a', []), ('b', ['--cfg-options', option])):
        result = call(TOOL, config, '--shape', 32, '--json', tmp_path / name, *options)
        assert result.returncode == 0, result.stderr
        found.append(json.loads((tmp_path / name).read_text())['groups'][0]['shared'])
    assert found[1] < found[0]


def test_of_a_detector_with_a_teacher_the_maps_are_the_teachers():
    config = 'mmdet::soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py'
    alone = complexity(load_config('mmdet::faster_rcnn/faster-rcnn_r50-caffe_fpn_1x_coco.py'), (64, 64))
    assert complexity(load_config(config), (64, 64))['multiply_adds'] == alone['multiply_adds'] > 0


@pytest.mark.parametrize(
    'name',
    [
        'shared_resnet/shared-resnet32-s16u1-double_b256_cifar10.py',
        'repeatnet/repeat-resnet-w2-linear_b128_cifar10.py',
        'repeatnet/repeat-vgg4-swish_b128_cifar10.py',
        'small/faster-rcnn_r50-narrow-shared_6e_digits.py',
    ],
)
def test_the_report_of_groups_adds_up(name):
    cfg = Config.fromfile(ROOT / 'configs' / name)
    model, totals = build_model(cfg), complexity(cfg, (64, 64))
    rows = sharing_groups(model, (64, 64))
    assert (
        sum(row['shared'] + row['own'] - row['plain'] for row in rows)
        == totals['parameters'] - totals['plain_parameters']
    )
    assert (
        sum(row['multiply_adds'] - row['plain_multiply_adds'] for row in rows)
        == totals['multiply_adds'] - totals['plain_multiply_adds']
    )
    layers = [model.get_submodule(f'{row["stage"]}.{layer}'.lstrip('.')) for row in rows for layer in row['layers']]
    assert layers == [layer for bank in banks(model) for layer in bank.layers]


def test_the_report_is_printed_and_written(tmp_path):
    config, written = ROOT / 'configs/shared_resnet/shared-resnet32-s16u1_b256_cifar10.py', tmp_path / 'report.json'
    result = call('analysis_tools/sharing_report.py', config, '--shape', 32, 32, '--json', written)
    assert 'parameters of the whole model: 197,258, plain 464,154 (-57.5%)' in result.stdout, result.stderr
    report = json.loads(written.read_text())
    assert [row['stage'] for row in report['groups']] == [f'backbone.layer{i}' for i in (1, 2, 3)]
    assert report['totals']['parameters'] == 197_258


class Encoder(nn.Module):
    """An encoder whose attentions have a fused kernel without gradients."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(3))

    def forward(self, x):
        x = x.flatten(2).mT.repeat(1, 1, 8)
        for layer in self.layers:
            x = layer(x)
        return x


def test_multiply_adds_of_projections_count_for_their_attention():
    tokens, width = 16, 8
    products = tokens * (4 * width**2 + 2 * 16 * width)
    network = Encoder()
    share_layers(network, groups=['self_attn.out_proj', 'linear1'], bank=dict(type='RelaxedTie', rank=2))
    network.layers[1].eval()
    assert count_multiply_adds(network, (1, 4, 4))[''] == count_multiply_adds(Encoder(), (1, 4, 4))[''] == 3 * products
    assert [layer.training for layer in network.layers] == [True, False, True]
    found = {
        row['group']: (row['multiply_adds'], row['plain_multiply_adds']) for row in sharing_groups(network, (1, 4, 4))
    }
    assert found == {'self_attn.out_proj': (None, None), 'linear1': (2 * tokens * 16 * width,) * 2}


def test_multiply_adds_of_a_deformable_conv_are_those_of_the_conv():
    class Deformable(nn.Module):
        def __init__(self):
            super().__init__()
            self.offsets, self.conv = nn.Conv2d(3, 18, 3, padding=1), DeformConv2d(3, 8, 3, padding=1)

        def forward(self, x):
            return self.conv(x, self.offsets(x))

    counts = count_multiply_adds(Deformable(), (16, 16))
    assert counts['conv'] == 16**2 * 8 * 27 and counts[''] == 16**2 * (8 + 18) * 27


def test_multiply_adds_of_a_list_of_necks_count_for_the_neck():
    cfg = load_config('mmdet::libra_rcnn/libra-faster-rcnn_r50_fpn_1x_coco.py')
    counts = count_multiply_adds(build_empty(cfg), (64, 64))
    assert counts['neck'] > counts['neck.0'] > 0
    assert counts['backbone.layer1.0.downsample'] == 16**2 * 64 * 256
    assert counts[''] == counts['backbone'] + counts['neck']


def test_a_network_without_values_has_none():
    """As DINO's, whose level embedding is made without regard to the device."""
    network = build_empty(Config(), lambda cfg: nn.ParameterList([torch.Tensor(4), torch.empty(4)]))
    assert all(parameter.is_meta for parameter in network)


def test_multiply_adds_are_counted_for_images_of_one_channel():
    conv = nn.Conv2d(1, 2, 3)
    assert count_multiply_adds(conv, (1, 6, 5))[''] == 4 * 3 * 9 * 2
    assert count_multiply_adds(nn.Conv2d(3, 2, 3), (6, 5))[''] == 4 * 3 * 9 * 2 * 3
