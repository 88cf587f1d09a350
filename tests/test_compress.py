"""Compression: steps that are made once, and the whole tool on tiny networks."""

import html
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from helpers import ROOT, call, in_two_ranks, randomise_norms, unknown_options
from mmshared import SharingError, banks
from mmshared.compress.calibration import calibration_loader, within
from mmshared.compress.files import Files
from mmshared.compress.fit import fit_model
from mmshared.compress.outputs import check_outputs
from mmshared.compress.pipeline import (
    Budget,
    Compression,
    commands,
    fine_tuning,
    main_metric,
    relative,
    without_pretrained,
)
from mmshared.compress.plan import Plan, predict_costs, size_of
from mmshared.engine.build import build_empty, build_model, load_model
from mmshared.engine.checkpoint import load_checkpoint_file
from mmshared.engine.config import load_config, merge_options
from mmshared.engine.runner import SharingRunner, numbers_in

CLASSIFIER = """
_base_ = 'mmpretrain::_base_/default_runtime.py'
data_preprocessor = dict(num_classes=10, mean=[127, 127, 127], std=[64, 64, 64])
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CustomDataset',
        data_root='{images}',
        data_prefix='train',
        pipeline=[dict(type='LoadImageFromFile'), dict(type='RandomFlip', prob=0.5), dict(type='PackInputs')],
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CustomDataset',
        data_root='{images}',
        data_prefix='test',
        pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')],
    ),
)
val_evaluator = dict(type='Accuracy', topk=(1,))
train_cfg = dict(by_epoch=True, max_epochs=90)
val_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9))
param_scheduler = dict(type='MultiStepLR', milestones=[30, 60])
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='ResNet_CIFAR',
        depth=18,
        base_channels=4,
        stem_channels=4,
        num_stages=2,
        strides=(1, 2),
        dilations=(1, 1),
        out_indices=(1,),
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=8, loss=dict(type='CrossEntropyLoss')),
)
"""


@pytest.mark.parametrize(
    'inputs, pixels', [(torch.zeros(4, 3, 10, 10), 400), ([torch.zeros(3, 10, 10), torch.zeros(3, 5, 10)], 150)]
)
def test_costs_are_measured_on_so_many_pixels(inputs, pixels):
    batches = [dict(inputs=inputs)] * 5
    counts = [len(list(within(batches, wanted))) for wanted in (1, pixels, pixels + 1, 3 * pixels, 100 * pixels)]
    assert counts == [1, 1, 2, 3, 5]


class TestFiles:
    @staticmethod
    def make(files, *sources):
        """Make a file; returns whether it was made now."""
        made = []
        files.make('file', list(sources), lambda path: made.append(path.write_text('made')))
        return bool(made)

    def test_a_file_is_made_once(self, tmp_path):
        assert [self.make(Files(tmp_path), 1, 'a') for _ in range(3)] == [True, False, False]

    def test_it_is_made_again_if_what_it_is_made_from_has_changed(self, tmp_path):
        source = tmp_path / 'source'
        source.write_text('old')
        assert self.make(Files(tmp_path), source, dict(rank=1))
        assert self.make(Files(tmp_path), source, dict(rank=2))
        source.write_text('new')
        assert self.make(Files(tmp_path), source, dict(rank=2))
        assert not self.make(Files(tmp_path), source, dict(rank=2))

    def test_it_is_made_again_if_it_was_removed_or_not_completed(self, tmp_path):
        def interrupted(path):
            path.write_text('half')
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            Files(tmp_path).make('file', [], interrupted)
        assert self.make(Files(tmp_path))
        (tmp_path / 'file').unlink()
        assert self.make(Files(tmp_path))


@pytest.fixture
def config(images, tmp_path):
    """The file of a config of a tiny classifier."""
    path = tmp_path / 'classifier.py'
    path.write_text(CLASSIFIER.replace('{images}', str(images)))
    return str(path)


def sum_of(model):
    """The sum of a model's weights, which tells one from another."""
    return sum(tensor.double().sum().item() for tensor in model.state_dict().values())


