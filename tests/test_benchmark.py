"""Suites of runs: finished ones are skipped, interrupted ones go on, failed ones stop no other."""

import csv
import json
import os
import re
import signal
import statistics
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from mmengine.config import Config
from PIL import Image

from helpers import ROOT, Forked, call
from mmshared import SharingError
from mmshared.analysis.jobs import Local, Process, _told_to_end, reason_of
from mmshared.analysis.suite import read_suite

CONFIG = 'projects/dsfb/configs/shared-resnet32-s8u1_4e_cifar10-jpeg.py'


def write(path, images, configs=(CONFIG,), epochs=2, **keys):
    options = {
        'data_root': str(images),
        'train_dataloader.batch_size': 20,
        'train_dataloader.num_workers': 0,
        'train_dataloader.persistent_workers': False,
        'val_dataloader.num_workers': 0,
        'val_dataloader.persistent_workers': False,
        'default_hooks.logger.interval': 1,
        'train_cfg.max_epochs': epochs,
        'default_hooks.checkpoint.max_keep_ckpts': -1,
    }
    suite = dict(metric='accuracy/top1', shape=[32, 32], seeds=[0, 1], configs=list(configs), options=options)
    path.write_text(yaml.safe_dump({**suite, **keys}))
    return path


@pytest.fixture(autouse=True)
def _in_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def benchmark(suite, work_dir, *options):
    return call('benchmark.py', suite, '--work-dir', work_dir, *options)


def commands_that_run():
    for path in Path('/proc').glob('[0-9]*/cmdline'):
        with suppress(OSError):  # it has ended
            yield path.read_text(errors='replace')


@pytest.mark.slow
def test_an_interrupted_suite_goes_on_and_gives_one_table(images, tmp_path):
    suite, work_dir = write(tmp_path / 'small.yaml', images), tmp_path / 'runs'
    model = 'shared-resnet32-s8u1_4e_cifar10-jpeg'
    first, second = (work_dir / model / f'seed_{seed}' for seed in (0, 1))
    process = Forked(tmp_path / 'interrupted', 'benchmark.py', suite, '--work-dir', work_dir)
    deadline = time.monotonic() + 600
    while not (second / 'last_checkpoint').exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)  # as Ctrl-C does
    told = process.result()
    assert 'Interrupted. Call the same command again to go on.' in told.stderr and told.returncode == 1
    assert (first / 'result.json').exists() and not (second / 'result.json').exists()
    commands = [*commands_that_run()]
    assert commands and not any(str(work_dir) in command for command in commands)
    finished = (first / 'result.json').stat().st_mtime_ns

    result = benchmark(suite, work_dir)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (first / 'result.json').stat().st_mtime_ns == finished
    assert re.search(r'resumed epoch: \d', (second / 'run.log').read_text())
    runs = [json.loads((each / 'result.json').read_text()) for each in (first, second)]
    (row,) = json.loads((work_dir / 'results.json').read_text())['models']
    assert (row['runs'], row['parameters'], row['multiply_adds']) == (2, 150_666, 47_628_928)
    metrics = [run['metric'] for run in runs]
    assert row['mean'] == pytest.approx(statistics.mean(metrics))
    assert row['deviation'] == pytest.approx(statistics.stdev(metrics))
    assert row['checkpoint_bytes'] == pytest.approx((first / 'epoch_2.pth').stat().st_size, rel=1e-3)
    assert row['seconds_per_iteration'] > 0 and row['memory_bytes'] > 1e8
    with open(work_dir / 'results.csv') as file:
        assert [int(row['parameters']) for row in csv.DictReader(file)] == [150_666]
    assert (work_dir / 'results.md').read_text() in result.stdout and f'| {model} | 2 |' in result.stdout
    colours = np.asarray(Image.open(work_dir / 'results.png').convert('RGB')).reshape(-1, 3)
    assert (colours == (31, 119, 180)).all(1).sum() > 20

    again = benchmark(suite, work_dir, '--dry-run').stdout.splitlines()
    assert len(again) == 2 and all(line.startswith('# finished: ') for line in again)
    kept = (first / 'result.json').read_text()
    (first / 'result.json').write_text(kept[:9])
    assert 'result.json is damaged: remove it, and train this run again' in benchmark(suite, work_dir).stderr
    (first / 'result.json').write_text(kept)
    write(suite, images, metric='loss')
    assert not any(line.startswith('#') for line in benchmark(suite, work_dir, '--dry-run').stdout.splitlines())
    write(suite, images, options={'train_cfg.max_epochs': 3})
    assert 'seed_0 holds a run with other settings' in benchmark(suite, work_dir).stderr


