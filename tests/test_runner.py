"""What the Runner promises, under our tools and under the libraries' own."""

import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import EMAHook
from mmengine.registry import RUNNERS
from mmengine.runner.checkpoint import CheckpointLoader
from torch.utils.data import DataLoader

from helpers import ROOT, Classifier, small
from mmshared import SharingError, SharingRunner
from mmshared.engine.build import build_model, build_plain
from mmshared.engine.checkpoint import save_checkpoint
from mmshared.engine.config import load_config
from mmshared.engine.runner import has_begun

DIGITS = ROOT / 'configs/small/faster-rcnn_r50-narrow-shared_6e_digits.py'
JPEG = ROOT / 'projects/dsfb/configs/shared-resnet32-s8u1_4e_cifar10-jpeg.py'


class NoMetric(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        return {}


def small_runner(tmp_path, name, **kwargs):
    """A runner of a small classifier, whose batches are of one image."""
    data = DataLoader([dict(inputs=torch.randn(3, 32, 32), labels=1)], 1)
    return SharingRunner(
        Classifier(small()),
        str(tmp_path),
        train_dataloader=data,
        train_cfg=dict(by_epoch=False, max_iters=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.0)),
        val_dataloader=data,
        val_cfg={},
        val_evaluator=[NoMetric()],
        test_dataloader=data,
        test_cfg={},
        test_evaluator=[NoMetric()],
        experiment_name=f'{tmp_path.name}-{name}',
        default_scope='mmpretrain',
        **kwargs,
    )


def checkpoint(path, state, **changes):
    meta = dict(epoch=0, iter=0)
    torch.save(dict(state_dict={**state, **changes}, meta=meta, message_hub={}), path)
    return str(path)


@pytest.fixture
def state(mmpretrain):
    return Classifier(small()).state_dict()


def test_an_average_of_weights_begins_from_a_bare_state_dict_too(state, tmp_path):
    torch.save(state, tmp_path / 'bare.pth')
    assert 'state_dict' not in CheckpointLoader.load_checkpoint(str(tmp_path / 'bare.pth'))
    average = EMAHook()
    small_runner(tmp_path, 'ema', load_from=str(tmp_path / 'bare.pth'), custom_hooks=[average]).val()
    averaged = average.ema_model.module.state_dict()
    assert all(torch.equal(averaged[key], tensor) for key, tensor in state.items())


@pytest.mark.parametrize('use', ['test', 'val', 'resume'])
def test_what_is_tested_or_resumed_is_the_whole_network(state, tmp_path, use):
    other = checkpoint(tmp_path / 'other.pth', state, **{'fc.weight': torch.zeros(5, 32)})
    lacking = checkpoint(tmp_path / 'lacking.pth', {key: state[key] for key in state if key != 'fc.bias'})
    for path, words in (
        (other, 'this config: size mismatch for fc.weight'),
        (lacking, 'this config: missing keys in source state_dict: fc.bias'),
    ):
        runner = small_runner(tmp_path, f'{use}-{Path(path).stem}', load_from=path, resume=use == 'resume')
        with pytest.raises(SharingError, match=words):
            runner.train() if use == 'resume' else getattr(runner, use)()


@pytest.mark.parametrize('lacks', ['meta', 'message_hub'])
def test_a_checkpoint_without_a_training_is_not_resumed(state, tmp_path, lacks):
    content = dict(state_dict=state, meta=dict(epoch=0, iter=0), message_hub={})
    content.pop(lacks)
    torch.save(content, tmp_path / 'weights.pth')
    runner = small_runner(tmp_path, lacks, load_from=str(tmp_path / 'weights.pth'), resume=True)
    with pytest.raises(SharingError, match=f'has no {lacks}: .* give it as load_from'):
        runner.train()


def test_a_training_may_start_from_a_network_with_another_head(state, tmp_path):
    other = checkpoint(
        tmp_path / 'other.pth',
        {key: state[key] for key in state if key != 'fc.bias'},
        **{'fc.weight': torch.ones(5, 32)},
    )
    runner = small_runner(tmp_path, 'train', load_from=other)
    runner.train()
    key = 'backbone.layer1.1.conv1.bank.filters'
    assert torch.equal(runner.model.state_dict()[key], state[key])


@pytest.mark.parametrize('build', [build_model, build_plain])
def test_a_model_built_without_a_runner_preprocesses_as_one_built_by_it(tmp_path, build):
    cfg = load_config(str(JPEG))
    expected = SharingRunner(
        cfg.model, str(tmp_path), data_preprocessor=cfg.data_preprocessor, default_scope='mmpretrain'
    ).model.data_preprocessor
    found = build(load_config(str(JPEG))).data_preprocessor
    torch.testing.assert_close((found.mean, found.std), (expected.mean, expected.std))


def test_what_a_checkpoint_holds_more_is_left_out(state, tmp_path):
    more = checkpoint(tmp_path / 'more.pth', state, more=torch.zeros(1), **{'fc.bias': torch.ones(3)})
    runner = small_runner(tmp_path, 'more', load_from=more)
    runner.test()
    assert runner.model.fc.bias.eq(1).all()


