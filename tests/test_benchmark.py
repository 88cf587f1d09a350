"""Suites of runs: finished ones are skipped, interrupted ones go on, failed ones stop no other."""
import csv
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml
from helpers import ROOT
from mmengine.config import Config
from PIL import Image

from mmshared import SharingError
from mmshared.analysis.suite import read_suite
from mmshared.cli import config_path

CONFIGS = [f'projects/dsfb/configs/{name}_4e_cifar10-jpeg.py' for name in ('resnet32', 'shared-resnet32-s8u1')]
SUITES = sorted((ROOT / 'configs/benchmarks').glob('*.yaml'))


def write(path, pictures, configs=CONFIGS, **keys):
    options = {'data_root': str(pictures), 'train_dataloader.batch_size': 20, 'train_dataloader.num_workers': 0,
               'train_dataloader.persistent_workers': False, 'val_dataloader.num_workers': 0,
               'val_dataloader.persistent_workers': False, 'default_hooks.logger.interval': 1,
               'train_cfg.max_epochs': 2}
    suite = dict(metric='accuracy/top1', shape=[32, 32], seeds=[0, 1], configs=configs, options=options)
    path.write_text(yaml.safe_dump({**suite, **keys}))
    return path


def command(suite, work_dir, *options):
    return [sys.executable, 'tools/benchmark.py', str(suite), '--work-dir', str(work_dir), *options]


def call(*arguments):
    return subprocess.run(command(*arguments), capture_output=True, text=True, cwd=ROOT)


def test_an_interrupted_suite_goes_on_and_gives_one_table(pictures, tmp_path):
    suite, work_dir = write(tmp_path / 'small.yaml', pictures), tmp_path / 'runs'
    process = subprocess.Popen(command(suite, work_dir, '--jobs', '2'), stdout=subprocess.PIPE, text=True, cwd=ROOT,
                               stderr=subprocess.STDOUT, start_new_session=True)
    third = work_dir / 'shared-resnet32-s8u1_4e_cifar10-jpeg/seed_0'
    deadline = time.monotonic() + 120
    while not (third / 'epoch_1.pth').exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    assert 'Interrupted. The same command goes on.' in process.communicate()[0] and process.returncode == 1
    finished = sorted(work_dir.glob('*/*/result.json'))
    assert 0 < len(finished) < 4
    times = [path.stat().st_mtime_ns for path in finished]

    result = call(suite, work_dir)
    assert result.returncode == 0, result.stdout
    assert [path.stat().st_mtime_ns for path in finished] == times
    assert 'resumed epoch: 1' in (third / 'run.log').read_text() or third / 'result.json' in finished
    runs = {path.parent.parent.name: [] for path in sorted(work_dir.glob('*/*/result.json'))}
    for path in work_dir.glob('*/*/result.json'):
        runs[path.parent.parent.name].append(json.loads(path.read_text()))
    table = json.loads((work_dir / 'results.json').read_text())['models']
    assert [row['runs'] for row in table] == [2, 2]
    assert [row['parameters'] for row in table] == [464_154, 150_666]
    assert [row['macs'] for row in table] == [68_862_592, 47_628_928]
    for row in table:
        metrics = [run['metric'] for run in runs[row['model']]]
        assert row['mean'] == pytest.approx(statistics.mean(metrics))
        assert row['deviation'] == pytest.approx(statistics.stdev(metrics))
        written = (work_dir / row['model'] / 'seed_0/epoch_2.pth').stat().st_size
        assert row['checkpoint_bytes'] == pytest.approx(written, rel=1e-3)
        assert row['seconds_per_iteration'] > 0 and row['memory_bytes'] > 1e8
    with open(work_dir / 'results.csv') as file:
        assert [int(row['parameters']) for row in csv.DictReader(file)] == [464_154, 150_666]
    assert (work_dir / 'results.md').read_text() in result.stdout
    assert '| shared-resnet32-s8u1_4e_cifar10-jpeg | 2 |' in result.stdout
    colours = np.asarray(Image.open(work_dir / 'results.png').convert('RGB')).reshape(-1, 3)
    assert all((colours == colour).all(1).sum() > 20 for colour in [(31, 119, 180), (255, 127, 14)])

    again = call(suite, work_dir, '--dry-run').stdout.splitlines()
    assert len(again) == 4 and all(line.startswith('# finished: ') for line in again)
    write(suite, pictures, seeds=[0, 1], shape=[32, 32], options={'train_cfg.max_epochs': 3})
    assert 'seed_0 holds a run with other settings' in call(suite, work_dir).stderr


def test_a_failed_run_stops_no_other_and_its_reason_is_told(pictures, tmp_path):
    pytest.importorskip('submitit')
    broken = dict(config=CONFIGS[1], name='broken', options={'model.backbone.sharing.groups': "['conv9']"})
    suite = write(tmp_path / 'small.yaml', pictures, [broken, CONFIGS[1]], seeds=[0])
    for options in (['--jobs', '2'], ['--submitit']):
        result = call(suite, tmp_path / options[0], *options)
        assert result.returncode == 1
        assert re.search(r"failed: broken, seed 0: Error: The pattern 'conv9' forms no group.*run.log", result.stdout)
        assert '| shared-resnet32-s8u1_4e_cifar10-jpeg | 1 |' in result.stdout, result.stderr


@pytest.mark.parametrize('path', SUITES, ids=lambda path: path.stem)
def test_the_suites_name_configs_that_are_there_and_keys_that_they_have(path, tmp_path):
    suite = read_suite(path, tmp_path)
    assert len(suite.runs) > 4
    for run in suite.runs:
        cfg = Config.fromfile(ROOT / run.config if '::' not in run.config else config_path(run.config))
        for key in run.options:
            value = cfg
            for part in key.split('.'):
                value = value[part]
        assert suite.metric.split('/')[0] in str(cfg.val_evaluator).lower()


@pytest.mark.parametrize('text, words', [
    ('configs: [', 'cannot be read'),
    ('configs: [a.py]', 'has to be a mapping with metric and configs'),
    ('metric: a\nconfigs: [a.py]\nseed: 3', 'has to be a mapping'),
    ('metric: a\nconfigs: [{name: b}]', 'give a config, or a mapping with config'),
    ('metric: a\nconfigs: [x/a.py, y/a.py]', 'has a, seed 0 twice: give entries of one config names of their own'),
])
def test_a_suite_that_says_something_else_is_refused(tmp_path, text, words):
    (tmp_path / 'suite.yaml').write_text(text)
    with pytest.raises(SharingError, match=words):
        read_suite(tmp_path / 'suite.yaml', tmp_path)


def test_runs_over_several_processes_go_through_torchrun(pictures, tmp_path):
    result = call(write(tmp_path / 'small.yaml', pictures), tmp_path / 'runs', '--dry-run', '--gpus-per-run', '2')
    lines = result.stdout.splitlines()
    assert len(lines) == 4 and not (tmp_path / 'runs').exists()
    assert all('-m torch.distributed.run --standalone --nproc_per_node=2' in line for line in lines)
    assert all(line.endswith('--launcher pytorch') and '--resume' in line for line in lines)
    assert 'randomness.seed=1' in lines[1]
