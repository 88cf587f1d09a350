"""What is read from the logs of a run: its validations where they were, and nothing else as a metric."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from helpers import Classifier, small
from mmshared import GradientFlowHook, SharingError
from mmshared.analysis.logs import NOTHING_DETECTED, read_scalars, read_validations
from mmshared.analysis.suite import Run, Suite, collect

METRIC = 'coco/bbox_mAP'


class Count(BaseMetric):
    """The number of its evaluations."""

    default_prefix, calls = 'count', 0

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        self.calls += 1
        return dict(calls=self.calls)


@pytest.mark.parametrize('by_epoch, steps', [(False, [2, 4]), (True, [1, 2])])
def test_validations_are_at_their_iteration_or_if_the_run_has_epochs_at_those(mmpretrain, tmp_path, by_epoch, steps):
    loader = DataLoader([dict(inputs=torch.randn(3, 32, 32), labels=i) for i in range(2)], 1)
    length = dict(max_epochs=2, val_interval=1) if by_epoch else dict(max_iters=4, val_interval=2)
    Runner(
        Classifier(small()),
        str(tmp_path),
        train_dataloader=loader,
        train_cfg=dict(by_epoch=by_epoch, **length),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        val_dataloader=loader,
        val_cfg={},
        val_evaluator=[Count()],
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1)),
        custom_hooks=[GradientFlowHook(interval=1)],
        experiment_name=tmp_path.name,
    ).train()
    scalars = read_scalars(tmp_path)
    assert scalars['count/calls'] == list(zip(steps, [1, 2]))
    assert [step for step, _ in scalars['loss']] == [1, 2, 3, 4]
    assert any(name.startswith('grad/') for name in scalars)
    assert read_validations(tmp_path) == [{'count/calls': 1}, {'count/calls': 2}]


def test_a_log_that_was_cut_off_gives_what_it_has(tmp_path):
    (tmp_path / 'run/vis_data').mkdir(parents=True)
    lines = [json.dumps(dict(loss=1 / step, step=step)) for step in (1, 2, 3)]
    (tmp_path / 'run/vis_data/scalars.json').write_text('\n'.join(lines)[:-5])
    assert read_scalars(tmp_path) == dict(loss=[(1, 1.0), (2, 0.5)], step=[(1, 1), (2, 2)])


@pytest.fixture
def run(tmp_path):
    """A run of a suite that has ended, with a function that logs its validations."""
    run = Run('model', 0, '', tmp_path)
    (tmp_path / 'last_checkpoint').write_text('epoch_2.pth')
    (tmp_path / 'epoch_2.pth').touch()
    scalars = tmp_path / 'time/vis_data/scalars.json'
    scalars.parent.mkdir(parents=True)

    def log(*validations, message=NOTHING_DETECTED):
        records = [dict(loss=1.0, time=0.1, iter=1, step=1), {'grad/backbone/mean': 1.0, 'step': 1}]
        records += [dict(metrics, time=0.1, step=epoch) for epoch, metrics in enumerate(validations, 1)]
        scalars.write_text('\n'.join(map(json.dumps, records)))
        (tmp_path / 'time/time.log').write_text(f'ERROR - {message}.')
        collect(run, Suite(METRIC, [run], {}), 1)
        return json.loads((tmp_path / 'result.json').read_text())['metric']

    return log


def test_a_detector_that_finds_nothing_at_the_end_has_the_metric_zero(run):
    assert run({METRIC: 0.5}, {METRIC: 0.4}) == 0.4
    assert run({METRIC: 0.5}, {}) == 0
    assert run({}) == 0


@pytest.mark.parametrize('validations, there', [([{}], 'none'), ([{'coco/other': 1.0}], 'coco/other'), ([], 'none')])
def test_a_run_without_the_metric_for_another_reason_is_refused_with_those_it_has(run, validations, there):
    with pytest.raises(SharingError, match=f'has no {METRIC}: its metrics are {there}.$'):
        run(*validations, message='something else')


def test_the_message_is_mmdets():
    source = Path(find_spec('mmdet').origin).with_name('evaluation') / 'metrics/coco_metric.py'
    assert NOTHING_DETECTED in source.read_text()
