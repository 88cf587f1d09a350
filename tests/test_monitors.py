"""What is written down of the banks while a model trains, and the images of it."""

import re
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from PIL import Image
from torch import nn

from helpers import REPEATED, ROOT, TIED, backbone, call, small, stage_banks, train
from mmshared import BasisHealthHook, GradientFlowHook, ProgressHook, SharingError
from mmshared.analysis.logs import read_scalars
from mmshared.analysis.plots import draw_curves, draw_metric
from mmshared.engine.build import build_model
from mmshared.hooks import basis_health, basis_spaces

CONFIG = ROOT / 'configs/shared_resnet/shared-resnet32-s16u1-double_b256_cifar10.py'


def test_the_health_of_a_basis_is_what_its_filters_are_made_to_be():
    q = nn.init.orthogonal_(torch.empty(6, 3, 2, 2))
    for scales, cosine in [((1, 1, 1, 1, 1, 1), 0), ((2, 1, 1, 1, 1, 0.5), 0), ((1, 1, 1, 1, 1, 1), -0.6)]:
        filters = q * torch.tensor(scales).view(-1, 1, 1, 1)
        filters[1] = cosine * filters[0] + (1 - cosine**2) ** 0.5 * filters[1]
        health = basis_health(filters)
        # Two unit vectors of cosine c have the Gram matrix of eigenvalues 1 + c and 1 - c.
        condition = ((1 - cosine) / (1 + cosine)) ** 0.5 if cosine else max(scales) / min(scales)
        expected = dict(cosine=-cosine, min_norm=min(scales), max_norm=max(scales), condition=condition)
        assert health == pytest.approx(expected, abs=1e-5)
    assert basis_health(q[:1])['cosine'] == 0
    assert all(value != value for value in basis_health(q * float('inf')).values())


def test_bases_of_one_space_are_watched_together(mmpretrain):
    double, other = backbone(depth=34, groups=['conv1', 'conv2']), backbone(groups=['conv2', 'conv3'])
    assert list(basis_spaces(double)) == [f'layer{i}.conv1+conv2' for i in range(1, 5)]
    assert len(basis_spaces(double)['layer1.conv1+conv2']) == 2 * len(stage_banks(double)['layer1'][0].basis())
    assert [name for name in basis_spaces(other) if 'layer1' in name] == ['layer1.conv2', 'layer1.conv3']


@pytest.mark.slow
def test_gradients_and_health_are_written_at_their_intervals(mmpretrain, tmp_path):
    network, grads = small(), []
    for banks in stage_banks(network).values():
        parameter = banks[0].filters
        parameter.register_post_accumulate_grad_hook(lambda parameter: grads.append(parameter.grad.clone()))
    model, _ = train(network, tmp_path, [BasisHealthHook(2), GradientFlowHook(3)], iterations=6)
    by_stage = {len(grad): [other for other in grads if len(other) == len(grad)] for grad in grads}
    scalars = read_scalars(tmp_path)
    for stage in ('layer1', 'layer2'):
        for key, value in (('mean', torch.mean), ('max', torch.max)):
            written = scalars[f'grad/backbone.{stage}.conv[12]/{key}']
            assert [step for step, _ in written] == [3, 6]
            grads = by_stage[len(stage_banks(network)[stage][0].filters)]
            expected = [value(grads[step - 1].abs()).item() for step in (3, 6)]
            assert [number for _, number in written] == pytest.approx(expected)
        health = scalars[f'basis/backbone.{stage}.conv[12]/condition']
        assert [step for step, _ in health] == [2, 4, 6]
        bank = stage_banks(model.backbone)[stage][0]
        assert health[-1][1] == pytest.approx(basis_health(bank.filters)['condition'])
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert re.search(r'grad at iteration 3: backbone.layer1.conv\[12\] mean \S+ max \S+; backbone.layer2', log)
    assert re.search(r'basis at iteration 6: .* cosine \S+ min_norm \S+ max_norm \S+ condition', log)


@pytest.mark.slow
def test_accumulated_steps_are_counted_and_frozen_banks_left_out(mmpretrain, tmp_path):
    train(
        small(frozen_stages=1),
        tmp_path,
        [GradientFlowHook(1)],
        iterations=4,
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1), accumulative_counts=2),
    )
    scalars = read_scalars(tmp_path)
    assert [step for step, _ in scalars['grad/backbone.layer2.conv[12]/mean']] == [2, 4]
    assert not any('layer1' in name for name in scalars)