@pytest.mark.parametrize('options', [['--jobs', '2'], ['--submitit', '--partition', 'gpu']], ids=['here', 'slurm'])
@pytest.mark.slow
def test_a_failed_run_stops_no_other_and_its_reason_is_told(images, tmp_path, options, monkeypatch):
    folder = dict(config=CONFIG, name='broken', options={'data_root': str(tmp_path / 'none')})
    suite = write(tmp_path / 'small.yaml', images, [folder, CONFIG], epochs=1, seeds=[0])
    if '--submitit' in options:
        submitit = pytest.importorskip('submitit')
        assert 'Error: There is no SLURM here' in benchmark(suite, tmp_path / 'runs', *options).stderr
        executor, asked = submitit.AutoExecutor, []
        monkeypatch.setattr(
            submitit,
            'AutoExecutor',
            lambda folder, cluster: asked.append(cluster) or executor(folder, cluster='local'),
        )
    result = benchmark(suite, tmp_path / 'runs', *options)
    assert result.returncode == 1
    assert re.search(r'failed: broken, seed 0: The data set of .*none/, which is not there.*run.log', result.stdout), (
        result.stdout + result.stderr
    )
    assert '| shared-resnet32-s8u1_4e_cifar10-jpeg | 1 |' in result.stdout
    assert '--submitit' not in options or asked == ['slurm']


def test_a_script_runs_in_place_of_a_training(images, tmp_path):
    script = tmp_path / 'script.py'
    script.write_text(
        'import sys; print("Error: No." if "b" in sys.argv else sys.argv[1:]); sys.exit("b" in sys.argv)'
    )
    entries = [dict(config=CONFIG, name=name, script=f'{script} {name} "c d"') for name in 'ab']
    suite, runs = write(tmp_path / 'small.yaml', images, entries, options=None), tmp_path / 'runs'
    result = benchmark(suite, runs)
    assert (runs / 'a/run.log').read_text().strip() == str([CONFIG, 'a', 'c d', '--work-dir', str(runs / 'a')])
    assert 'failed: b: No. ' in result.stdout and result.returncode == 1
    assert 'wrote' not in result.stdout and len(benchmark(suite, runs, '--dry-run').stdout.splitlines()) == 2


def test_options_arrive_as_the_file_has_them(tmp_path):
    options = {
        'model.backbone.sharing': {'groups': [r'conv(1|2)\b'], 'bank': {'unique_rank': 2}},
        'optim_wrapper.optimizer.lr': 1.0e-3,
        'data_root': '/data/my images, all',
        'work_dir': None,
    }
    suite = dict(metric='accuracy/top1', configs=[dict(config=str(ROOT / CONFIG), name='one', options=options)])
    (tmp_path / 'suite.yaml').write_text(yaml.safe_dump(suite))
    (run,) = read_suite(tmp_path / 'suite.yaml', tmp_path / 'runs').runs
    (tmp_path / 'config.py').write_text(run.config)
    cfg = Config.fromfile(tmp_path / 'config.py')
    assert cfg.model.backbone.sharing.bank.unique_rank == 2
    assert cfg.model.backbone.sharing.groups == [r'conv(1|2)\b'] and cfg.optim_wrapper.optimizer.lr == 1e-3
    assert cfg.train_dataloader.dataset.data_root == '/data/my images, all/' and cfg.randomness.seed == 0


@pytest.mark.parametrize(
    'text, words',
    [
        ('configs: [', 'cannot be read'),
        ('configs: [a.py]', 'has to be a mapping with metric and configs and, if you want them, seeds'),
        ('metric: a\nconfigs: [a.py]\nseed: 3', 'has to be a mapping'),
        ('metric: a\nconfigs: [{name: b}]', 'The entry .* has to be a mapping with config and'),
        ('metric: a\nconfigs: [{config: b.py, name: ../b}]', 'letters, digits'),
        ('metric: a\nconfigs: [3]', r'has configs: \[3\], and that has to be of the type list\[str | dict\]'),
        ('metric: a\nconfigs: [{config: a.py, options: [b]}]', r"has options: \['b'\], and .* type dict | None"),
        ('metric: a\nconfigs: [{config: a.py, script: b.py, options: {}}]', 'give its script --cfg-options'),
        ('metric: a\nconfigs: []', 'has no config'),
        ('metric: a\nconfigs:', 'has configs: None'),
        ('metric: a\nconfigs: [a.py]\nseeds: [1, 1]', r'its seeds \[1, 1\] are not different'),
        ('metric: a\nconfigs: [a.py]\nseeds: [true]', r'has seeds: \[True\], .* of the type list\[int\]'),
        ('metric: a\nconfigs: [a.py]\nseeds: 1', r'has seeds: 1, and that has to be of the type list\[int\]'),
        ('metric: a\nconfigs: [a.py]\nshape: [32]', 'height and width'),
        ('metric: a\nconfigs: [a.py]', 'There is no config a.py'),
        (f'metric: a\noptions: {{b: 1}}\nconfigs: [{{config: {CONFIG}, script: c.py}}]', 'give that --cfg-options'),
        (f'metric: a\nconfigs: [{CONFIG}, {CONFIG}]', 'twice: give entries of one config names of their own'),
        (
            f'metric: a\nconfigs: [{{config: {CONFIG}, options: {{model.backbone.sharing.groups: [none]}}}}]',
            "cannot be built: .*'none' forms no group",
        ),
        (
            'metric: a\nconfigs: [{config: "mmpretrain::resnet/resnet18_8xb16_cifar10.py", options: '
            '{model.backbone.num_stages: 5}}]',
            'cannot be built: AssertionError',  # which says no more
        ),
    ],
)
def test_a_suite_that_says_something_else_is_refused(tmp_path, text, words):
    (tmp_path / 'suite.yaml').write_text(text)
    with pytest.raises(SharingError, match=words):
        read_suite(tmp_path / 'suite.yaml', tmp_path)


