"""What the tools say of what they cannot take, and that nothing is lost by it."""

import os
import re
import signal
import sys
from argparse import ArgumentParser
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from subprocess import PIPE, Popen
from unittest.mock import Mock, patch

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.registry import RUNNERS

from helpers import ROOT, Classifier, call
from mmshared import OrthogonalityLossHook, SharingError
from mmshared.engine.build import build_model
from mmshared.engine.checkpoint import load_checkpoint_file, save_checkpoint
from mmshared.engine.config import check_twins, drop_hooks, dump_config, load_config, merge_options, moved_root
from mmshared_cli import add_shape, errors_in_a_sentence, interrupts_in_a_sentence, own_files

SHARED = ROOT / 'configs/shared_resnet/shared-resnet32-s8u1_b256_cifar10.py'
PLAIN = SHARED.with_name('resnet32_b256_cifar10.py')
DIGITS = ROOT / 'configs/small/faster-rcnn_r50-narrow-shared_6e_digits.py'
LARGE = ROOT / 'configs/repeatnet/repeat-resnet-w2-linear_b128_cifar10.py'


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Checkpoints: plain, one of other classes, one that is none; files that are no configs; a folder."""
    folder = tmp_path_factory.mktemp('files')
    state = build_model(Config.fromfile(PLAIN)).state_dict()
    meta = dict(dataset_meta=dict(classes=['cat']), CLASSES=['cat'])
    torch.save(dict(state_dict=state, meta=meta), folder / 'plain.pth')
    torch.save({**state, 'head.fc.weight': torch.zeros(7, 64)}, folder / 'classes.pth')
    torch.save(dict(state_dict=[1]), folder / 'list.pth')
    (folder / 'wrong.py').write_text('model = dict(')
    (folder / 'folder').mkdir()
    logs = folder / 'unvalidated/now/vis_data'
    logs.mkdir(parents=True)
    (logs / 'scalars.json').write_text('{"iter": 1, "loss": 0.5, "step": 1}')
    Config(dict(model=dict(type='FasterRCNN'), default_scope='mmdet', val_dataloader=None)).dump(logs / 'config.py')
    (folder / 'unvalidated/last_checkpoint').write_text('epoch_1.pth')
    (folder / 'link.pth').symlink_to('plain.pth')
    return folder


@pytest.mark.parametrize(
    'tool, arguments, words',
    [
        (
            'model_converters/fold.py',
            [SHARED, 'plain.pth', 'new.pth'],
            'plain.pth is of the plain network, and that of',
        ),
        ('model_converters/fold.py', [SHARED, 'list.pth', 'new.pth'], 'has no state dict: tensors by their names'),
        ('model_converters/fold.py', [SHARED, 'plain.pth', 'folder'], 'folder is a folder: name a file'),
        ('model_converters/fold.py', [SHARED, 'plain.pth', 'plain.pth/new.pth'], 'cannot be written: '),
        ('model_converters/fold.py', ['wrong.py', 'plain.pth', 'new.pth'], 'wrong.py cannot be read: '),
        ('model_converters/fold.py', ['classes.pth', 'plain.pth', 'new.pth'], 'classes.pth cannot be read: '),
        ('model_converters/fold.py', [ROOT / 'configs/_base_/mmshared.py', 'plain.pth', 'new.pth'], 'it has no model'),
        ('model_converters/dense_to_shared.py', [PLAIN, 'plain.pth', 'new.pth'], 'of this config shares nothing'),
        ('model_converters/dense_to_shared.py', [SHARED, 'classes.pth', 'new.pth'], 'not of the plain network of the'),
        ('model_converters/dense_to_shared.py', [SHARED, 'plain.pth', 'plain.pth'], 'must be different files'),
        (
            'model_converters/dense_to_shared.py',
            [SHARED, 'plain.pth', 'x.pth', '--steps', '9'],
            '--steps needs --images',
        ),
        ('model_converters/rescale.py', [LARGE, 'plain.pth', 'plain.pth'], 'must be different files'),
        ('model_converters/rescale.py', [LARGE, 'plain.pth', 'folder/../plain.pth'], 'must be different files'),
        ('model_converters/rescale.py', [LARGE, 'plain.pth', 'link.pth'], 'must be different files'),
        ('model_converters/rescale.py', [LARGE, 'list.pth', 'new.pth'], 'has no state dict'),
        ('model_converters/repeatnet_to_mmshared.py', ['plain.pth', 'plain.pth'], 'must be different files'),
        ('model_converters/repeatnet_to_mmshared.py', ['list.pth', 'new.pth'], 'has no state dict'),
        ('model_converters/net_rl2_to_mmshared.py', ['list.pth', 'new.pth'], 'no shared_basis|no state dict'),
        ('analysis_tools/sharing_report.py', [SHARED, '--shape', '1', '32', '32'], 'cannot take images of 1x32x32: '),
        ('analysis_tools/sharing_report.py', [SHARED, '--json', 'folder'], 'folder is a folder: name a file'),
        (
            'analysis_tools/gram_matrices.py',
            [SHARED, 'plain.pth', '--out', 'image'],
            'is not an image: the name must end',
        ),
        ('analysis_tools/benchmark_speed.py', [SHARED, '--device', 'foo'], 'foo cannot be used here: '),
        ('analysis_tools/benchmark_speed.py', [SHARED, '--device', 'meta'], 'meta cannot be used here: '),
        ('analysis_tools/report_run.py', ['folder', '--images', '0'], '--images 0: give 1 or more'),
        ('analysis_tools/report_run.py', ['folder'], 'is not the work dir of a finished run: it has no log of a tra'),
        ('analysis_tools/report_run.py', ['unvalidated'], 'is of a run without validation: its config has no images'),
        ('train.py', [SHARED, '--cfg-options', 'custom_hooks=[dict(a=1,b=2)]'], 'are given one by one'),
        ('train.py', [SHARED, '--cfg-options', 'data_root'], 'data_root: give KEY=VALUE'),
        ('train.py', [SHARED, '--cfg-options', 'custom_hooks.7.a=0'], 'no place for the option custom_hooks.7.a: '),
        ('train.py', [SHARED, '--cfg-options', 'custom_hooks.a=0'], 'no place for the option custom_hooks.a: '),
        (
            'train.py',
            [SHARED, '--cfg-options', 'train_cfg.max_epochs.a=0'],
            'for the option train_cfg.max_epochs.a',
        ),
        ('train.py', [DIGITS, '--amp', '--work-dir', 'folder'], '--amp needs a GPU, and there is none'),
        ('benchmark.py', ['plain.pth', '--jobs', '0'], '--gpus-per-run, --jobs and --timeout must be 1 or more'),
        ('benchmark.py', ['plain.pth', '--timeout', '9'], '--partition and --timeout need --submitit'),
        ('benchmark.py', ['plain.pth', '--submitit', '--jobs', '2'], '--jobs is for runs on this machine'),
    ],
)
@pytest.mark.slow
def test_what_a_tool_cannot_take_is_one_sentence(files, monkeypatch, tool, arguments, words):
    monkeypatch.chdir(files)
    monkeypatch.setattr('mmengine.device.get_device', lambda: 'cpu')
    before = {path: path.read_bytes() for path in files.iterdir() if path.is_file()}
    result = call(tool, *arguments)
    last = result.stderr.strip().splitlines()[-1]
    assert result.returncode and 'rror: ' in last and any(each in last for each in words.split('|')), result.stderr
    assert {path: path.read_bytes() for path in files.iterdir() if path.is_file()} == before


@pytest.mark.slow
def test_class_names_survive_the_conversion(files, tmp_path):
    result = call('model_converters/dense_to_shared.py', SHARED, files / 'plain.pth', tmp_path / 'new/shared.pth')
    meta = load_checkpoint_file(str(tmp_path / 'new/shared.pth'))['meta']
    assert meta['dataset_meta']['classes'] == meta['CLASSES'] == ['cat'], result


def test_a_checkpoint_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    save_checkpoint(dict(a=torch.ones(1)), tmp_path / 'model.pth')

    def full(checkpoint, path):
        path.write_bytes(b'half')
        raise RuntimeError('no space left\nmore')

    monkeypatch.setattr(torch, 'save', full)
    with pytest.raises(SharingError, match='model.pth cannot be written: no space left$'):
        save_checkpoint(dict(a=torch.zeros(1)), tmp_path / 'model.pth')
    assert [path.name for path in tmp_path.iterdir()] == ['model.pth']
    assert load_checkpoint_file(str(tmp_path / 'model.pth'))['a'] == 1


def raises_in_a_tool(monkeypatch, error: Exception, *arguments) -> None:
    monkeypatch.setattr(sys, 'argv', ['tool.py', *arguments])

    @errors_in_a_sentence()
    def main():
        assert sys.argv == ['tool.py']  # what argparse sees
        raise error

    main()


def test_a_sentence_or_with_an_option_the_whole_traceback(monkeypatch):
    error = SharingError('This is wrong: mend it.')
    with pytest.raises(SystemExit, match='^Error: This is wrong: mend it.$'):
        raises_in_a_tool(monkeypatch, error)
    with pytest.raises(SharingError, match='This is wrong'):
        raises_in_a_tool(monkeypatch, error, '--traceback')
    result = call('model_converters/fold.py', 'none.py', 'none.pth', 'new.pth', '--traceback', '--cannot')
    assert 'unrecognized arguments: --cannot' in result.stderr
    with pytest.raises(SharingError, match='There is no config none.py'):
        call('model_converters/fold.py', 'none.py', 'none.pth', 'new.pth', '--traceback')


def test_a_file_of_ones_own_is_a_sentence_and_one_of_a_data_set_a_traceback(monkeypatch, tmp_path):
    with pytest.raises(FileNotFoundError):
        raises_in_a_tool(monkeypatch, FileNotFoundError(2, 'No such file', 'image.jpg'))
    with pytest.raises(SharingError, match='file/new.txt cannot be read or written: Not a directory'), own_files():
        (tmp_path / 'file').touch()
        (tmp_path / 'file/new.txt').write_text('')


def full_disk(path, *args, **kwargs):
    raise OSError(28, 'No space left on device', str(path))


@pytest.mark.parametrize(
    'tool, arguments, words',
    [
        (
            'analysis_tools/sharing_report.py',
            [SHARED, '--shape', '32', '--json', 'new'],
            'cannot be read or written: No space left on device.',
        ),
        (
            'model_converters/publish_model.py',
            ['plain.pth', 'new'],
            '.pth cannot be written: [Errno 28] No space left on device',
        ),
    ],
)
@pytest.mark.slow
def test_an_output_that_cannot_be_written_is_one_sentence(files, monkeypatch, tmp_path, tool, arguments, words):
    monkeypatch.setattr(Path, 'write_text', full_disk)
    monkeypatch.setattr(Path, 'write_bytes', full_disk)
    monkeypatch.chdir(files)
    arguments = [tmp_path / each if each == 'new' else each for each in arguments]
    result = call(tool, *arguments)
    assert result.returncode and words in result.stderr, result.stderr


CHECK = 'mmshared.engine.runner.check_config'  # replaced: the data are not there


def run(tool, *arguments):
    """Calls train.py or test.py up to the Runner; returns what it would have been built from, and the Runner."""
    built, runner = [], Mock()
    with patch.object(RUNNERS, 'build', lambda cfg: built.append(cfg) or runner), patch(CHECK, lambda *_: None):
        result = call(tool, *arguments)
    assert result.returncode == 0, result.stderr
    return built[0], runner


@pytest.mark.parametrize('tool', ['train.py', 'test.py'])
@pytest.mark.parametrize('library', ['mmdet', 'mmpretrain'])
def test_the_options_are_those_of_both_libraries(library, tool):
    source = (Path(find_spec(library).origin).parent / '.mim/tools' / tool).read_text()
    options = set(re.findall(r"'(--[\w-]+)'", source))
    assert '--work-dir' in options
    with patch.object(ArgumentParser, 'parse_args', lambda parser: parser.print_help() or sys.exit()):
        told = call(tool).stdout
    assert not [option for option in options if not re.search(rf'{option}\b(?!-)', told)]


@pytest.mark.parametrize('config', [DIGITS, SHARED, 'mmpretrain::resnet/resnet18_8xb16_cifar10.py'])
def test_options_of_a_training(tmp_path, config):
    options = ['--work-dir', tmp_path, '--amp', '--no-validate', '--no-pin-memory', '--no-persistent-workers']
    with patch('mmengine.device.get_device', lambda: 'cuda'):
        cfg, runner = run('train.py', config, *options, '--resume', 'x.pth', '--cfg-options', 'randomness.seed=3')
    assert (cfg.work_dir, cfg.resume, cfg.load_from, cfg.randomness.seed) == (str(tmp_path), True, 'x.pth', 3)
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper' and cfg.optim_wrapper.loss_scale == 'dynamic'
    assert cfg.val_cfg is cfg.val_dataloader is cfg.val_evaluator is None
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        assert loader.pin_memory is loader.persistent_workers is False
    assert cfg.runner_type == 'SharingRunner'
    runner.train.assert_called_once_with()


@pytest.mark.parametrize('options, told', [([], True), (['--quiet'], False)])
def test_a_quiet_training_leaves_out_the_log(tmp_path, options, told):
    built = []
    with (
        patch.object(RUNNERS, 'build', lambda cfg: print('a log') or built.append(cfg) or Mock()),
        patch(CHECK, lambda *_: None),
    ):
        result = call('train.py', DIGITS, '--work-dir', tmp_path, *options)
    assert ('a log' in result.stdout) == told
    assert ('ProgressHook' in [hook.type for hook in built[0].custom_hooks]) != told


def test_a_training_goes_on_where_it_was_or_begins_as_the_config_says(tmp_path):
    arguments = ['train.py', DIGITS, '--work-dir', tmp_path, '--resume', '--cfg-options', 'load_from=start.pth']
    cfg, _ = run(*arguments)
    assert not cfg.get('resume') and cfg.load_from == 'start.pth'
    save_checkpoint({}, tmp_path / 'epoch_1.pth')
    (tmp_path / 'last_checkpoint').write_text('elsewhere/epoch_2.pth')
    cfg, _ = run(*arguments)
    assert cfg.resume and cfg.load_from is None


def test_the_learning_rate_scales_where_the_config_says_from_what(tmp_path):
    arguments = ['--work-dir', tmp_path, '--auto-scale-lr']
    cfg, _ = run('train.py', 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', *arguments)
    assert cfg.auto_scale_lr.enable is True
    result = call('train.py', SHARED, *arguments, '--cfg-options', 'auto_scale_lr={}')
    assert 'Error: --auto-scale-lr: the config has no auto_scale_lr.base_batch_size' in result.stderr


def test_loaders_of_classifiers_have_the_defaults_of_the_librarys_tools(tmp_path):
    cfg, _ = run('train.py', 'mmpretrain::resnet/resnet18_8xb16_cifar10.py', '--work-dir', tmp_path)
    loader = cfg.train_dataloader
    assert loader.pin_memory is loader.persistent_workers is True and loader.collate_fn.type == 'default_collate'
    cfg, _ = run('train.py', DIGITS, '--work-dir', tmp_path)
    assert 'collate_fn' not in cfg.train_dataloader


def test_options_of_a_test(tmp_path):
    show = ['--show-dir', 'shown', '--wait-time', '0.5', '--interval', '3', '--amp', '--tta']
    cfg, runner = run('test.py', DIGITS, 'x.pth', '--work-dir', tmp_path, '--out', tmp_path / 'x.pkl', *show)
    assert cfg.load_from == 'x.pth' and cfg.test_cfg.fp16 is True
    hook = cfg.default_hooks.visualization
    assert hook.draw is True and hook.test_out_dir == os.path.abspath('shown') and hook.wait_time == 0.5
    assert cfg.model.type == 'DetTTAModel' and cfg.model.module.type == 'FasterRCNN'
    last = cfg.test_dataloader.dataset.pipeline[-1]
    assert last.type == 'TestTimeAug' and 'flip_direction' in last.transforms[1][0].meta_keys
    assert [type(each[0][0]).__name__ for each in runner.test_evaluator.metrics.append.call_args_list] == [
        'DumpDetResults'
    ]
    runner.test.assert_called_once_with()

    with patch('mmengine.dump') as dump:
        arguments = ['--work-dir', tmp_path, '--out', tmp_path / 'x.json', '--out-item', 'metrics']
        cfg, runner = run('test.py', SHARED, 'x.pth', *arguments, *show)
    dump.assert_called_once_with(runner.test(), str(tmp_path / 'x.json'))
    runner.test_evaluator.metrics.append.assert_not_called()
    hook = cfg.default_hooks.visualization
    assert hook.enable is True and (hook.out_dir, hook.interval) == ('shown', 3)
    assert cfg.model.type == 'AverageClsScoreTTA'
    assert cfg.test_dataloader.dataset.pipeline[-1].transforms[1] == [dict(type='PackInputs')]


@pytest.mark.parametrize(
    'options, words',
    [
        (['--out-item', 'pred'], '--out-item needs --out'),
        (['--out', 'x.json'], 'predictions go into a .pkl'),
        (['--out', 'x.txt', '--out-item', 'metrics'], 'metrics go into a .json'),
    ],
)
def test_what_is_written_of_a_test_has_a_file_that_takes_it(options, words):
    result = call('test.py', DIGITS, 'x.pth', *options)
    assert result.returncode and words in result.stderr


@pytest.mark.parametrize('way', ['argument', 'config', 'default'])
def test_the_work_dir_is_the_arguments_or_the_configs_or_named_after_it(monkeypatch, tmp_path, way):
    monkeypatch.chdir(tmp_path)
    own = "work_dir = 'elsewhere'\n" if way != 'default' else ''
    (tmp_path / 'own.py').write_text(f'_base_ = {str(DIGITS)!r}\n{own}')
    cfg, _ = run('train.py', 'own.py', *(['--work-dir', 'here'] if way == 'argument' else []))
    expected = dict(argument='here', config='elsewhere', default='work_dirs/own')[way]
    assert cfg.work_dir == expected and (tmp_path / expected).is_dir()


def test_a_work_dir_has_the_name_of_the_config_without_its_package(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert run('train.py', 'mmshared::faster_rcnn_r50_shared.py')[0].work_dir == 'work_dirs/faster_rcnn_r50_shared'


def test_a_work_dir_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / 'file').touch()
    result = call('train.py', DIGITS, '--work-dir', tmp_path / 'file/run')
    assert re.search('Error: .*file.* cannot be read or written: Not a directory', result.stderr)


def test_ctrl_c_is_one_sentence():
    with (
        patch.object(signal, 'signal') as handle,
        pytest.raises(SystemExit, match='^Interrupted. Again.$'),
        interrupts_in_a_sentence(' Again.'),
    ):
        try:
            handle.call_args[0][1](signal.SIGINT, None)
        except KeyboardInterrupt:
            raise RuntimeError('a worker of the data loader is gone') from None
    with (
        patch.object(signal, 'signal'),
        pytest.raises(RuntimeError, match='of another kind'),
        interrupts_in_a_sentence(),
    ):
        raise RuntimeError('of another kind')


@pytest.mark.parametrize(
    'given, expected', [([64, 96], (3, 64, 96)), ([1, 64, 96], (1, 64, 96)), ([32], (3, 32, 32)), ([], (3, 224, 224))]
)
def test_a_shape_is_height_then_width_after_the_channels(given, expected):
    parser = ArgumentParser()
    add_shape(parser)
    assert parser.parse_args(['--shape', *map(str, given)] if given else []).shape == expected


def test_an_option_beats_the_moved_data_root():
    cfg = load_config(str(DIGITS))
    own = {'test_dataloader.dataset.data_root': 'mine/', 'test_evaluator.ann_file': 'mine/a.json'}
    merge_options(cfg, {**own, 'data_root': 'moved/'})
    assert cfg.train_dataloader.dataset.data_root == 'moved/'
    assert cfg.test_dataloader.dataset.data_root == 'mine/'
    assert cfg.test_evaluator.ann_file == 'mine/a.json'
    assert cfg.val_evaluator.ann_file == 'moved/instances_val.json'


def test_only_whole_folders_move_to_another_root():
    dataset = dict(data_root='data/coco/', ann_file='data/coco/a.json', proposal_file='data/coco_proposals/x.pkl')
    cfg = Config(dict(train_dataloader=dict(dataset=dataset)))
    assert moved_root(cfg, 'NEW') == {
        'train_dataloader.dataset.data_root': 'NEW/',
        'train_dataloader.dataset.ann_file': 'NEW/a.json',
    }


def test_a_list_ends_in_silence_where_its_reader_has_enough():
    tool = Popen([sys.executable, ROOT / 'tools/misc/configs.py'], stdout=PIPE, stderr=PIPE)
    tool.stdout.close()
    assert tool.stderr.read() == b''


def test_a_module_beside_a_config_is_found(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, 'path', list(sys.path))
    monkeypatch.setenv('PYTHONPATH', 'first')
    (tmp_path / 'bank_of_my_own.py').write_text('NAME = 1\n')
    (tmp_path / 'own.py').write_text(
        f"_base_ = {str(DIGITS)!r}\ncustom_imports = dict(imports=['mmshared', 'bank_of_my_own'])\n"
    )
    monkeypatch.chdir(tmp_path.parent)
    for _ in range(2):
        load_config(f'{tmp_path.name}/own.py')
    assert import_module('bank_of_my_own').NAME == 1
    (tmp_path / 'elsewhere').mkdir()
    dump_config(load_config(f'{tmp_path.name}/own.py'), tmp_path / 'elsewhere/own.py')
    assert {path.name for path in (tmp_path / 'elsewhere').iterdir()} == {'own.py', 'bank_of_my_own.py'}
    assert sys.path[-1] == str(tmp_path) and os.environ['PYTHONPATH'] == f'first{os.pathsep}{tmp_path}'


def test_a_module_beside_the_base_of_a_config_is_found(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, 'path', list(sys.path))
    monkeypatch.setenv('PYTHONPATH', '')
    (tmp_path / 'work').mkdir()
    (tmp_path / 'module_of_the_base.py').write_text('NAME = 1\n')
    imports = "custom_imports = dict(imports=['mmshared', 'module_of_the_base'])\n"
    (tmp_path / 'own.py').write_text(f'_base_ = {str(DIGITS)!r}\n{imports}')
    (tmp_path / 'work/compressed.py').write_text("_base_ = '../own.py'\n")
    load_config(str(tmp_path / 'work/compressed.py'))
    assert import_module('module_of_the_base').NAME == 1


def test_hooks_named_by_their_classes_are_dropped_too():
    hooks = [dict(type=OrthogonalityLossHook), dict(type=EMAHook), dict(type='OrthogonalityLossHook')]
    assert drop_hooks(Config(dict(custom_hooks=hooks))).custom_hooks == [dict(type=EMAHook)]


@pytest.mark.parametrize(
    'options, words',
    [
        ({'model.backbone.type': 'SharedResNt'}, 'There is no SharedResNt: the nearest are SharedResNet'),
        ({'model.backbone.type': 'SharedRegNt'}, 'There is no SharedRegNt: the nearest are .*SharedRegNet'),
        (
            {'model.backbone.type': 'mmpretrain.SharedMobileNtV2'},
            'There is no mmpretrain.SharedMobileNtV2: the nearest',
        ),
        ({'model.backbone.type': 'SharedQ'}, 'There is no SharedQ: there are, among others, Shared'),
        ({'model.backbone.type': 'ResNet'}, '^ResNet takes no sharing: write type=SharedResNet.$'),
        ({'model.backbone.type': 'mmdet.ResNet'}, '^mmdet.ResNet takes no sharing: write type=mmdet.SharedResNet.$'),
        ({'model.data_preprocessor.sharing': {}}, 'DetDataPreprocessor takes no sharing, and there'),
    ],
)
def test_a_shared_network_that_there_is_not_is_one_sentence(options, words):
    cfg = load_config(str(DIGITS))
    merge_options(cfg, options)
    with pytest.raises(SharingError, match=words):
        check_twins(cfg)


def test_networks_that_there_are_pass(tmp_path):
    for config in (DIGITS, SHARED, PLAIN, 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'):
        check_twins(load_config(str(config)))
    cfg = load_config(str(DIGITS))
    for kind in (Classifier, 'mmpretrain.SharedResNet', 'package.of.my.own.SharedNet', 'NetOfMyOwn'):
        cfg.model.backbone.type = kind
        check_twins(cfg)
    cfg.model.roi_head.bbox_head.type = 'Shared4Conv1FCBBoxHead'
    cfg.model.backbone = dict(_scope_='mmpretrain', type='SharedMobileNetV2', sharing={})
    check_twins(cfg)


def test_the_network_is_looked_at_before_the_data_and_both_before_anything_is_built(tmp_path):
    arguments = ['train.py', '--work-dir', tmp_path / 'here.py', DIGITS, '--cfg-options', 'data_root=nowhere']
    assert 'There is no SharedResNt' in call(*arguments, 'model.backbone.type=SharedResNt').stderr
    result = call(*arguments, 'model.roi_head.type=NoSuchHead')
    assert 'Error: The data set of train_dataloader is expected in nowhere/, which is not there' in result.stderr


def test_the_folder_of_a_config_is_no_place_for_modules_that_are_there_anyway(monkeypatch):
    monkeypatch.delenv('PYTHONPATH', raising=False)
    monkeypatch.setattr(sys, 'path', list(sys.path))
    with pytest.raises(SharingError, match='is not a config of a model'):
        load_config(str(ROOT / 'configs/_base_/mmshared.py'))  # beside which lies a file of the package's name
    assert 'PYTHONPATH' not in os.environ and str(ROOT / 'configs/_base_') not in sys.path
