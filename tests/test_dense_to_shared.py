"""Plain checkpoints become shared ones wherever a network shares."""

import pytest
import torch

from helpers import ROOT, call
from mmshared.engine.build import build_model, build_plain
from mmshared.engine.checkpoint import load_checkpoint_file
from mmshared.engine.config import load_config

pytestmark = pytest.mark.slow  # they run a tool

TOOL = 'model_converters/dense_to_shared.py'
# A narrow DINO, whose encoder shares the first linear of its FFNs.
DINO = """
_base_ = 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'
ffn = dict(ffn_cfg=dict(feedforward_channels=32))
model = dict(
    type='SharedDINO',
    sharing=dict(stages='encoder.layers', groups=['ffn.layers.0.0'], bank=dict(type='TiedFilters')),
    backbone=dict(depth=18, base_channels=8, stem_channels=8),
    neck=dict(in_channels=[16, 32, 64]),
    encoder=dict(layer_cfg=ffn),
    decoder=dict(num_layers=1, layer_cfg=ffn),
    bbox_head=dict(num_classes=3),
)
"""


@pytest.fixture
def dino(tmp_path):
    (tmp_path / 'dino.py').write_text(DINO)
    return load_config(str(tmp_path / 'dino.py'))


def test_a_whole_detector_that_shares_outside_of_its_backbone(dino, tmp_path):
    plain = build_plain(dino)
    torch.nn.init.normal_(plain.level_embed)  # which is memory as it was found until init_weights
    torch.save(dict(state_dict=plain.state_dict()), tmp_path / 'plain.pth')
    result = call(TOOL, dino.filename, tmp_path / 'plain.pth', tmp_path / 'shared.pth')
    assert 'encoder.layers' in result.stdout and 'TiedFilters' in result.stdout, result.stderr
    shared = build_model(dino)
    shared.load_state_dict(plain.state_dict(), strict=True)  # what loading makes of it
    written = load_checkpoint_file(str(tmp_path / 'shared.pth'))['state_dict']
    assert written.keys() == shared.state_dict().keys()
    assert all(torch.equal(tensor, written[key]) for key, tensor in shared.state_dict().items())

    torch.save(plain.backbone.state_dict(), tmp_path / 'backbone.pth')
    result = call(TOOL, dino.filename, tmp_path / 'backbone.pth', tmp_path / 'no.pth')
    assert 'backbone.pth is of a backbone, and the shared layers here are outside of it' in result.stderr
    assert not (tmp_path / 'no.pth').exists()


def test_a_backbone_without_its_classifier_and_one_of_other_classes_by_an_option(tmp_path):
    config = str(ROOT / 'configs/shared_resnet/shared-resnet32-s8u1_b256_cifar10.py')
    cfg = load_config(config)
    cfg.model.head.num_classes = 7
    plain, shared = build_plain(cfg), build_model(cfg)
    shared.load_state_dict(plain.state_dict())
    for network, expected in ((plain, shared), (plain.backbone, shared.backbone)):
        torch.save(network.state_dict(), tmp_path / 'plain.pth')
        out = tmp_path / 'shared.pth'
        result = call(TOOL, config, tmp_path / 'plain.pth', out, '--cfg-options', 'model.head.num_classes=7')
        assert result.returncode == 0, result.stderr
        assert load_checkpoint_file(str(out))['state_dict'].keys() == expected.state_dict().keys()
