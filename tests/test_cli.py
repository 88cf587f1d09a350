"""What the tools say of what they cannot take, and that nothing is lost by it."""
import json

import pytest
import torch
from helpers import ROOT, Classifier, call, small
from mmengine.config import Config
from mmengine.runner import Runner

from mmshared import SharingError
from mmshared.analysis.models import build_model
from mmshared.analysis.training import read_scalars
from mmshared.checkpoint import load_checkpoint_file, refuse_other_networks, save_checkpoint
from mmshared.cli import load_config

SHARED = ROOT / 'configs/shared_resnet/shared-resnet32-s8u1_b256_cifar10.py'
PLAIN = SHARED.with_name('resnet32_b256_cifar10.py')
LARGE = ROOT / 'configs/repeatnet/repeat-resnet-w2-linear_b128_cifar10.py'


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Checkpoints: plain, one of other classes, one that is none; files that are no configs; a folder."""
    folder = tmp_path_factory.mktemp('files')
    state = build_model(Config.fromfile(PLAIN)).state_dict()
    torch.save(dict(state_dict=state, meta=dict(dataset_meta=dict(classes=['cat']))), folder / 'plain.pth')
    torch.save({**state, 'head.fc.weight': torch.zeros(7, 64)}, folder / 'classes.pth')
    torch.save(dict(state_dict=[1]), folder / 'list.pth')
    (folder / 'wrong.py').write_text('model = dict(')
    (folder / 'folder').mkdir()
    return folder


@pytest.mark.parametrize('tool, arguments, words', [
    ('model_converters/fold.py', [SHARED, 'plain.pth', 'new.pth'], 'plain.pth is of the plain network, and that of'),
    ('model_converters/fold.py', [SHARED, 'list.pth', 'new.pth'], 'has no state dict: tensors by their names'),
    ('model_converters/fold.py', [SHARED, 'plain.pth', 'folder'], 'folder is a folder: name a file'),
    ('model_converters/fold.py', [SHARED, 'plain.pth', 'plain.pth/new.pth'], 'cannot be written: '),
    ('model_converters/fold.py', ['wrong.py', 'plain.pth', 'new.pth'], 'wrong.py cannot be read: '),
    ('model_converters/fold.py', ['classes.pth', 'plain.pth', 'new.pth'], 'classes.pth cannot be read: '),
    ('model_converters/fold.py', [ROOT / 'configs/_base_/mmshared.py', 'plain.pth', 'new.pth'], 'it has no model'),
    ('model_converters/dense_to_shared.py', [PLAIN, 'plain.pth', 'new.pth'], 'of this config shares nothing'),
    ('model_converters/dense_to_shared.py', [SHARED, 'classes.pth', 'new.pth'], 'not of the plain network of the'),
    ('model_converters/dense_to_shared.py', [SHARED, 'plain.pth', 'plain.pth'], 'have to be files of their own'),
    ('model_converters/rescale.py', [LARGE, 'plain.pth', 'plain.pth'], 'have to be files of their own'),
    ('model_converters/rescale.py', [LARGE, 'list.pth', 'new.pth'], 'has no state dict'),
    ('model_converters/repeatnet_to_mmshared.py', ['plain.pth', 'plain.pth'], 'have to be files of their own'),
    ('model_converters/repeatnet_to_mmshared.py', ['list.pth', 'new.pth'], 'has no state dict'),
    ('model_converters/net_rl2_to_mmshared.py', ['list.pth', 'new.pth'], 'no shared_basis|no state dict'),
    ('analysis_tools/sharing_report.py', [SHARED, '--shape', '1', '32', '32'], 'cannot take pictures of 1x32x32: '),
    ('analysis_tools/sharing_report.py', [SHARED, '--json', 'folder'], 'folder is a folder: name a file'),
    ('analysis_tools/gram_matrices.py', [SHARED, 'plain.pth', '--out', 'picture'], 'no name of a picture: let it end'),
    ('analysis_tools/benchmark_speed.py', [SHARED, '--device', 'foo'], 'foo cannot be used here: '),
    ('analysis_tools/benchmark_speed.py', [SHARED, '--device', 'meta'], 'meta cannot be used here: '),
    ('analysis_tools/report_run.py', ['folder', '--pictures', '0'], '--pictures 0: give 1 or more'),
    ('analysis_tools/report_run.py', ['folder'], 'no work dir of a finished run: it has no config'),
    ('benchmark.py', ['plain.pth', '--jobs', '0'], '--gpus-per-run, --jobs and --timeout are 1 or more'),
])
def test_what_a_tool_cannot_take_is_one_sentence(files, monkeypatch, tool, arguments, words):
    monkeypatch.chdir(files)
    before = {path: path.read_bytes() for path in files.iterdir() if path.is_file()}
    result = call(tool, *arguments)
    last = result.stderr.strip().splitlines()[-1]
    assert result.returncode and 'rror: ' in last and any(each in last for each in words.split('|')), result.stderr
    assert {path: path.read_bytes() for path in files.iterdir() if path.is_file()} == before


def test_class_names_survive_the_conversion(files, tmp_path):
    result = call('model_converters/dense_to_shared.py', SHARED, files / 'plain.pth', tmp_path / 'new/shared.pth')
    assert load_checkpoint_file(str(tmp_path / 'new/shared.pth'))['meta']['dataset_meta']['classes'] == ['cat'], result


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


@pytest.mark.parametrize('script, resume', [('test.py', False), ('train.py', True), ('train.py', False)])
def test_a_checkpoint_of_another_head_starts_a_training_and_nothing_else(mmpretrain, tmp_path, monkeypatch, script,
                                                                         resume):
    monkeypatch.setattr(Runner, 'load_checkpoint', Runner.load_checkpoint)  # as it was, afterwards
    refuse_other_networks(script)
    runner = Runner(Classifier(small()), str(tmp_path), resume=resume, experiment_name=f'{script}-{resume}')
    state = {key: tensor.clone() for key, tensor in runner.model.state_dict().items()}
    lacking = {key: tensor for key, tensor in state.items() if key != 'fc.bias'}
    for changed, words in (({**state, 'fc.weight': torch.zeros(5, 32)}, 'this config: size mismatch for fc.weight'),
                           (lacking, 'this config: missing keys in source state_dict: fc.bias')):
        torch.save(dict(state_dict=changed), tmp_path / 'other.pth')
        if script == 'test.py' or resume:
            with pytest.raises(SharingError, match=words):
                runner.load_checkpoint(str(tmp_path / 'other.pth'))
        else:
            runner.load_checkpoint(str(tmp_path / 'other.pth'))
    torch.save(dict(state_dict={**state, 'more': torch.zeros(1), 'fc.bias': torch.ones(3)}), tmp_path / 'more.pth')
    assert 'state_dict' in runner.load_checkpoint(str(tmp_path / 'more.pth'))
    assert runner.model.fc.bias.eq(1).all()


def test_a_log_that_was_cut_off_gives_what_it_has(tmp_path):
    (tmp_path / 'run/vis_data').mkdir(parents=True)
    lines = [json.dumps(dict(loss=1 / step, step=step)) for step in (1, 2, 3)]
    (tmp_path / 'run/vis_data/scalars.json').write_text('\n'.join(lines)[:-5])
    assert read_scalars(tmp_path) == dict(loss=[(1, 1.0), (2, 0.5)], step=[(1, 1), (2, 2)])


def test_a_config_by_name_is_the_librarys():
    assert load_config('mmpretrain::resnet/resnet18_8xb32_in1k.py').model.backbone.depth == 18
