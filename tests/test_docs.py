"""What the documentation says is there, and its example of a bank works."""

import copy
import re
import sys

import pytest
import torch
from mmengine.registry import HOOKS, MODELS
from torch import nn

import mmshared
from helpers import ROOT, evaluating, image, options_of, randomise_norms
from mmshared import banks, fold_layers
from mmshared.engine.build import build_model
from mmshared.engine.config import load_config

ADDING = ROOT / 'docs/en/adding_a_bank.md'
PAGES = sorted(
    [
        *ROOT.glob('*.md'),
        *(ROOT / 'docs/en').rglob('*.md'),
        *ROOT.glob('projects/*/README.md'),
        *ROOT.glob('configs/*/README.md'),
    ]
)
BLOCK = re.compile(r'^```(\w+)(?: title="(.*?)")?\n(.*?)^```', re.M | re.S)
pages = pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page, language):
    return [code for kind, _, code in BLOCK.findall(page.read_text(encoding='utf-8')) if kind == language]


@pages
def test_what_a_page_links_to_exists(page):
    links = re.findall(r'\]\((?!\w+:)([^()\s#]+)', page.read_text(encoding='utf-8'))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pages
def test_the_files_that_a_page_names_exist(page):
    text = page.read_text(encoding='utf-8')
    names = re.findall(r'(?<![\w./(])(?:tools|configs|projects|mmshared)/[\w./-]+\.(?:py|sh|yaml)\b', text)
    assert [name for name in names if not (ROOT / name).exists()] == []


def commands_on(page):
    """The tools that a page calls, with their options."""
    for line in '\n'.join(blocks(page, 'bash')).replace('\\\n', ' ').splitlines():
        command = re.match(r'(?:\w+=\S+ )*(?:python )?tools/(\S+\.(?:py|sh))([^#]*)', ' '.join(line.split()))
        if command:
            tool = re.sub(r'(?:dist|slurm)_(\w+)\.sh', r'\1.py', command[1])
            yield tool, set(re.findall(r'(?<=\s)--[\w-]+', command[2]))


@pages
def test_the_options_of_the_commands_on_a_page_exist(page):
    assert [(tool, options) for tool, options in commands_on(page) if not options <= options_of(tool)] == []


def test_the_options_of_commands_are_found_however_they_are_written():
    found = list(commands_on(ROOT / 'docs/en/training.md'))
    assert ('train.py', {'--auto-scale-lr'}) in found  # that of several machines, in two lines
    found = list(commands_on(ROOT / 'projects/compression/README.md'))
    assert ('train.py', {'--work-dir', '--cfg-options'}) in found  # in a loop


@pages
def test_the_python_on_a_page_is_python(page):
    for code in blocks(page, 'python'):
        compile(code, page.name, 'exec')


def test_every_public_name_is_in_the_api_reference():
    pages = '\n'.join(path.read_text(encoding='utf-8') for path in (ROOT / 'docs/en/api').glob('*.md'))
    shown = {name.rpartition('.')[2] for name in re.findall(r'^::: (mmshared\S+)$', pages, re.M)}
    assert {*mmshared.__all__} - shown == {'__version__'}


def test_the_messages_of_troubleshooting_are_ours():
    page = (ROOT / 'docs/en/troubleshooting.md').read_text(encoding='utf-8').partition('## Of other libraries')[0]
    source = ''.join(path.read_text(encoding='utf-8') for path in (ROOT / 'mmshared').rglob('*.py'))
    source = re.sub(r"""['"]\s*f?['"]""", '', source)  # messages are written over several lines
    parts = [part.strip() for line in page.splitlines() if '**`' in line for part in re.split('`|…', line)]
    assert len(parts) > 60
    assert [part for part in parts if len(part) > 12 and '*' not in part and part not in source] == []


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the files of the page about adding a bank, from which Python imports."""
    for _, title, code in BLOCK.findall(ADDING.read_text(encoding='utf-8')):
        if title:
            (tmp_path / title).write_text(code, encoding='utf-8')
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    MODELS.module_dict.pop('ScaledFilters', None)
    sys.modules.pop('scaled_filters', None)


@pytest.mark.slow
def test_the_bank_that_a_page_adds_folds_and_is_fitted(folder):
    cfg = load_config(str(folder / 'resnet18_scaled.py'))
    model = evaluating(randomise_norms(build_model(cfg)))
    for bank in banks(model):
        for i, layer in enumerate(bank.layers):
            nn.init.constant_(layer.scale, 0.5 + i)
    images = image(32)
    expected = model(images)
    plain = fold_layers(copy.deepcopy(model))
    assert not banks(plain)
    torch.testing.assert_close(plain(images), expected)
    again = evaluating(build_model(cfg))
    again.load_state_dict(plain.state_dict())
    torch.testing.assert_close(again(images), expected)


@pytest.mark.slow
def test_the_bank_that_a_page_adds_has_the_loss_of_its_config(folder):
    cfg = load_config(str(folder / 'resnet18_scaled.py'))
    (hook,) = (HOOKS.build(each) for each in cfg.custom_hooks)
    assert hook.loss(hook.find(build_model(cfg))) < 1e-6  # it starts orthogonal


def test_the_check_on_the_page_about_adding_a_bank_passes(folder):
    exec(blocks(ADDING, 'python')[-1], {})
