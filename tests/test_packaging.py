"""What is installed: the wheel without a clone, the command, and the names of our configs."""

import os
import shutil
import subprocess
import sys
import sysconfig

import pytest
import yaml
from mmengine.config import Config
from mmengine.hub import get_config

from helpers import ROOT, loader_options
from mmshared import SharingError
from mmshared_cli.command import find_tools, main, summary

DETECTOR = 'mmshared::faster_rcnn_r50_shared.py'
DIGITS = 'mmshared::small/faster-rcnn_r50-narrow-shared_6e_digits.py'
NAMES = {
    f'mmshared::{path.relative_to(ROOT / "configs")}'
    for path in (ROOT / 'configs').rglob('*')
    if path.suffix in ('.py', '.yaml') and '_base_' not in path.parts
}


@pytest.mark.parametrize('read', [Config.fromfile, get_config])
@pytest.mark.parametrize('name', [DETECTOR, DIGITS])
def test_a_config_has_a_name(read, name):
    own = Config.fromfile(ROOT / 'configs' / name.partition('::')[2])
    assert read(name).to_dict() == own.to_dict()


def test_a_config_can_build_on_one_by_name(tmp_path):
    (tmp_path / 'own.py').write_text(f'_base_ = {DETECTOR!r}\nmodel = dict(backbone=dict(depth=101))\n')
    own, base = Config.fromfile(tmp_path / 'own.py'), Config.fromfile(DETECTOR)
    base.model.backbone.depth = 101
    assert own.to_dict() == base.to_dict()


def test_what_is_taken_from_a_base_by_name_keeps_its_scope(tmp_path):
    text = "_base_ = 'mmshared::_base_/datasets/digits.py'\nmine = _base_.train_dataloader.dataset.pipeline\n"
    (tmp_path / 'own.py').write_text(text)
    assert not [step for step in Config.fromfile(tmp_path / 'own.py').mine if '_scope_' in step]


@pytest.mark.parametrize('read', [Config.fromfile, get_config])
def test_a_name_that_there_is_not_is_an_error(read):
    with pytest.raises((SharingError, FileNotFoundError), match='none.py'):
        read('mmshared::none.py')


def test_the_names_of_the_libraries_are_as_they_were(tmp_path):
    name = 'mmpretrain::resnet/resnet18_8xb32_in1k.py'
    (tmp_path / 'own.py').write_text(f'_base_ = {name!r}\n')
    own = Config.fromfile(tmp_path / 'own.py').model
    assert own.to_dict() == {**get_config(name).model.to_dict(), '_scope_': 'mmpretrain'}
    with pytest.raises(AssertionError, match='does not support to load other config'):
        get_config('other::folder/none.py')


@pytest.mark.slow
def test_an_inferencer_takes_a_name():
    from mmdet.apis import DetInferencer

    model = DetInferencer(DIGITS, device='cpu').model
    assert type(model.backbone).__name__ == 'SharedResNet'
    with pytest.raises(ValueError, match='Cannot find model: none in mmdet'):
        DetInferencer('none', device='cpu')


def test_the_index_has_all_metafiles():
    listed = yaml.safe_load((ROOT / 'mmshared/.mim/model-index.yml').read_text(encoding='utf-8'))['Import']
    assert listed == [str(path.relative_to(ROOT)) for path in sorted((ROOT / 'configs').rglob('metafile.yml'))]


def test_every_tool_is_a_sub_command_with_a_line_in_the_help(monkeypatch, capsys):
    tools = find_tools()
    scripts = {path for path in (ROOT / 'tools').rglob('*.py') if path.parent.name != 'mmshared_cli'}
    assert set(tools.values()) == scripts and {'train', 'dense-to-shared'} <= set(tools)
    monkeypatch.setattr(sys, 'argv', ['mmshared', '--help'])
    main()
    lines = capsys.readouterr().out.splitlines()
    for name, path in tools.items():
        (line,) = (line for line in lines if line.split()[:1] == [name])
        assert line.endswith(summary(path)) and line.endswith('.') and len(line) < 120


