"""What the tool that times networks counts."""

import json
import time

import pytest
import torch
from torch import nn

from helpers import ROOT, call
from mmshared import SharingError, deploy
from mmshared.analysis.speed import Step, checkpoint_bytes, load_reference, peak_bytes, time_in_turn

CONFIG = ROOT / 'configs/shared_resnet/shared-resnet32-s16u1_b256_cifar10.py'


def test_works_are_timed_in_turn_and_compared_within_a_round():
    order, delay = [], iter(range(1, 100))

    def work(name, factor):
        def run():
            order.append(name)
            time.sleep(factor * 0.005 * (1 + next(delay) // 4))  # the machine slows down

        return run

    timings = time_in_turn(dict(a=work('a', 1), b=work('b', 3)), 8, torch.device('cpu'))
    assert order == ['a', 'b'] * 10
    assert timings['a'].ratio == 1 and 1.5 < timings['b'].ratio < 5
    assert timings['b'].low <= timings['b'].ratio <= timings['b'].high and timings['a'].seconds > 0.005


@pytest.mark.parametrize('channels, width, size', [(3, 8, 34), (64, 64, 4)], ids=['of-maps', 'of-weights'])
def test_the_memory_of_a_step_is_that_of_weights_gradients_momentum_and_maps(channels, width, size):
    model = nn.Conv2d(channels, width, 3, bias=False)
    images = torch.randn(2, channels, size, size)
    weights, maps = width * channels * 9 * 4, 2 * width * (size - 2) ** 2 * 4
    # The maps and the gradient of them, at least, and what their square and its gradient take.
    assert max(3 * weights, 2 * maps) <= peak_bytes(model, Step(model, images)) <= 3 * weights + 5 * maps


def test_a_reference_is_built_by_its_own_file(tmp_path):
    (tmp_path / 'parts.py').write_text('from torch.nn import Conv2d')
    file = tmp_path / 'net.py'
    file.write_text('from parts import Conv2d\n\n\ndef Net(width, kernel=1):\n    return Conv2d(3, width, kernel)\n')
    network = load_reference(str(file), 'Net(4, kernel=3)')
    assert network.weight.shape == (4, 3, 3, 3)
    for wrong in ('Other(1)', 'Net(', 'Net(open("x"))', '3'):
        with pytest.raises(SharingError, match='builds no network'):
            load_reference(str(file), wrong)
    with pytest.raises(SharingError, match='builds no network'):
        load_reference(str(tmp_path / 'nowhere.py'), 'Net(1)')


@pytest.mark.slow
def test_the_table_has_a_row_for_each_work(tmp_path, monkeypatch):
    (tmp_path / 'net.py').write_text('from torch.nn import Conv2d\n')
    deployed, compiled = [], []
    monkeypatch.setattr('mmshared.analysis.speed.deploy', lambda *given: deployed.append(1) or deploy(*given))
    monkeypatch.setattr(nn.Module, 'compile', lambda network: compiled.append(network))
    result = call(
        'analysis_tools/benchmark_speed.py',
        CONFIG,
        '--shape',
        32,
        32,
        '--batch',
        2,
        '--inference-batch',
        1,
        '--rounds',
        2,
        '--autocast',
        'bfloat16',
        '--channels-last',
        '--compile',
        '--reference',
        tmp_path / 'net.py',
        'Conv2d(3, 8, 3)',
        '--json',
        tmp_path / 'speed.json',
    )
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / 'speed.json').read_text())
    assert [row['network'] for row in found] == [
        'plain',
        'shared',
        'reference',
        'shared, with the loss',
        'the loss alone',
        *5 * ['plain', 'shared', 'reference'],
    ]
    assert len(deployed) == 3 and len(set(compiled)) == len(compiled) == 6  # as trained and as shipped
    exchanged = {row['network']: row['bytes'] for row in found if row['work'] == 'gradients to exchange'}
    assert exchanged == dict(plain=4 * 464_154, shared=4 * 197_258, reference=4 * 224)
    assert all(row.get('seconds', 1) > 0 for row in found)
    memory, weights = [
        {row['network']: row['ratio'] for row in found if row['work'].startswith(work)}
        for work in ('memory', 'weights')
    ]
    assert memory['plain'] == 1 and 0.5 < memory['shared'] < 1.5 and weights['shared'] < 0.5
    plain = call('analysis_tools/benchmark_speed.py', CONFIG.with_name('resnet32_b256_cifar10.py'))
    assert 'shares nothing: there is nothing to compare' in plain.stderr


@pytest.mark.slow
def test_how_time_and_memory_grow_is_drawn(tmp_path):
    arguments = [CONFIG, '--shape', 32, 32, '--batch', 2, '--rounds', 1, '--plot', tmp_path / 'growth.png']
    result = call(
        'analysis_tools/benchmark_speed.py',
        *arguments,
        '--ranks',
        8,
        16,
        '--batches',
        1,
        '--json',
        tmp_path / 'growth.json',
    )
    assert result.returncode == 0 and (tmp_path / 'growth.png').stat().st_size > 10_000, result.stderr
    found = json.loads((tmp_path / 'growth.json').read_text())
    rows = [(row['value'], row['work'], row['network']) for row in found['shared rank']]
    works = ('memory of a training step', 'training step', 'inference as shipped')
    assert rows == [(rank, work, name) for rank in (8, 16) for work in works for name in ('plain', 'shared')]
    assert {row['value'] for row in found['batch']} == {1}
    memory = [row['bytes'] for row in found['shared rank'] if row['network'] == 'shared' and 'bytes' in row]
    assert memory[0] < memory[1]
    assert '--plot needs --batches' in call('analysis_tools/benchmark_speed.py', *arguments).stderr


def test_the_bytes_of_a_checkpoint_are_those_of_its_file(tmp_path):
    model = nn.Linear(100, 100)
    torch.save(model.state_dict(), tmp_path / 'model.pth')
    assert checkpoint_bytes(model) == pytest.approx((tmp_path / 'model.pth').stat().st_size, rel=0.01)