@pytest.fixture
def checkpoint(config, tmp_path):
    model = randomise_norms(build_model(load_config(config)))
    with torch.no_grad():
        model.head.fc.weight.mul_(3)  # logits that differ
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'plain.pth')
    return str(tmp_path / 'plain.pth')


def compression(config, checkpoint, work_dir, **kwargs):
    cfg = load_config(config)
    cfg.work_dir, cfg.runner_type = str(work_dir), 'SharingRunner'
    return Compression(cfg, config, checkpoint, **{**dict(images=16, steps=2, budget=Budget(0.5, 'kept')), **kwargs})


class TestChecks:
    @pytest.fixture
    def refusal(self, config, checkpoint, tmp_path):
        def refusal(change=None, checkpoint=checkpoint, **kwargs):
            found = compression(config, checkpoint, tmp_path / 'work', **kwargs)
            if change:
                found.cfg.merge_from_dict(change)
            with pytest.raises(SharingError) as error:
                found.check()
            assert not (tmp_path / 'work').exists()
            return str(error.value)

        return refusal

    def test_a_budget_that_cannot_be_met_is_refused_with_the_smallest_that_can(self, refusal):
        told = refusal(budget=Budget(1000, 'bytes'))
        assert re.search(
            r'The smallest network .* has [\d,]+ bytes, [\d.]+% of its [\d,]+, and the budget is 1,000', told
        )
        assert 'and the budget is 100,000: give a smaller one' in refusal(budget=Budget(1e5, 'parameters'))

    def test_missing_data_are_named(self, refusal):
        change = {'train_dataloader.dataset.data_root': 'no/folder'}
        assert 'The data set of train_dataloader is expected in no/folder, which is not there' in refusal(change)
        assert refusal(dict(val_dataloader=None)) == 'The config has no val_dataloader, which compression needs.'

    def test_missing_parts_of_the_config_are_named(self, refusal):
        told = refusal(dict(val_evaluator=None, val_cfg=None, optim_wrapper=None))
        assert told == 'The config has no val_evaluator and no val_cfg and no optim_wrapper, which compression needs.'

    def test_a_config_without_a_learning_rate_is_refused(self, refusal):
        told = refusal({'optim_wrapper.optimizer': dict(_delete_=True, type='Adam')})
        assert 'has no optim_wrapper.optimizer.lr, of which the fine-tuning takes a share' in told

    def test_a_checkpoint_of_another_network_is_refused(self, refusal, tmp_path):
        torch.save(dict(state_dict={'a': torch.ones(1)}), tmp_path / 'other.pth')
        assert 'other.pth is not of the model of this config' in refusal(checkpoint=str(tmp_path / 'other.pth'))

    def test_a_network_that_shares_is_refused(self, refusal):
        sharing = dict(groups=['conv1'], bank=dict(type='TiedFilters'))
        change = {'model.backbone.type': 'SharedResNet_CIFAR', 'model.backbone.sharing': sharing}
        assert 'shares already: give the config of the plain network' in refusal(change)

    def test_a_plan_that_does_not_fit_is_refused(self, refusal, tmp_path):
        plan = tmp_path / 'plan.json'
        assert 'plan.json cannot be read' in refusal(budget=None, plan=plan)
        row = dict(stage='a', group='b', layers=['a.0.b'], before=1, after=1, bank=None, cost=0)
        plan.write_text(json.dumps(dict(plain=dict(parameters=1, bytes=4), rows=[row])))
        assert 'plan.json is of another network: this one has no layer a.0.b' in refusal(budget=None, plan=plan)

    def test_a_model_whose_type_is_a_class_is_refused(self, config, checkpoint, tmp_path):
        found = compression(config, checkpoint, tmp_path)
        found.cfg.model.type = MODELS.get('mmpretrain.ImageClassifier')
        with pytest.raises(SharingError, match='names the type of its model by a class'):
            found.check()

    @pytest.mark.parametrize(
        'arguments, told',
        [
            (dict(max_drop=1.0), 'Give one of budget, max_drop and plan'),
            (dict(budget=None), 'Give one of budget, max_drop and plan'),
            (dict(budget=None, max_drop=-1.0), 'may not drop by -1.0 points'),
            (dict(budget=None, max_drop=float('nan')), 'may not drop by nan points'),
            (dict(images=0), 'images is 0: give 1 or more'),
            (dict(epochs=-1), 'epochs is -1: give 0 or more'),
        ],
    )
    def test_arguments_that_cannot_be_right_are_refused(self, arguments, told, config, checkpoint, tmp_path):
        with pytest.raises(SharingError, match=told):
            compression(config, checkpoint, tmp_path, **arguments)


