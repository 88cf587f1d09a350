"""Plain checkpoints become shared ones wherever a network shares."""

import re

import pytest
import torch
from mmengine.config import Config

from helpers import ROOT, call, randomise_norms
from mmshared import SharingError
from mmshared.compress.calibration import calibration_loader
from mmshared.compress.fit import fit_checkpoint
from mmshared.convert.dense import rank_for_energy
from mmshared.engine.build import build_model, build_plain, load_model
from mmshared.engine.checkpoint import load_checkpoint_file
from mmshared.engine.config import load_config
from mmshared.sharing.state_dict import Conversion

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
        assert ('shared.pth, for the init_cfg of the backbone' in result.stdout) == (network is plain.backbone)


RESNET = """
_base_ = '{root}/projects/dsfb/configs/shared-resnet32-s8u1_4e_cifar10-jpeg.py'
model = dict(backbone=dict(depth=20))
train_dataloader = dict(num_workers=0, dataset=dict(data_root='{images}'))
val_dataloader = dict(num_workers=0, dataset=dict(data_root='{images}'))
test_dataloader = dict(num_workers=0, dataset=dict(data_root='{images}'))
"""


@pytest.fixture
def resnet(tmp_path, images):
    (tmp_path / 'resnet.py').write_text(RESNET.format(root=ROOT, images=images))
    cfg = load_config(str(tmp_path / 'resnet.py'))
    plain = randomise_norms(build_plain(cfg))
    (batch,) = calibration_loader(cfg, 40)
    x = plain.data_preprocessor(batch)['inputs']
    for module in plain.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0  # the statistics of these images, as if trained on them
    plain(x)
    torch.save(dict(state_dict=plain.state_dict()), tmp_path / 'plain.pth')
    return cfg, plain.eval(), x


def test_images_lower_the_error_of_the_outputs_and_steps_on_them_lower_it_further(resnet, tmp_path):
    cfg, plain, x = resnet
    by_weights = build_model(cfg)
    by_weights.load_state_dict(plain.state_dict())
    models, out = [by_weights.eval()], tmp_path / 'shared.pth'
    for options in (['--steps', 0], []):
        result = call(TOOL, cfg.filename, tmp_path / 'plain.pth', out, '--images', 40, *options)
        assert 'energy' not in result.stdout
        assert 'of the' in result.stdout, result.stderr
        models.append(load_model(cfg, str(out)).eval())
    expected = plain.backbone(x)[-1]
    errors = [(model.backbone(x)[-1] - expected).norm() for model in models]
    assert errors[0] > errors[1] > errors[2]
    means = [model.backbone.layer3[2].norm2.running_mean for model in models]
    assert not torch.allclose(means[1], means[0]) and torch.equal(means[1], means[2])


def test_a_bank_that_cannot_be_fitted_is_refused_before_any_image_is_read(resnet, monkeypatch):
    cfg, plain, _ = resnet
    cfg.model.backbone.sharing.bank = dict(type='RepeatedKernel', mode='inter', transform=dict(type='swish'))
    monkeypatch.setattr('mmshared.compress.fit.collect_moments', lambda *args: 1 / 0)
    with pytest.raises(SharingError, match='cannot be started from the weights of a plain network'):
        fit_checkpoint(cfg, plain.state_dict(), 'plain.pth', images=8, steps=0)


def test_images_need_training_data_and_the_whole_network(resnet, tmp_path):
    cfg, plain, _ = resnet
    torch.save(plain.backbone.state_dict(), tmp_path / 'backbone.pth')
    arguments = tmp_path / 'shared.pth', '--images', 8
    result = call(TOOL, cfg.filename, tmp_path / 'backbone.pth', *arguments)
    assert 'is of a backbone, and images run through the whole network' in result.stderr
    result = call(TOOL, cfg.filename, tmp_path / 'plain.pth', *arguments, '--cfg-options', 'data_root=/nowhere')
    assert 'The data set of train_dataloader is expected in /nowhere/, which is not there' in result.stderr
    result = call(TOOL, cfg.filename, tmp_path / 'plain.pth', *arguments, '--cfg-options', 'train_dataloader=None')
    assert 'The config has no train_dataloader' in result.stderr
    assert not arguments[0].exists()


def test_the_command_writes_what_loading_makes(tmp_path):
    config = ROOT / 'configs/shared_resnet/shared-resnet32-s8u1_b256_cifar10.py'
    plain = build_model(Config.fromfile(config.with_name('resnet32_b256_cifar10.py')))
    torch.save(dict(state_dict=plain.state_dict()), tmp_path / 'plain.pth')
    result = call(TOOL, config, tmp_path / 'plain.pth', tmp_path / 'shared.pth', '--rank-for-energy', '0.9')
    assert result.returncode == 0, result.stderr
    shared = build_model(Config.fromfile(config))
    shared.load_state_dict(plain.state_dict())
    written = load_checkpoint_file(str(tmp_path / 'shared.pth'))['state_dict']
    assert written.keys() == shared.state_dict().keys()
    kept, rank = re.search(r'layer3 .* │ +\d\.\d+ │ +(\d+\.\d)% │ +(\d+) │', result.stdout).groups()
    rows = torch.cat(
        [conv.weight.flatten(1) for block in list(plain.backbone.layer3)[1:] for conv in (block.conv1, block.conv2)]
    )
    shares = torch.linalg.svdvals(rows).square().cumsum(0) / rows.square().sum()
    assert shares[int(rank) - 1] >= 0.9 > shares[int(rank) - 2]
    assert shares[31].item() < float(kept) / 100 < 1  # 32 shared filters, and four of each conv's own
    again = call(TOOL, config, tmp_path / 'shared.pth', tmp_path / 'no.pth')
    assert again.returncode == 1 and 'is shared already' in again.stderr and not (tmp_path / 'no.pth').exists()


def test_kernels_of_several_shapes_span_no_common_space():
    same, other = torch.eye(4).view(4, 4, 1, 1), torch.ones(4, 4, 3, 3)
    ranks = [rank_for_energy(Conversion('stage', ['a', 'b'], None, [same, each], 0.0), 0.9) for each in (same, other)]
    assert ranks == [4, None]
