"""The report of who shares what, and of what could."""

import json

import pytest

from helpers import ROOT, call
from mmshared.analysis.complexity import complexity
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
    assert complexity(load_config(config), (64, 64))['macs'] == alone['macs'] > 0