def test_a_run_has_its_work_dir_to_itself(config, checkpoint, tmp_path):
    runs = [compression(config, checkpoint, tmp_path / 'work') for _ in range(2)]
    with runs[0].alone(), pytest.raises(SharingError, match='Another run writes into .*work: wait for its end'):
        runs[1].run()
    with runs[1].alone():  # now it is free
        assert not (tmp_path / 'work/plain.json').exists()


def test_the_path_between_folders_holds_through_links(tmp_path):
    far, config = tmp_path / 'disk/far/away', tmp_path / 'here/config.py'
    far.mkdir(parents=True)
    config.parent.mkdir()
    config.touch()
    (tmp_path / 'here/work_dirs').symlink_to(far)
    assert (far / relative(str(config), tmp_path / 'here/work_dirs')).samefile(config)


def files_in(folder):
    """The files in a folder, except its notes and logs, each with its time."""
    found = [path for path in folder.rglob('*') if path.suffix in ('.json', '.pth', '.py')]
    found = [path for path in found if path.name != 'steps.json' and 'vis_data' not in path.parts]
    return {(str(path.relative_to(folder)), path.stat().st_mtime_ns) for path in found}


def test_fine_tuning_takes_a_part_of_the_learning_rate_no_average_and_the_plain_network_as_the_teacher(config):
    cfg = load_config(config)
    cfg.train_dataloader.sampler.type = 'InfiniteSampler'
    kept = dict(type='ProgressHook')
    cfg.custom_hooks = [dict(type='EMAHook', momentum=1e-4), kept]
    tuned = fine_tuning(cfg, 3, 'plain.pth')
    assert tuned.optim_wrapper.optimizer == dict(cfg.optim_wrapper.optimizer, lr=pytest.approx(0.003))
    assert tuned.param_scheduler.type == 'CosineAnnealingLR' and tuned.param_scheduler.T_max == 3
    assert tuned.custom_hooks == [kept, dict(type='DistillationHook', checkpoint='plain.pth')]
    assert tuned.train_dataloader.sampler == dict(type='DefaultSampler', shuffle=True)
    assert cfg.optim_wrapper.optimizer.lr == 0.1


def test_an_onnx_model_is_offered_where_there_can_be_one():
    title, path = 'Write it as a small ONNX model', Path('work/finetuned.pth')
    assert commands(path.parent, path, (3, 32, 48), 0.1)[title].endswith('--keep-shared --int8 --shape 3 32 48')
    assert title not in commands(path.parent, path, None, 0.1)


def test_networks_whose_outputs_cannot_be_compared_are_refused():
    cfg = load_config('mmdet::cascade_rpn/cascade-rpn_faster-rcnn_r50-caffe_fpn_1x_coco.py')
    with pytest.raises(SharingError, match='CascadeRPNHead proposes in several stages'):
        check_outputs(build_empty(cfg))


class Killed(Exception):
    pass


@pytest.fixture
def killed(monkeypatch):
    """Lets each run make one file only. Returns the names of all that were made."""
    made: list[str] = []
    original = Files.make

    def make_one(self, name, sources, make, together=False):
        def counted(path):
            if made and made[-1] == 'killed':
                raise Killed
            make(path)
            made.extend([path.name, 'killed'])

        return original(self, name, sources, counted, together)

    monkeypatch.setattr(Files, 'make', make_one)
    return made