@pytest.mark.slow
def test_runs_over_several_processes_go_through_torchrun(images, tmp_path):
    suite = write(tmp_path / 'small.yaml', images, epochs=1, seeds=[3])
    line = benchmark(suite, tmp_path / 'runs', '--dry-run', '--gpus-per-run', '2').stdout.strip()
    assert '-m torch.distributed.run --standalone --nproc_per_node=2' in line and '--resume' in line
    assert line.endswith('--launcher pytorch') and not list(tmp_path.glob('runs/*/seed_3/*'))
    result = benchmark(suite, tmp_path / 'runs', '--gpus-per-run', '2')
    assert result.returncode == 0, result.stdout
    log = (tmp_path / 'runs' / 'shared-resnet32-s8u1_4e_cifar10-jpeg/seed_3/run.log').read_text()
    # 40 images in batches of 20 on two processes
    assert re.search(r'Epoch\(train\) +\[1\]\[1/1\]', log) and 'seed=3' in log


@pytest.mark.slow
def test_runs_get_the_gpus_that_are_handed_out(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 4)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '2,3,5,7')
    engine = Local(gpus_per_run=2)
    show = [sys.executable, '-c', "import os, time; print(os.environ['CUDA_VISIBLE_DEVICES']); time.sleep(1)"]
    logs = [tmp_path / name / 'run.log' for name in ('a', 'b')]
    for log in logs:
        log.parent.mkdir()
    runs = [engine.submit(show, log) for log in logs]
    assert not engine.has_room()
    with pytest.raises(SharingError, match='another process trains in'):
        Process(show, logs[0])
    assert [run.result().status for run in runs] == [0, 0] and engine.has_room()
    assert sorted(log.read_text().strip() for log in logs) == ['2,3', '5,7']
    assert Process(show, logs[0], dict(CUDA_VISIBLE_DEVICES='7')).result().status == 0
    with pytest.raises(SharingError, match='hold 1 runs of 3 side by side'):
        Local(gpus_per_run=3, jobs=2)


def test_a_signal_that_was_ignored_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as by nohup
    try:
        with _told_to_end() as end:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not end.wait(0.1)
            os.kill(os.getpid(), signal.SIGTERM)
            assert end.wait(10)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_run_that_does_not_end_is_ended(tmp_path):
    engine, log = Local(), tmp_path / 'run.log'
    stubborn = (
        'import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print("here", flush=True); time.sleep(60)'
    )
    run = engine.submit([sys.executable, '-c', stubborn], log)
    deadline = time.monotonic() + 60
    while 'here' not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    engine.stop(seconds=0.3)
    assert run.result().status == -signal.SIGTERM


@pytest.mark.parametrize('own, threads', [(None, '2'), ('5', '5')])
@pytest.mark.slow
def test_runs_side_by_side_part_the_cores(tmp_path, monkeypatch, own, threads):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    monkeypatch.setattr(os, 'cpu_count', lambda: 8)
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    if own:
        monkeypatch.setenv('OMP_NUM_THREADS', own)
    engine = Local(jobs=3)
    engine.submit([sys.executable, '-c', "import os; print(os.environ['OMP_NUM_THREADS'])"], tmp_path / 'log').result()
    assert (tmp_path / 'log').read_text().strip() == threads


def test_the_reason_of_a_failure_is_the_line_that_says_it(tmp_path):
    log = tmp_path / 'run.log'
    assert reason_of(-9, log) == 'killed by SIGKILL'
    log.write_text('a\nError: The pattern is wrong.\nChildFailedError\n=====\n')
    assert reason_of(1, log) == 'The pattern is wrong.'
    log.write_text('a\nsomething\n====\n')
    assert reason_of(1, log) == 'something'
