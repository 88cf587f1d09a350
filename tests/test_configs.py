"""The configs build what the papers' tables and the READMEs say."""
import pytest
import yaml
from helpers import ROOT
from mmengine.config import Config
from mmengine.registry import HOOKS

from mmshared import shared_stages
from mmshared.analysis.complexity import build_model, parameter_count, plain_twin
from mmshared.analysis.tables import measure, readmes

CONFIGS = sorted(path for path in (ROOT / 'configs').rglob('*.py') if '_base_' not in path.parts)
METAFILES = sorted((ROOT / 'configs').glob('*/metafile.yml'))

# The counts of the authors' networks, with the 1000-class head. Their MobileNetV2 has 2,400 parameters more than the
# standard one: biases of stem and head, a 32-channel expansion in the first block.
PAPER = {
    'ResNet34-S48U1*': 11_786_968,
    'ResNet34-S32U1': 8_196_056,
    'ResNet50-Shared': 20_506_664,
    'ResNet50-Shared++': 18_262_056,
    'ResNet101-Shared': 29_471_784,
    'MobileNetV2-Shared': 3_243_080 - 2_400,
    'MobileNetV2-Shared++': 2_978_888 - 2_400,
}


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_config_builds_a_network_that_shares_if_it_says_so(path):
    cfg = Config.fromfile(path)
    model = build_model(cfg)
    shares = 'shared' in path.stem
    assert bool(shared_stages(model)) is shares
    assert any(hook['type'] == 'OrthogonalityLossHook' for hook in cfg.get('custom_hooks', [])) is shares
    for hook in cfg.get('custom_hooks', []):
        HOOKS.build(hook)
    if shares:
        plain = build_model(Config(dict(model=plain_twin(cfg.model), default_scope=cfg.default_scope)))
        assert not shared_stages(plain) and parameter_count(plain) > parameter_count(model)


@pytest.mark.parametrize('path', METAFILES, ids=lambda path: path.parent.name)
def test_the_metafiles_hold_the_counts_of_the_built_models_and_the_papers(path):
    said, measured = yaml.safe_load(path.read_text()), yaml.safe_load(path.read_text())
    measure(measured, ROOT)
    assert said == measured
    for model in said['Models']:
        assert model['Metadata']['Parameters'] == PAPER[model['Name']]


def test_every_model_of_the_papers_table_has_a_metafile_entry():
    names = [model['Name'] for path in METAFILES for model in yaml.safe_load(path.read_text())['Models']]
    assert sorted(names) == sorted(PAPER)


def test_the_tables_of_the_readmes_are_those_of_the_metafiles():
    for path, text in readmes(ROOT).items():
        assert path.read_text() == text, f'{path} is out of date: run tools/misc/update_tables.py'