def test_the_hook_on_the_optimizer_is_gone_after_training(mmpretrain, tmp_path):
    runners = []

    class Watch(Hook):
        def after_train(self, runner):
            runners.append(runner)

    train(small(), tmp_path, [GradientFlowHook(1), Watch()])
    written = read_scalars(tmp_path)
    runners[0].optim_wrapper.optimizer.step()
    assert written and read_scalars(tmp_path) == written


def test_a_bank_without_shared_filters_has_no_gradients_to_show(mmpretrain, tmp_path):
    train(small(bank=dict(type='FilterBasis', shared_rank=0, unique_rank=4)), tmp_path, [GradientFlowHook(1)])
    assert not any('grad/' in name for name in read_scalars(tmp_path))


def test_gradients_are_those_before_loss_scaling(mmpretrain, tmp_path):
    written = []
    for fused in (False, True):
        work_dir = tmp_path / str(fused)
        torch.manual_seed(0)
        train(
            small(),
            work_dir,
            [ScaledLoss(fused), GradientFlowHook(1)],
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1, fused=fused)),
        )
        written.append(
            [value for name, curve in read_scalars(work_dir).items() if 'grad/' in name for _, value in curve]
        )
    assert written[0] == pytest.approx(written[1], rel=1e-4) and len(written[0]) == 8


class ScaledLoss(Hook):
    """Scales the loss by 1024, and has a fused optimizer undo it, as GradScaler does."""

    def __init__(self, fused):
        self.scale = torch.tensor(1024.0) if fused else None

    def before_train(self, runner):
        wrapper = runner.optim_wrapper
        if self.scale is not None:
            wrapper.optimizer.grad_scale, wrapper.optimizer.found_inf = self.scale, torch.tensor(0.0)
            wrapper.scale_loss = lambda loss: loss * self.scale


@pytest.mark.parametrize(
    'hook, bank, words',
    [
        (BasisHealthHook, None, 'BasisHealthHook found no bank in the model'),
        (GradientFlowHook, None, 'GradientFlowHook found no bank in the model'),
        (BasisHealthHook, dict(type='OrthonormalFilterBasis', shared_rank=32, unique_rank=4), 'found no filter basis'),
    ],
)
def test_nothing_to_watch_is_refused(mmpretrain, tmp_path, hook, bank, words):
    with pytest.raises(SharingError, match=words):
        train(small(bank=bank), tmp_path, [hook()])


def test_an_interval_of_no_iteration_is_refused():
    with pytest.raises(SharingError, match='interval=0: give a number of iterations above 0'):
        GradientFlowHook(interval=0)


@pytest.mark.slow
def test_the_gram_matrices_of_a_checkpoint_are_drawn(tmp_path):
    model = build_model(Config.fromfile(CONFIG))
    with torch.no_grad():
        filters = stage_banks(model.backbone)['layer1'][1].filters
        filters[0] = 0.5 * stage_banks(model.backbone)['layer1'][0].filters[0]
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'model.pth')
    result = call('analysis_tools/gram_matrices.py', CONFIG, tmp_path / 'model.pth', '--out', tmp_path / 'gram.png')
    told = r'layer1.conv1\+conv2: 32 filters, cosine 1, min_norm 0.5, max_norm 1,'
    assert re.search(told, result.stdout), result.stderr
    # Colours: the brightest on the diagonals, the darkest between orthogonal filters.
    pixels = np.asarray(Image.open(tmp_path / 'gram.png').convert('RGB')).reshape(-1, 3).astype(int)
    bright, dark = [(np.abs(pixels - colour).max(1) < 3).sum() for colour in ([253, 231, 36], [68, 1, 84])]
    assert 0.01 < bright / dark < 0.06 and dark > 50_000
    plain = CONFIG.with_name('resnet32_b256_cifar10.py')
    torch.save(dict(model.state_dict(), **{'head.fc.weight': torch.zeros(7, 64)}), tmp_path / 'other.pth')
    for config, checkpoint, words in [(plain, 'model', 'key(s)'), (CONFIG, 'other', 'head.fc.weight')]:
        told = call('analysis_tools/gram_matrices.py', config, tmp_path / f'{checkpoint}.pth').stderr
        assert 'is not of the model of this config' in told and words in told
    torch.save(build_model(Config.fromfile(plain)).state_dict(), tmp_path / 'plain.pth')
    assert 'has no filter basis' in call('analysis_tools/gram_matrices.py', plain, tmp_path / 'plain.pth').stderr