def test_metrics_are_single_numbers_and_the_main_one_has_a_usual_name():
    found = numbers_in({'a': [0.5], 'b': torch.tensor(2.5), 'c': torch.ones(2, 2), 'd': np.float32(0.5), 'e': 3})
    assert found == dict(b=2.5, d=0.5, e=3)
    for names, main in (
        (['coco/rook_precision', 'coco/bbox_mAP', 'coco/bbox_mAP_50', 'coco/segm_mAP'], 'coco/bbox_mAP'),
        (['aAcc', 'mIoU'], 'mIoU'),
        (['single-label/f1-score', 'b'], 'single-label/f1-score'),
        ([], ''),
    ):
        assert main_metric(names) == main


def test_nothing_is_loaded_into_parts_before_a_fine_tuning():
    start, kept = dict(type='Pretrained', checkpoint='torchvision://resnet50'), dict(type='Kaiming', layer='Conv2d')
    heads = [dict(type='Head', init_cfg=[start, kept]), dict(type='Head', pretrained='a.pth', init_cfg=[start])]
    model = Config(dict(model=dict(backbone=dict(depth=50, init_cfg=start), heads=tuple(heads)))).model
    found = without_pretrained(model)
    assert found.to_dict() == dict(
        backbone=dict(depth=50, init_cfg=None),
        heads=(dict(type='Head', init_cfg=[kept]), dict(type='Head', pretrained=None, init_cfg=None)),
    )


