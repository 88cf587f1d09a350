"""What the tool that times networks counts."""
import json
import time

import pytest
import torch
from helpers import BASIS, TIED, backbone, call, difference, evaluating, picture, randomise_norms
from torch import nn

from mmshared.analysis.speed import checkpoint_bytes, deployed, kept_bytes, time_in_turn

CONFIG = 'configs/shared_resnet/shared-resnet32-s16u1_b256_cifar10.py'


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


def test_what_is_kept_for_the_backward_pass_is_counted_once():
    conv, x = nn.Conv2d(4, 8, 3, bias=False), torch.randn(2, 4, 10, 10)
    assert kept_bytes(lambda: conv(x).sum()) == x.numel() * 4
    # The input of both convs is one tensor; the batch norm keeps its own, and the statistics of its channels.
    other, norm = nn.Conv2d(4, 8, 3, bias=False), nn.BatchNorm2d(8, track_running_stats=False)
    maps = 2 * 8 * 8 * 8 * 4
    assert kept_bytes(lambda: (conv(x).sum() + other(x).sum())) == x.numel() * 4
    assert kept_bytes(lambda: norm(conv(x)).sum()) == x.numel() * 4 + maps + 2 * 8 * 4


@pytest.mark.parametrize('bank', [TIED, BASIS], ids=['tied', 'basis'])
def test_a_deployed_network_is_the_same_without_batch_norms(mmpretrain, bank):
    model = evaluating(randomise_norms(backbone(depth=34, groups=['conv[12]'], bank=bank)))
    x = picture()
    network = deployed(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert difference(network(x), model(x)) < 1e-4
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())  # a copy


def test_the_table_has_a_row_for_each_work(tmp_path):
    result = call('analysis_tools/benchmark_speed.py', CONFIG, '--shape', 32, 32, '--batch', 2, '--inference-batch', 1,
                  '--rounds', 2, '--autocast', 'bfloat16', '--channels-last', '--json', tmp_path / 'speed.json')
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / 'speed.json').read_text())
    assert [row['network'] for row in found['times']] == [
        'plain', 'shared', 'shared, with the loss', 'the loss alone', 'plain', 'shared', 'plain', 'shared']
    assert all(row['seconds'] > 0 for row in found['times'])
    sizes = found['sizes']
    assert sizes['shared']['checkpoint_bytes'] < 0.5 * sizes['plain']['checkpoint_bytes']
    assert sizes['shared']['kept_bytes'] > sizes['plain']['kept_bytes'] > 1e6
    plain = call('analysis_tools/benchmark_speed.py', CONFIG.replace('shared-resnet32-s16u1', 'resnet32'))
    assert 'no filter basis: there is nothing to compare' in plain.stderr


def test_the_bytes_of_a_checkpoint_are_those_of_its_file(tmp_path):
    model = nn.Linear(100, 100)
    torch.save(model.state_dict(), tmp_path / 'model.pth')
    assert checkpoint_bytes(model) == pytest.approx((tmp_path / 'model.pth').stat().st_size, rel=0.01)
