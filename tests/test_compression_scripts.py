"""The scripts of projects/compression: what they train, and the numbers that they keep."""

import argparse
import copy
import json
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch import nn

from helpers import ROOT
from mmshared import SharingError
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


def test_the_claims_are_of_networks_that_the_suite_trains():
    parser, trained = argparse.ArgumentParser(), set()
    for option, kind in (('--name', str), ('--plan', str), ('--peer', str), ('--keep', float)):
        parser.add_argument(option, nargs='+', type=kind, default=[])
    parser.add_argument('--epochs', nargs=1, type=int, default=[])
    for entry in yaml.safe_load((ROOT / 'configs/benchmarks/compression.yaml').read_text())['configs']:
        # The epochs of a training from scratch are those of its config.
        words = entry['script'].replace('train_cfg.max_epochs=', '--epochs ').split()
        args, table = parser.parse_known_args(words)[0], Path(entry['config']).stem
        if args.name:
            args.keep, table = [1], table.rpartition('_')[2]
        methods = args.name or args.peer or args.plan or ['planned']
        trained |= {(table, *run) for run in product(methods, args.keep, args.epochs)}
    for claim in yaml.safe_load((ROOT / 'projects/compression/claims.yaml').read_text()):
        for name in (claim['better'], claim['than']):
            assert (claim['table'], name, claim.get('keep', 1), claim['epochs']) in trained


def test_the_knob_of_a_peer_is_turned_to_the_largest_network_that_is_small_enough(scripts, monkeypatch):
    peers = pytest.importorskip('peers')
    monkeypatch.setitem(peers.PEERS, 'narrow', lambda model, share, _: nn.Linear(8, 1 + int(100 * share)))
    assert peers.to_size('narrow', nn.Linear(8, 100), 9 * 40, {}).out_features == 40
    with pytest.raises(SharingError, match='narrow does not make the network as small as 8 parameters'):
        peers.to_size('narrow', nn.Linear(8, 100), 8, {})


@pytest.mark.slow
def test_other_plans_are_for_the_same_layers_and_keep_their_numbers(scripts, images, tmp_path, monkeypatch):
    run = pytest.importorskip('run')
    config = 'projects/compression/configs/resnet56_3e_cifar10-jpeg.py'
    options = {**options_of(images), 'model.backbone.depth': 20, 'train_dataloader.dataset.indices': 20}
    cfg = scripts.read_config(SimpleNamespace(config=config, cfg_options=options))
    torch.save(dict(state_dict=build_model(cfg).state_dict()), tmp_path / 'plain.pth')
    arguments = [config, tmp_path / 'plain.pth', '--plan', 'uniform', 'low-rank', '--keep', '0.5', '--steps', '0']
    changes = [f'{key}={value}' for key, value in options.items()]
    monkeypatch.setattr(
        'sys.argv', ['run.py', *map(str, arguments), '--work-dir', str(tmp_path), '--cfg-options', *changes]
    )
    run.main()
    (table,) = (tmp_path / 'results').iterdir()
    found = {path.stem: json.loads(path.read_text()) for path in table.iterdir()}
    assert found.keys() == {f'{plan}-0.5_steps-0_epochs-0_seed-0' for plan in ('uniform', 'low-rank')}
    rows = {}
    for plan in ('uniform', 'low-rank'):
        result = found[f'{plan}-0.5_steps-0_epochs-0_seed-0']
        assert 0.4 < result['converted']['parameters'] / result['plain']['parameters'] <= 0.5
        rows[plan] = json.loads((tmp_path / table.name / plan / 'report.json').read_text())['plan']
    sizes = {plan: {len(row['layers']) for row in each} for plan, each in rows.items()}
    assert sizes['low-rank'] == {1} and max(sizes['uniform']) > 1
    layers = [sorted(name for row in each for name in row['layers']) for each in rows.values()]
    assert layers[0] == layers[1]


@pytest.mark.slow
def test_a_network_trained_from_scratch_leaves_its_numbers_once(scripts, images, tmp_path, monkeypatch, capsys):
    import scratch

    options = ['--name', 'S8U1', '--seeds', '3', '--work-dir', tmp_path / 'runs']
    changes = [f'{key}={value}' for key, value in options_of(images, **{'model.backbone.depth': 20}).items()]
    arguments = [CONFIG, *options, '--cfg-options', *changes]
    monkeypatch.setattr('sys.argv', ['scratch.py', *map(str, arguments)])
    scratch.main()
    (path,) = (tmp_path / 'results/cifar10-jpeg').iterdir()
    assert path.stem in capsys.readouterr().out
    result = json.loads(path.read_text())
    assert (result['method'], result['seed'], result['epochs']) == ('S8U1', 3, 1)
    assert result['trained']['parameters'] == 125_074 and result['trained']['metrics'].keys() == {'accuracy/top1'}
    assert result['int8']['bytes'] < 0.4 * result['float32']['bytes']
    trained = path.stat().st_mtime_ns
    scratch.main()
    assert path.stat().st_mtime_ns == trained and capsys.readouterr().out == f'{path}: there already\n'


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