@pytest.mark.parametrize(
    'given, words',
    [
        ('none', 'there is no tool none: mmshared --help lists them'),
        ('re', 're may be repeatnet-to-mmshared or report-run or rescale'),
    ],
)
def test_a_sub_command_that_there_is_not_is_one_sentence(monkeypatch, given, words):
    monkeypatch.setattr(sys, 'argv', ['mmshared', given])
    with pytest.raises(SystemExit, match=words):
        main()


@pytest.mark.parametrize('given', ['sharing-report', 'sharing'])
def test_a_sub_command_runs_the_tool_with_its_options(monkeypatch, capsys, given):
    monkeypatch.setitem(sys.modules, '__main__', None)
    monkeypatch.setattr(sys, 'argv', ['mmshared', given, 'configs/none.py', '--shape', '32', '--traceback'])
    with pytest.raises(SharingError, match='There is no config configs/none.py'):
        main()
    monkeypatch.setattr(sys, 'argv', ['mmshared', given, 'none.py', '--misspelt'])
    with pytest.raises(SystemExit):
        main()
    told = capsys.readouterr().err
    assert 'usage: mmshared sharing-report [-h]' in told and 'unrecognized arguments: --misspelt' in told


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    """A folder in which the wheel of this clone is installed, and nothing else."""
    folder = tmp_path_factory.mktemp('installed')
    for name in ('mmshared', 'configs', 'tools'):
        no_caches = shutil.ignore_patterns('__pycache__')
        shutil.copytree(ROOT / name, folder / 'clone' / name, symlinks=True, ignore=no_caches)
    for name in ('pyproject.toml', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / name, folder / 'clone')
    pip = [sys.executable, '-m', 'pip', '--disable-pip-version-check', '--quiet']
    build = ['wheel', '--no-index', '--no-deps', '--no-build-isolation', '--wheel-dir', folder, folder / 'clone']
    subprocess.run([*pip, *build], check=True)
    (wheel,) = folder.glob('*.whl')
    subprocess.run([*pip, 'install', '--no-index', '--no-deps', '--target', folder / 'target', wheel], check=True)
    shutil.rmtree(folder / 'clone')
    return folder / 'target'


@pytest.fixture
def python(installed, tmp_path):
    """Runs Python in an empty folder, where no clone can be imported: -S leaves out what editable installs add."""
    path = os.pathsep.join([str(installed), sysconfig.get_path('purelib')])

    def run(*arguments):
        command = [sys.executable, '-S', '-W', 'ignore', *map(str, arguments)]
        result = subprocess.run(
            command, cwd=tmp_path, env={**os.environ, 'PYTHONPATH': path}, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run


@pytest.mark.slow
def test_the_wheel_has_the_configs_by_name(installed, python, tmp_path):
    assert set(python(installed / 'bin/mmshared', 'configs').split()) == NAMES
    (tmp_path / 'own.py').write_text(f'_base_ = {DETECTOR!r}\n')
    code = (
        'import mmshared; from mmengine import Config; print(mmshared.__file__, Config.fromfile("own.py").model.type)'
    )
    told = python('-c', code)
    assert told.split()[-2:] == [str(installed / 'mmshared/__init__.py'), 'FasterRCNN']


@pytest.mark.slow
def test_the_wheel_trains_without_a_clone(installed, python, tmp_path):
    command = installed / 'bin/mmshared'
    python(command, 'digit-scenes', '--train', 4, '--val', 2, '--size', 64, '--digits', 1, 2, '--digit-size', 16, 32)
    options = ['train_cfg.max_epochs=1', 'train_dataloader.batch_size=2', *loader_options('train')]
    python(command, 'train', DIGITS, '--no-validate', '--cfg-options', *options)
    (work_dir,) = (tmp_path / 'work_dirs').iterdir()
    assert work_dir.name == 'faster-rcnn_r50-narrow-shared_6e_digits'
    assert (work_dir / 'epoch_1.pth').is_file()
