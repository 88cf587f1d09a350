"""The scripts of projects/compression: what they train, and the numbers that they keep."""

import copy
import json
from types import SimpleNamespace

import pytest
import torch

from helpers import ROOT
from mmshared.engine.build import build_model

CONFIG = 'projects/dsfb/configs/shared-resnet32-s8u1_4e_cifar10-jpeg.py'


@pytest.fixture
def scripts(monkeypatch, tmp_path):
    """The folder of the scripts can be imported from, and results are kept elsewhere."""
    monkeypatch.chdir(ROOT)
    for folder in ('tools', 'projects/compression'):
        monkeypatch.syspath_prepend(str(ROOT / folder))
    import results

    monkeypatch.setattr(results, 'RESULTS', tmp_path / 'results')
    return results


def options_of(images, **options):
    """A training of an epoch on a few images."""
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        options |= {f'{loader}.num_workers': 0, f'{loader}.persistent_workers': False}
    short = {'train_cfg.max_epochs': 1, 'param_scheduler.total_steps': 1, 'train_dataloader.batch_size': 20}
    return {'data_root': str(images), **short, **options}


@pytest.mark.slow
def test_a_network_trained_from_scratch_leaves_its_numbers_once(scripts, images, tmp_path, monkeypatch, capsys):
    import scratch

    options = ['--name', 'S8U1', '--seeds', '3', '--shape', '32', '32', '--work-dir', tmp_path / 'runs']
    changes = [f'{key}={value}' for key, value in options_of(images, **{'model.backbone.depth': 20}).items()]
    arguments = [CONFIG, *options, '--cfg-options', *changes]
    monkeypatch.setattr('sys.argv', ['scratch.py', *map(str, arguments)])
    scratch.main()
    (path,) = (tmp_path / 'results/cifar10-jpeg').iterdir()
    assert path.stem in capsys.readouterr().out
    result = json.loads(path.read_text())
    assert (result['plan'], result['seed'], result['epochs']) == ('S8U1', 3, 1)
    assert result['trained']['parameters'] == 125_074 and result['trained']['metrics'].keys() == {'accuracy/top1'}
    assert result['int8']['bytes'] < 0.4 * result['float32']['bytes']
    trained = path.stat().st_mtime_ns
    scratch.main()
    assert path.stat().st_mtime_ns == trained and not capsys.readouterr().out


@pytest.mark.slow
def test_a_network_that_is_given_to_a_runner_keeps_its_weights(scripts, images, tmp_path):
    options = options_of(images, **{'param_scheduler.eta_max': 1e-12})
    cfg = scripts.read_config(SimpleNamespace(config=CONFIG, cfg_options=options))
    network = build_model(cfg)
    before = copy.deepcopy(network)
    scripts.runner_of(network, cfg, tmp_path).train()
    assert network.backbone.bn1.running_mean.abs().max() > 0  # it was trained
    for parameter, own in zip(network.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(parameter, own)
