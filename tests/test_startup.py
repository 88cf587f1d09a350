"""What an import of mmshared brings with it, and what imports what."""

import ast
import subprocess
import sys

import pytest

from helpers import ROOT

# From the ground up: a room imports what is below it, and what stands beside it.
ROOMS = [
    {'sharing', 'version'},
    {'compat'},
    {'backbones', 'datasets'},
    {'engine'},
    {'hooks'},
    {'analysis'},
    {'convert'},
    {'compress'},
    {'mmshared_cli'},  # a package of its own, for the tools
]
FLOORS = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms}


def rooms_imported_by(path, package):
    """The rooms of mmshared that a module imports, at its top or within its functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parent = package[: len(package) - node.level + 1] if node.level else []
            module = '.'.join([*parent, *filter(None, [node.module])])
            names = [f'{module}.{alias.name}' for alias in node.names]
        else:
            continue
        yield from (name.split('.')[1] for name in names if name.startswith('mmshared.'))
        yield from (name for name in (name.split('.')[0] for name in names) if name == 'mmshared_cli')


MODULES = sorted((ROOT / 'mmshared').glob('*/**/*.py'))


@pytest.mark.parametrize('path', MODULES, ids=lambda path: str(path.relative_to(ROOT / 'mmshared')))
def test_no_module_imports_upward(path):
    package = list(path.relative_to(ROOT).parts[:-1])
    own = FLOORS[path.stem if len(package) == 1 else package[1]]
    assert [room for room in rooms_imported_by(path, package) if FLOORS[room] > own] == []


def test_the_imports_that_are_read_are_all_kinds(tmp_path):
    (tmp_path / 'module.py').write_text(
        'from mmshared_cli import a\nfrom .bank import b\nfrom .. import hooks\nfrom ..engine import c\n'
        'import mmshared.compat\ndef f():\n    from mmshared.convert.fold import d\n'
    )
    found = set(rooms_imported_by(tmp_path / 'module.py', ['mmshared', 'sharing']))
    assert found == {'mmshared_cli', 'sharing', 'hooks', 'engine', 'compat', 'convert'}


def python(code):
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_a_network_of_one_library_waits_for_nothing_of_the_other():
    code = """
import os, sys, mmshared
early = [name for name in ('mmdet.models', 'mmpretrain.models', 'mmpretrain.datasets') if name in sys.modules]
def build(library):
    __import__(f'{library}.models')  # the libraries import parts of each other
    there = set(sys.modules)
    from mmengine.registry import MODELS
    sharing = dict(groups=['conv2'], own_blocks=0, bank=dict(type='TiedFilters'))
    MODELS.build(dict(type=f'{library}.SharedResNet', depth=18, sharing=sharing))
    print(library, 'early', *early, 'late', *set(sys.modules) - there, flush=True)
if child := os.fork():
    assert os.waitpid(child, 0)[1] == 0
    build('mmpretrain')
else:
    build('mmdet')
    os._exit(0)
"""
    told = [line.split() for line in python(code).splitlines()]
    told = {line[0]: line[2:] for line in told if line[1:2] == ['early']}
    for library, other in (('mmdet', 'mmpretrain'), ('mmpretrain', 'mmdet')):
        first, *late = told[library]
        assert first == 'late'  # nothing is there early
        assert late and all(name.startswith('mmshared.') for name in late)
        assert f'mmshared.backbones.{other}' not in late


@pytest.mark.slow
def test_a_registry_that_was_asked_before_knows_the_twins_too():
    code = """
from mmengine.registry import MODELS
print(MODELS.get('mmpretrain.ResNet'))
import mmshared
print(MODELS.get('mmpretrain.SharedResNet').__name__, MODELS.get('mmpretrain.WideResNet_CIFAR').__name__)
"""
    assert python(code).splitlines()[-1] == 'SharedResNet WideResNet_CIFAR'


@pytest.mark.slow
def test_arguments_are_parsed_before_anything_heavy_is_imported():
    code = """
import runpy, sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from mmshared_cli.command import find_tools
for name, path in find_tools().items():
    for *more, option in (['--help'], ['--traceback', '--help'], ['--misspelt']):
        sys.argv = [name, *more, option]
        try:
            with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
                runpy.run_path(str(path), run_name='__main__')
        except SystemExit as stop:
            heavy = {'torch', 'mmengine', 'mmshared', 'sklearn', 'scipy', 'matplotlib'} & set(sys.modules)
            if heavy or stop.code != 2 * (option == '--misspelt'):
                print(name, option, stop.code, *heavy, end=' ')
print('end')
"""
    assert python(code).splitlines()[-1] == 'end'


def test_public_names_are_there_also_those_made_of_a_library():
    import mmshared
    from mmshared.datasets.rotated_mnist import RotatedMNIST

    assert mmshared.RotatedMNIST is RotatedMNIST and all(hasattr(mmshared, name) for name in mmshared.__all__)
    with pytest.raises(AttributeError, match="'mmshared' has no attribute 'NoSuchName'"):
        getattr(mmshared, 'NoSuchName')  # noqa: B009