@pytest.mark.slow
def test_runs_are_drawn_over_each_other(mmpretrain, tmp_path):
    compare = partial(call, 'analysis_tools/compare_runs.py')
    for name in ('one', 'two'):
        train(small(bank=TIED), tmp_path / name, [GradientFlowHook(1)], iterations=3)
    runs = [tmp_path / 'one', tmp_path / 'two']
    result = compare(*runs, '--out', tmp_path / 'runs.png', '--legend', 'with', 'without')
    assert 'grad/backbone.layer1.conv[12]/mean, grad/backbone.layer2.conv[12]/mean' in result.stdout, result.stderr
    drawn = np.asarray(Image.open(tmp_path / 'runs.png').convert('RGB')).reshape(-1, 3)
    assert all((drawn == colour).all(1).sum() > 50 for colour in [(31, 119, 180), (255, 127, 14)])  # C0 and C1
    assert "No scalar of these runs matches 'acc'" in compare(*runs, '--scalars', 'acc').stderr
    assert "Error: '*' is not a regular expression: nothing to repeat" in compare(*runs, '--scalars', '*').stderr
    assert 'is not the work dir of a run' in compare(tmp_path).stderr
    assert 'a name of its own' in compare(*runs, '--legend', 'same', 'same').stderr


@pytest.mark.parametrize('value', [0.0, 2.5])
def test_a_figure_of_one_point_has_axes_about_it(monkeypatch, value):
    figures = []
    monkeypatch.setattr(Figure, 'savefig', lambda figure, *args, **kwargs: figures.append(figure))
    draw_curves({'loss': [(10, value)], 'loss_orth': [(10, 0.0)], 'map': [(1, value)]}, 'map', 'curves.png')
    draw_metric([dict(model='a', parameters=10**6, mean=value, deviation=None)], 'map', 'metric.png')
    axes = [axis for figure in figures for axis in figure.axes]
    assert len(figures) == 2 and len(axes) > 2
    for axis in axes:
        (low, high), (left, right) = axis.get_ylim(), axis.get_xlim()
        assert low <= 0 and high >= 1 and left == 0 and right >= 1


def test_progress_is_a_line_for_each_epoch_with_its_mean_loss(capsys):
    hook, hub = ProgressHook(), MessageHub('progress')
    counts = dict(epoch=1, max_epochs=3, iter=2, max_iters=6, train_loop=None)
    runner = SimpleNamespace(**counts, train_dataloader=range(2), message_hub=hub)
    hook.before_train(runner)
    for loss in (9, 1, 2):
        hub.update_scalar('train/loss', loss)
        hook.after_train_iter(runner, 0)
    hook.after_train_epoch(runner)
    hook.after_val_epoch(runner, {'of_classes': [0.4, 0.6], 'coco/bbox_mAP': 0.5, 'coco/bbox_mAP_50': 0.7})
    runner.epoch = 2
    hook.after_train_epoch(runner)
    out, err = capsys.readouterr()
    first = 'epoch 2 of 3: loss 1.500, 0.0 minutes left'
    assert err.splitlines() == [first, 'validation: coco/bbox_mAP 0.500', 'epoch 3 of 3: loss 1.500'] and not out


@pytest.mark.slow
def test_progress_of_a_training_that_counts_iterations_is_a_line_for_each_twentieth(mmpretrain, tmp_path, capsys):
    _, seen = train(small(TIED), tmp_path, [ProgressHook()], iterations=41)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith('iteration')]
    assert [line.split()[1] for line in lines] == [str(min(3 * part, 41)) for part in range(1, 15)]
    assert lines[0].startswith('iteration 3 of 41: loss ') and lines[0].endswith(' minutes left')
    losses = [each['loss'].item() for each in seen[-3:]]
    assert lines[-1] == f'iteration 41 of 41: loss {sum(losses) / 3:.3f}'


def test_what_is_not_in_common_is_not_watched(tmp_path, mmpretrain):
    with pytest.raises(SharingError, match='GradientFlowHook watches what layers have in common'):
        train(small(REPEATED), tmp_path, [GradientFlowHook(1)])
