"""The configs build what the papers' tables and the READMEs say."""
import json
import subprocess
import sys

import pytest
import yaml
from helpers import ROOT
from mmengine.config import Config
from mmengine.registry import HOOKS

from mmshared import shared_stages
from mmshared.analysis.complexity import build_model, complexity, parameter_count, plain_twin, sharing_groups
from mmshared.analysis.tables import measure, readmes

CONFIGS = sorted(path for path in (ROOT / 'configs').rglob('*.py') if '_base_' not in path.parts)
METAFILES = sorted((ROOT / 'configs').glob('*/metafile.yml'))

# Parameters and multiply-adds of the authors' networks, counted in their code. Their MobileNetV2 has 2,400 parameters
# more than the standard one (biases of stem and head, a 32-channel expansion in the first block), and does 12,845,056
# multiply-adds more in that expansion.
PAPER = {
    ('ResNet34-S48U1*', 'ImageNet-1k'): (11_786_968, 3_249_508_352),
    ('ResNet34-S32U1*', 'ImageNet-1k'): (9_762_776, 2_478_804_992),
    ('ResNet34-S48U1', 'ImageNet-1k'): (9_436_888, 3_249_508_352),
    ('ResNet34-S32U1', 'ImageNet-1k'): (8_196_056, 2_478_804_992),
    ('ResNet50-Shared', 'ImageNet-1k'): (20_506_664, 4_089_184_256),
    ('ResNet50-Shared++', 'ImageNet-1k'): (18_262_056, 4_089_184_256),
    ('ResNet101-Shared', 'ImageNet-1k'): (29_471_784, 7_801_405_440),
    ('ResNet101-Shared++', 'ImageNet-1k'): (22_770_728, 7_801_405_440),
    ('MobileNetV2-Shared', 'ImageNet-1k'): (3_243_080 - 2_400, 313_619_328 - 12_845_056),
    ('MobileNetV2-Shared++', 'ImageNet-1k'): (2_978_888 - 2_400, 313_619_328 - 12_845_056),
    ('ResNet34-S8U1', 'CIFAR-100'): (5_865_428, 395_036_672),
    ('ResNet34-S16U1', 'CIFAR-100'): (6_485_844, 520_865_792),
    ('ResNet34-S32U1', 'CIFAR-100'): (7_726_676, 772_524_032),
    ('ResNet32-S8U1', 'CIFAR-10'): (150_666, 47_628_928),
    ('ResNet32-S16U1', 'CIFAR-10'): (197_258, 79_086_208),
    ('ResNet32-S16U1*', 'CIFAR-10'): (245_642, 79_086_208),
    ('ResNet56-S8U1', 'CIFAR-10'): (201_850, 83_018_368),
    ('ResNet56-S16U1', 'CIFAR-10'): (270_842, 145_932_928),
    ('ResNet56-S16U1*', 'CIFAR-10'): (319_226, 145_932_928),
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
        counts = (model['Metadata']['Parameters'], model['Metadata']['FLOPs'])
        assert counts == PAPER[model['Name'], model['Dataset']]


def test_every_model_of_the_papers_table_has_a_metafile_entry():
    models = [model for path in METAFILES for model in yaml.safe_load(path.read_text())['Models']]
    assert sorted((model['Name'], model['Dataset']) for model in models) == sorted(PAPER)


def test_the_tables_of_the_readmes_are_those_of_the_metafiles():
    for path, text in readmes(ROOT).items():
        assert path.read_text() == text, f'{path} is out of date: run tools/misc/update_tables.py'


@pytest.mark.parametrize('name', ['shared_resnet/shared-resnet32-s16u1-double_b256_cifar10.py',
                                  'small/faster-rcnn_r50-narrow-shared_12e_digits.py'])
def test_the_report_of_groups_adds_up(name):
    cfg = Config.fromfile(ROOT / 'configs' / name)
    model, totals = build_model(cfg), complexity(cfg, (64, 64))
    rows = sharing_groups(model, (64, 64))
    assert sum(row['shared'] + row['own'] - row['plain'] for row in rows) == \
        totals['parameters'] - totals['plain_parameters']
    assert sum(row['macs'] - row['plain_macs'] for row in rows) == totals['macs'] - totals['plain_macs']
    convs = [model.get_submodule(f'{row["stage"]}.{conv}') for row in rows for conv in row['convs']]
    assert convs == [conv for banks in shared_stages(model).values() for bank in banks.values() for conv in bank.convs]


def test_the_report_is_printed_and_written(tmp_path):
    name = 'configs/shared_resnet/shared-resnet32-s16u1_b256_cifar10.py'
    command = [sys.executable, 'tools/analysis_tools/sharing_report.py', name, '--shape', '32', '32', '--json',
               tmp_path / 'report.json']
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert 'parameters of the whole model: 197,258, plain 464,154 (-57.5%)' in result.stdout, result.stderr
    report = json.loads((tmp_path / 'report.json').read_text())
    assert [row['stage'] for row in report['groups']] == [f'backbone.layer{i}' for i in (1, 2, 3)]
    assert report['totals']['parameters'] == 197_258