@pytest.mark.slow
class TestPipeline:
    NETWORK = ['compressed.py', 'converted.pth', 'converted.json']
    STEPS = [
        'plain.json',
        'moments.pth',
        'options.json',
        'plans.json',
        *(2 * ['plan.json', *NETWORK]),  # of which one is taken
        'plan.json',
        *NETWORK,
        'finetuned.pth',
        'finetuned.json',
        'folded.pth',
        'report.html',
    ]

    def test_a_run_that_is_killed_after_each_step_makes_each_file_once(self, config, checkpoint, tmp_path, killed):
        runs = 0
        while True:
            runs += 1
            killed[:] = [name for name in killed if name != 'killed']
            try:
                report = compression(config, checkpoint, tmp_path / 'work').run()
                break
            except Killed:
                continue
        assert killed[:-1] == self.STEPS and runs == len(self.STEPS) - 1  # the last of two networks and the plan
        assert list(json.loads(report.with_suffix('.json').read_text())) == ['plain', 'converted', 'finetuned', 'plan']

    def test_a_classifier_by_the_tool(self, config, checkpoint, tmp_path, monkeypatch):
        val = SharingRunner.val
        monkeypatch.setattr(SharingRunner, 'val', lambda runner: {**val(runner), 'sum': sum_of(runner.model)})
        work_dir = tmp_path / 'work'
        arguments = [config, checkpoint, '--keep', '0.5', '--images', '16', '--steps', '2', '--work-dir', work_dir]
        result = call('compress.py', *arguments)
        assert result.returncode == 0, result.stderr
        assert result.stdout.endswith(f'report: {work_dir / "report.html"}\n')
        plan = Plan.from_json((work_dir / 'plan.json').read_text(), 'plan.json')
        assert plan.parameters <= 0.5 * plan.plain.parameters

        written = (work_dir / 'compressed.py').read_text()
        assert written.startswith("_base_ = '../classifier.py'\ncustom_imports = dict(imports=['mmshared'], allow")
        cfg = load_config(str(work_dir / 'compressed.py'))
        noted = Config.fromstring(load_checkpoint_file(str(work_dir / 'finetuned.pth'))['meta']['cfg'], '.py')
        assert noted.custom_imports == cfg.custom_imports and noted.runner_type == cfg.runner_type == 'SharingRunner'
        report = (work_dir / 'report.html').read_text(encoding='utf-8')
        assert 'optim_wrapper.optimizer.lr=0.003' in report
        commands = [html.unescape(each) for each in re.findall('<pre>(mmshared .*?)</pre>', report, re.S)]
        assert len(commands) == 4 and not any(map(unknown_options, commands))
        shared = load_model(cfg, str(work_dir / 'finetuned.pth')).eval()
        assert size_of(shared).parameters == plan.parameters and len(banks(shared)) == len(plan.sharing())
        networks = dict(plain=load_model(load_config(config), checkpoint), finetuned=shared)
        networks['converted'] = load_model(cfg, str(work_dir / 'converted.pth'))
        for name, network in networks.items():
            assert json.loads((work_dir / f'{name}.json').read_text())['sum'] == pytest.approx(sum_of(network))
        folded = load_model(load_config(str(work_dir / 'folded.py')), str(work_dir / 'folded.pth'))
        batch = next(iter(calibration_loader(cfg, 4)))
        outputs = [model.test_step(batch) for model in (shared, folded)]
        scores = [torch.stack([sample.pred_score for sample in each]) for each in outputs]
        assert torch.allclose(*scores, atol=1e-5)

        before = {path.name: path.stat().st_mtime_ns for path in work_dir.iterdir() if path.is_file()}
        assert call('compress.py', *arguments).returncode == 0
        assert before == {path.name: path.stat().st_mtime_ns for path in work_dir.iterdir() if path.is_file()}

    def test_another_fine_tuning_leaves_the_first_as_it_was(self, config, checkpoint, tmp_path):
        work_dir, trained = tmp_path / 'work', []
        for epochs in (1, 2, 1):
            compression(config, checkpoint, work_dir, epochs=epochs).run()
            trained.append(load_checkpoint_file(str(work_dir / 'finetuned.pth'))['state_dict'])
            logs = {path for path in work_dir.glob('finetuned-*/*/*.log') if 'Epoch(train)' in path.read_text()}
        assert len(list(work_dir.glob('finetuned-*'))) == len(logs) == 2  # the third had nothing left to train
        same = [all(torch.equal(each[key], trained[0][key]) for key in each) for each in trained]
        assert same == [True, False, True]

    def test_two_processes_make_what_one_makes(self, config, checkpoint, tmp_path):
        arguments = ['--keep', '0.5', '--images', '16', '--steps', '2', '--work-dir']
        found = in_two_ranks(tmp_path, 'compress.py', config, checkpoint, *arguments, tmp_path / 'two')
        assert [each.returncode for each in found] == [0, 0], found
        assert call('compress.py', config, checkpoint, *arguments, tmp_path / 'one').returncode == 0
        folders = [(tmp_path / name).iterdir() for name in ('one', 'two')]
        files = [{re.sub('finetuned-.*', 'finetuned-', path.name) for path in each} for each in folders]
        assert files[0] == files[1] >= {'plan.json', 'finetuned.pth', 'folded.pth', 'report.html'}
        moments = [load_checkpoint_file(str(tmp_path / name / 'moments.pth')) for name in ('one', 'two')]
        for name, moment in moments[0].items():  # of patches that are drawn from each batch
            torch.testing.assert_close(moments[1][name].diagonal().sum(), moment.diagonal().sum(), rtol=0.1, atol=0)

    def test_a_process_does_not_wait_for_what_the_first_one_could_not_make(self, config, checkpoint, tmp_path):
        (tmp_path / 'two/options.json').mkdir(parents=True)
        arguments = ['--keep', '0.5', '--images', '16', '--steps', '0', '--work-dir', tmp_path / 'two']
        found = in_two_ranks(tmp_path, 'compress.py', config, checkpoint, *arguments)
        assert [each.returncode for each in found] == [1, 1]
        assert 'Is a directory' in found[0].stderr
        assert 'options.json was not made: the first process says why' in found[1].stderr

    def test_an_image_that_cannot_be_read_is_named(self, config, checkpoint, tmp_path, images):
        shutil.copytree(images, tmp_path / 'images')
        Path(config).write_text(Path(config).read_text().replace(str(images), str(tmp_path / 'images')))
        next((tmp_path / 'images/train').rglob('*.png')).write_bytes(b'')
        with pytest.raises(SharingError, match='The image .*png cannot be read: it is empty, damaged or not an image'):
            compression(config, checkpoint, tmp_path / 'work', images=1000).run()

    def test_a_learning_rate_and_a_budget_measure_nothing_again_and_an_edited_plan_is_taken(
        self, config, checkpoint, tmp_path
    ):
        work_dir, changed = tmp_path / 'work', []
        for budget, rate in ((0.5, 0.1), (0.5, 0.2), (0.7, 0.2)):
            text = Path(config).read_text()
            text = text.replace('lr=0.1', f'lr={rate}') + "log_level = 'WARNING'\n" * (rate > 0.1)
            text = re.sub(r'(train_dataloader = dict\(\s*batch_size)=\d', rf'\1={4 if rate > 0.1 else 8}', text)
            Path(config).write_text(text)
            before = files_in(work_dir)
            compression(config, checkpoint, work_dir, budget=Budget(budget, 'kept'), epochs=0).run()
            changed.append({name for name, _ in files_in(work_dir) - before})
        first = {'plan.json', 'converted.pth', 'converted.json'}
        assert {'moments.pth', 'options.json'} | first <= changed[0]
        assert not any('finetuned' in name for name in changed[0])
        assert {Path(name).stem for name in changed[1]} == {'compressed', 'folded'}  # which hold the config
        assert {name.partition('/')[0] for name in changed[2]} == {'kept-0.7'}  # the rest is there as it was
        before = files_in(work_dir)
        content = json.loads((work_dir / 'plan.json').read_text())
        content['rows'] = [row for row in content['rows'] if row['bank']][:1]
        (tmp_path / 'edited.json').write_text(json.dumps(content))
        report = compression(config, checkpoint, work_dir, budget=None, plan=tmp_path / 'edited.json', epochs=0).run()
        assert {name.partition('/')[0] for name, _ in files_in(work_dir) - before} == {report.parent.name}
        found = load_config(str(report.with_name('compressed.py'))), str(report.with_name('converted.pth'))
        assert [list(bank.names) for bank in banks(load_model(*found))] == [content['rows'][0]['layers']]

    def test_a_plan_that_is_edited_in_its_place_is_checked(self, config, checkpoint, tmp_path):
        work_dir = tmp_path / 'work'
        compression(config, checkpoint, work_dir, epochs=0).run()
        content = json.loads((work_dir / 'plan.json').read_text())
        row = next(row for row in content['rows'] if row['bank'] and len(row['layers']) > 1)
        bank, kept = row['bank'], content['parameters'] + row['before'] - row['after']
        row['bank'] = None
        (work_dir / 'plan.json').write_text(json.dumps(content))
        report = compression(config, checkpoint, work_dir, epochs=0).run()
        assert json.loads(report.with_suffix('.json').read_text())['converted']['parameters'] == kept
        row.update(bank=bank, layers=['backbone.conv1', *row['layers']])
        (work_dir / 'plan.json').write_text(json.dumps(content))
        with pytest.raises(SharingError, match='change banks and ranks or remove rows, and leave the layers'):
            compression(config, checkpoint, work_dir, epochs=0).run()

    def test_processes_meet_before_they_put_the_network_on_their_devices(
        self, config, checkpoint, tmp_path, monkeypatch
    ):
        class Meeting(Exception):
            pass

        def meet(*args):
            raise Meeting

        monkeypatch.setattr('mmshared.compress.pipeline.join_group', meet)
        run = compression(config, checkpoint, tmp_path)
        with pytest.raises(Meeting):
            run.run()
        assert 'model' not in vars(run)

    def test_the_smallest_network_within_a_drop(self, config, checkpoint, tmp_path, monkeypatch):
        """Judged by a metric that is the share of the parameters."""

        def evaluate(self, steps, name, cfg, checkpoint):
            return dict(size=100 * size_of(load_model(cfg, str(checkpoint))).parameters / self.size.parameters)

        monkeypatch.setattr(Compression, 'evaluate', evaluate)
        fits = []
        monkeypatch.setattr('mmshared.compress.pipeline.fit_model', lambda *args: fits.append(fit_model(*args)))
        goal = dict(budget=None, max_drop=30, epochs=0)
        found = compression(config, checkpoint, tmp_path / 'work', **goal)
        report = found.run()
        files = [report.with_name('compressed.py'), report.with_name('converted.pth')]
        kept = size_of(load_model(load_config(str(files[0])), str(files[1])))
        assert 0.7 <= kept.parameters / found.size.parameters < 0.75
        assert len(fits) == len(list((tmp_path / 'work').glob('kept-*/**/converted.pth')))  # the best only once
        before = files_in(tmp_path / 'work')
        compression(config, checkpoint, tmp_path / 'work', **goal).run()
        assert files_in(tmp_path / 'work') == before
        made = files[1].stat().st_mtime_ns
        compression(config, checkpoint, tmp_path / 'work', **goal, steps=1).run()
        assert files[1].stat().st_mtime_ns > made  # other networks were judged
        again = compression(config, checkpoint, tmp_path / 'work', **{**goal, 'max_drop': 0})
        with pytest.raises(SharingError, match='No smaller network keeps size within 0 points'):
            again.run()
        monkeypatch.setattr(Compression, 'evaluate', lambda *args: {})
        with pytest.raises(SharingError, match='The plain network detects nothing in the validation images'):
            again.run()

    @pytest.mark.parametrize('best', ['apart', 'whole'])
    def test_of_two_plans_that_of_the_better_network_is_taken(self, best, config, checkpoint, tmp_path, monkeypatch):
        def predict(groups, meter):
            options = predict_costs(groups, meter)
            return [
                [each._replace(cost=each.cost * len(group.layers) ** 8) for each in some]
                for group, some in zip(groups, options)
            ]

        monkeypatch.setattr('mmshared.compress.pipeline.predict_costs', predict)
        monkeypatch.setattr(Compression, 'evaluate', lambda self, files, *_: {'top1': files.folder.name == best})
        work = tmp_path / 'work'
        compression(config, checkpoint, work, epochs=0).run()
        texts = {name: (work / name / 'plan.json').read_text() for name in ('apart', 'whole')}
        assert texts['apart'] != texts['whole'] and (work / 'plan.json').read_text() == texts[best]
        before = files_in(work)
        compression(config, checkpoint, work, epochs=0).run()
        assert files_in(work) == before

    def test_a_detector_that_finds_nothing_has_a_report(self, config, checkpoint, tmp_path, monkeypatch):
        monkeypatch.setattr(Compression, 'evaluate', lambda *args: {})
        report = compression(config, checkpoint, tmp_path / 'work', epochs=0).run()
        assert json.loads(report.with_suffix('.json').read_text())['plain']['metrics'] == {}

    def test_weights_are_all_that_a_checkpoint_needs_without_training(self, config, checkpoint, tmp_path, capsys):
        torch.save(load_checkpoint_file(checkpoint)['state_dict'], tmp_path / 'bare.pth')
        found = compression(config, str(tmp_path / 'bare.pth'), tmp_path / 'work', epochs=0)
        hooks = [dict(type='EMAHook'), dict(type='EarlyStoppingHook', monitor='accuracy/top1')]
        for cfg in (found.cfg, found.bare):
            cfg.merge_from_dict(dict(optim_wrapper=None, custom_hooks=hooks))
        found.run()
        told = re.findall('(plain|converted): accuracy/top1 [0-9]', capsys.readouterr().err)
        assert (told[0], told[-1]) == ('plain', 'converted')

    @pytest.mark.parametrize('of', ['data', 'checkpoint'])
    def test_what_is_fine_tuned_has_the_names_of_its_classes(self, of, config, checkpoint, tmp_path):
        names = dict(classes=[str(number) for number in range(10)])
        if of == 'checkpoint':
            torch.save({**load_checkpoint_file(checkpoint), 'meta': dict(dataset_meta=names)}, checkpoint)
        found = compression(config, checkpoint, tmp_path / 'work')
        if of == 'data':
            for cfg in (found.cfg, found.bare):
                cfg.train_dataloader.dataset.metainfo = names
        found.run()
        for name in ('finetuned.pth', 'folded.pth'):
            meta = load_checkpoint_file(str(tmp_path / 'work' / name))['meta']
            assert list(meta['dataset_meta']['classes']) == names['classes']

    def test_a_fine_tuning_that_diverges_says_so_each_time(self, config, checkpoint, tmp_path):
        found = compression(config, checkpoint, tmp_path / 'work')
        for cfg in (found.cfg, found.bare):
            cfg.optim_wrapper.optimizer.lr = 1e30
        for _ in range(2):
            with pytest.raises(
                SharingError, match='The fine-tuning diverged: give a lower optim_wrapper.optimizer.lr'
            ):
                found.run()

    def test_options_of_the_config_are_kept(self, config, checkpoint, tmp_path):
        work_dir = tmp_path / 'work'
        options = ['--cfg-options', 'train_dataloader.batch_size=5', '--epochs', '0', '--images', '16', '--steps', '2']
        result = call('compress.py', config, checkpoint, '--keep', '0.5', '--work-dir', work_dir, *options)
        assert result.returncode == 0, result.stderr
        written = work_dir / 'compressed.py'
        assert written.read_text().startswith("_base_ = 'plain.py'\n")
        assert load_config(str(written)).train_dataloader.batch_size == 5

    def test_a_detector(self, tmp_path):
        """From random weights: everything of it is small, except that it is a detector."""
        data = tmp_path / 'digits'
        scenes = ['--train', '4', '--val', '2', '--size', '64', '--digits', '1', '2', '--digit-size', '16', '32']
        assert call('dataset_converters/digit_scenes.py', data, *scenes).returncode == 0
        cfg = load_config(str(ROOT / 'configs/small/faster-rcnn_r50-narrow_6e_digits.py'))
        merge_options(cfg, {'data_root': str(data), 'model.backbone.depth': 18})
        cfg.model.backbone.update(base_channels=8, stem_channels=8)
        cfg.model.neck.update(in_channels=[8, 16, 32, 64], out_channels=32)
        cfg.model.rpn_head.update(in_channels=32, feat_channels=32)
        cfg.model.roi_head.bbox_roi_extractor.out_channels = 32
        cfg.model.roi_head.bbox_head.update(in_channels=32, fc_out_channels=256)
        cfg.model.test_cfg.rpn.max_per_img = 100
        for loader in (cfg.train_dataloader, cfg.val_dataloader):
            loader.update(num_workers=0, persistent_workers=False)
        cfg.work_dir, cfg.runner_type = str(tmp_path / 'work'), 'SharingRunner'
        model = randomise_norms(build_model(cfg))
        torch.save(dict(state_dict=model.state_dict()), tmp_path / 'plain.pth')
        found = Compression(cfg, None, str(tmp_path / 'plain.pth'), Budget(0.3, 'kept'), images=2, steps=2)
        page = found.run()
        report, folder = json.loads(page.with_suffix('.json').read_text()), page.parent
        assert list(report['finetuned']['metrics']) == list(report['plain']['metrics'])
        for path in [folder / name for name in ('plain', 'converted', 'finetuned')]:
            assert list(path.glob('*/vis_data/config.py'))  # each writes its curves into its own
        rows = {row.name: row for row in Plan.from_json((folder / 'plan.json').read_text(), 'plan.json').rows}
        assert rows['roi_head.bbox_head.shared_fcs.0'].rank.endswith('U0')  # more than half of all parameters
        assert {'backbone', 'neck', 'roi_head'} <= {name.partition('.')[0] for name, row in rows.items() if row.bank}
        plain = load_model(load_config(str(folder / 'folded.py')), str(folder / 'folded.pth'))
        assert type(plain) is type(model) and size_of(plain).parameters >= size_of(model).parameters

    @pytest.mark.parametrize(
        'text, told',
        [
            ('10MB', 'the budget is 10,000,000:'),
            ('1.5kib', 'the budget is 1,536:'),
            ('2e3', 'the budget is 2,000:'),
            ('10 apples', '10 apples is not a size: write for example 10MB'),
        ],
    )
    def test_sizes_have_units(self, text, told, config, checkpoint, tmp_path):
        result = call('compress.py', config, checkpoint, '--bytes', text, '--work-dir', tmp_path / 'work')
        assert result.returncode == 1 and told in result.stderr