def test_the_note_of_the_last_checkpoint_is_mended_by_one_process(state, tmp_path, monkeypatch):
    checkpoint(tmp_path / 'iter_0.pth', state)
    note = tmp_path / 'last_checkpoint'
    for rank in (1, 0):
        note.write_text('moved/iter_0.pth')
        runner = small_runner(tmp_path, f'rank-{rank}', resume=True)
        with monkeypatch.context() as patch:
            patch.setattr('mmshared.engine.runner.is_main_process', lambda: rank == 0)  # noqa: B023
            patch.setattr(SharingRunner, 'resume', lambda runner, filename: None)
            runner.load_or_resume()
        assert (note.read_text() == str(tmp_path / 'iter_0.pth')) == (rank == 0)


@pytest.mark.parametrize(
    'noted, there, expected',
    [
        ('epoch_8', ['epoch_9', 'epoch_10'], 'epoch_10'),
        ('epoch_3', ['epoch_3', 'iter_500'], 'epoch_3'),  # the folder was moved
        ('model_2', ['model_2', 'epoch_3'], 'model_2'),
        ('epoch_5', ['epoch_3', 'best_accuracy_top1_epoch_4'], 'epoch_3'),  # the best has no state of the optimizer
        ('epoch_5', [], None),
    ],
)
def test_the_note_names_the_last_checkpoint_that_can_be_read(tmp_path, noted, there, expected):
    for name in there:
        save_checkpoint({}, tmp_path / f'{name}.pth')
    save_checkpoint({}, tmp_path / 'epoch_11.pth')
    cut_off = (tmp_path / 'epoch_11.pth').read_bytes()[:100]  # its writer was killed
    (tmp_path / 'epoch_11.pth').write_bytes(cut_off)
    note = tmp_path / 'last_checkpoint'
    note.write_text(f'elsewhere/{noted}.pth')
    for _ in range(2):
        assert has_begun(tmp_path) == (expected is not None)
        assert not note.exists() if expected is None else note.read_text() == str(tmp_path / f'{expected}.pth')


@pytest.fixture
def digits(tmp_path):
    cfg = Config.fromfile(DIGITS)
    cfg.work_dir = str(tmp_path / 'run')
    return cfg


def test_a_network_that_cannot_share_so_leaves_nothing_behind(digits):
    digits.model.backbone.sharing.groups = ['conv7']
    with pytest.raises(SharingError, match='conv7'):
        RUNNERS.build(digits)
    assert not Path(digits.work_dir).exists()


@pytest.mark.parametrize('use, loader', [('train', 'train'), ('val', 'val'), ('test', 'test')])
@pytest.mark.slow
def test_data_that_are_not_there_are_one_sentence(digits, tmp_path, use, loader):
    for split in ('train', 'val', 'test'):
        digits[f'{split}_dataloader'].dataset.data_root = str(tmp_path / f'no-{split}')
    runner = RUNNERS.build(digits)
    assert isinstance(runner, SharingRunner)
    with pytest.raises(SharingError, match=f'{loader}_dataloader is expected in .*/no-{loader}, which is not there'):
        getattr(runner, use)()


@pytest.mark.slow
def test_all_data_of_a_training_are_looked_for_before_any_are_read(digits, tmp_path, monkeypatch):
    (tmp_path / 'JPEGImages').mkdir()
    (tmp_path / 'instances_train.json').write_text('{}')
    digits.train_dataloader.dataset.data_root = str(tmp_path)
    digits.val_dataloader.dataset.data_root = str(tmp_path / 'none')
    with pytest.raises(SharingError, match='val_dataloader is expected in'):
        RUNNERS.build(digits).train()


def stock_tool(library, tool, monkeypatch, *arguments):
    path = Path(find_spec(library).origin).parent / '.mim/tools' / tool
    monkeypatch.setattr(sys, 'argv', [str(path), *map(str, arguments)])
    runpy.run_path(str(path), run_name='__main__')


@pytest.mark.slow
def test_the_promises_hold_under_the_libraries_own_tools(images, tmp_path, monkeypatch):
    nowhere = '--cfg-options', 'train_dataloader.dataset.data_root=data/none/'
    with pytest.raises(SharingError, match='The data set of train_dataloader is expected in data/none/, which is'):
        stock_tool('mmdet', 'train.py', monkeypatch, DIGITS, '--work-dir', tmp_path / 'detector', *nowhere)
    torch.save(dict(state_dict={}), tmp_path / 'none.pth')
    with pytest.raises(SharingError, match='is not of the network of this config: missing keys'):
        stock_tool(
            'mmpretrain',
            'test.py',
            monkeypatch,
            JPEG,
            tmp_path / 'none.pth',
            '--work-dir',
            tmp_path / 'classifier',
            '--cfg-options',
            f'test_dataloader.dataset.data_root={images}',
        )
