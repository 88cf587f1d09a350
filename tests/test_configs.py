"""The configs build what the papers' tables and the READMEs say."""

import re
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config
from mmengine.registry import HOOKS

from helpers import CONFIGS, ROOT, SHARING_CONFIGS, WITHOUT_ESCNN
from mmshared import banks
from mmshared.analysis.complexity import count_multiply_adds, parameter_count
from mmshared.analysis.tables import measure, readmes
from mmshared.engine.build import build_empty, build_model, build_plain
from mmshared.engine.config import load_config, merge_options

pytestmark = pytest.mark.slow  # networks of full size

METAFILES = sorted((ROOT / 'configs').glob('*/metafile.yml'))
SUITES = sorted((ROOT / 'configs/benchmarks').glob('*.yaml'))

# Parameters of the authors' networks (https://github.com/lolemacs/soft-sharing): depth, width, templates, with 10 and
# with 100 classes. No templates are the plain network.
TEMPLATES = {
    (28, 10, 0): (36_479_194, 36_536_884),
    (28, 10, 1): (12_287_212, 12_344_902),
    (28, 10, 2): (17_125_630, 17_183_320),
    (28, 10, 4): (26_802_466, 26_860_156),
    (28, 10, 6): (36_479_302, 36_536_992),
    (28, 10, 8): (46_156_138, 46_213_828),
    (28, 4, 0): (5_849_050, 5_872_180),
    (28, 4, 1): (1_978_348, 2_001_478),
    (28, 4, 2): (2_752_510, 2_775_640),
    (28, 4, 4): (4_300_834, 4_323_964),
    (28, 4, 6): (5_849_158, 5_872_288),
    (28, 12, 0): (52_517_850, 52_587_060),
    (28, 14, 0): (71_470_810, 71_551_540),
    (28, 14, 1): (24_054_508, 24_135_238),
    (28, 14, 2): (33_537_790, 33_618_520),
    (28, 14, 6): (71_470_918, 71_551_648),
    (28, 18, 0): (118_119_642, 118_223_412),
    (28, 18, 1): (39_737_580, 39_841_350),
    (28, 18, 2): (55_414_014, 55_517_784),
    (28, 18, 6): (118_119_750, 118_223_520),
    (40, 4, 0): (8_949_210, 8_972_340),
    (28, 2, 0): (1_467_610, 1_479_220),
    (28, 2, 1): (499_948, 511_558),
    (28, 2, 2): (693_502, 705_112),
    (16, 4, 0): (2_748_890, 2_772_020),
    (28, 6, 2): (6_177_534, None),
    (28, 6, 6): (13_144_902, None),
    (40, 4, 2): (2_756_118, None),
}


def wide_resnet_macs(depth: int, width: int, classes: int) -> int:
    """The multiply-adds of a wide ResNet at 32x32, templates or not; those of generating kernels are not counted."""
    blocks, channels, macs = (depth - 4) // 6, 16, 32**2 * 27 * 16
    for stage in range(3):
        out, pixels = 16 * width << stage, (32 >> stage) ** 2
        macs += pixels * (9 * channels * out + 9 * out**2 * (2 * blocks - 1) + channels * out)
        channels = out
    return macs + channels * classes


# Parameters and multiply-adds of the authors' networks, counted in their code. Their MobileNetV2 has 2,400 parameters
# more than the standard one (biases of stem and head, a 32-channel expansion in the first block), and does 12,845,056
# multiply-adds more in that expansion at 112x112, 1,183,744 at 34x34. Their count leaves out the 1D convs of the
# channel attention.
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
    ('MobileNetV2-Shared++ with channel attention', 'ImageNet-1k'): (
        2_978_905 - 2_400,
        313_619_328 - 12_845_056 + 2 * 32 + 3 * 64 + (2 * 96 + 2 * 160) * 3,
    ),
    ('ResNet34-S8U1', 'CIFAR-100'): (5_865_428, 395_036_672),
    ('ResNet34-S16U1', 'CIFAR-100'): (6_485_844, 520_865_792),
    ('ResNet34-S32U1', 'CIFAR-100'): (7_726_676, 772_524_032),
    ('ResNeXt50-S64U4', 'CIFAR-100'): (19_333_380, 1_179_000_832),
    ('DenseNet121-S64U4', 'CIFAR-100'): (5_084_504, 704_212_992),
    ('MobileNetV2-Shared', 'CIFAR-100'): (2_163_812 - 2_400, 67_356_736 - 1_183_744),
    ('MobileNetV2-Shared++', 'CIFAR-100'): (1_899_620 - 2_400, 67_356_736 - 1_183_744),
    ('ResNet32-S8U1', 'CIFAR-10'): (150_666, 47_628_928),
    ('ResNet32-S16U1', 'CIFAR-10'): (197_258, 79_086_208),
    ('ResNet32-S16U1*', 'CIFAR-10'): (245_642, 79_086_208),
    ('ResNet56-S8U1', 'CIFAR-10'): (201_850, 83_018_368),
    ('ResNet56-S16U1', 'CIFAR-10'): (270_842, 145_932_928),
    ('ResNet56-S16U1*', 'CIFAR-10'): (319_226, 145_932_928),
    ('SWRN-28-10-1', 'CIFAR-10'): (TEMPLATES[28, 10, 1][0], wide_resnet_macs(28, 10, 10)),
    ('SWRN-28-10-2', 'CIFAR-10'): (TEMPLATES[28, 10, 2][0], wide_resnet_macs(28, 10, 10)),
    ('SWRN-28-10-4', 'CIFAR-10'): (TEMPLATES[28, 10, 4][0], wide_resnet_macs(28, 10, 10)),
    ('SWRN-28-10-6', 'CIFAR-10'): (TEMPLATES[28, 10, 6][0], wide_resnet_macs(28, 10, 10)),
    ('SWRN-28-4-2', 'CIFAR-10'): (TEMPLATES[28, 4, 2][0], wide_resnet_macs(28, 4, 10)),
    ('SWRN-28-14-2', 'CIFAR-10'): (TEMPLATES[28, 14, 2][0], wide_resnet_macs(28, 14, 10)),
    ('SWRN-28-10-1', 'CIFAR-100'): (TEMPLATES[28, 10, 1][1], wide_resnet_macs(28, 10, 100)),
    ('SWRN-28-10-2', 'CIFAR-100'): (TEMPLATES[28, 10, 2][1], wide_resnet_macs(28, 10, 100)),
    ('SWRN-28-10-4', 'CIFAR-100'): (TEMPLATES[28, 10, 4][1], wide_resnet_macs(28, 10, 100)),
    ('SWRN-28-10-6', 'CIFAR-100'): (TEMPLATES[28, 10, 6][1], wide_resnet_macs(28, 10, 100)),
    ('SWRN-28-4-2', 'CIFAR-100'): (TEMPLATES[28, 4, 2][1], wide_resnet_macs(28, 4, 100)),
    ('SWRN-28-14-2', 'CIFAR-100'): (TEMPLATES[28, 14, 2][1], wide_resnet_macs(28, 14, 100)),
    # Those of RepeatNet are all in test_repeatnet.py. Where copies are plain (linear) we do fewer multiply-adds.
    ('Repeat-ResNet-w2-linear', 'CIFAR-10'): (178_426, 26_920_192),
    ('Repeat-ResNet-w2-swish', 'CIFAR-10'): (178_538, 101_106_944),
    ('Repeat-ResNet-w2-bireal', 'CIFAR-10'): (866_554, 101_106_944),
    ('Repeat-ResNet-w4-linear', 'CIFAR-10'): (183_066, 26_921_472),
    ('Repeat-ResNet-w4-swish', 'CIFAR-10'): (183_498, 392_612_352),
    ('Repeat-ResNet-w4-bireal', 'CIFAR-10'): (2_925_338, 392_612_352),
    ('Repeat-ResNet-w8-linear', 'CIFAR-10'): (192_346, 26_924_032),
    ('Repeat-ResNet-w8-swish', 'CIFAR-10'): (194_042, 1_548_145_664),
    ('Repeat-ResNet-w8-bireal', 'CIFAR-10'): (11_140_954, 1_548_145_664),
    ('Repeat-VGG4-swish', 'CIFAR-10'): (126_534, 228_267_008),
    ('Repeat-VGG5-swish', 'CIFAR-10'): (273_914, 228_267_008),
    ('Repeat-VGG6-swish', 'CIFAR-10'): (568_746, 228_267_008),
    ('Repeat-VGG7-swish', 'CIFAR-10'): (1_158_562, 228_267_008),
    ('Repeat-VGG8-swish', 'CIFAR-10'): (2_338_150, 228_267_008),
    ('Repeat-VGG9-swish', 'CIFAR-10'): (4_697_422, 228_267_008),
    ('Repeat-VGG10-swish', 'CIFAR-10'): (7_056_714, 228_267_008),
    ('Repeat-ResNet-w2-swish', 'CIFAR-100'): (190_148, 101_118_464),
    ('Repeat-ResNet-w4-swish', 'CIFAR-100'): (206_628, 392_635_392),
    ('Repeat-ResNet-w2-swish', 'Tiny-ImageNet'): (203_048, 404_448_256),
    ('Repeat-ResNet-w4-swish', 'Tiny-ImageNet'): (232_328, 1_570_490_368),
    ('Repeat-ResNet18-w2-linear', 'ImageNet-1k'): (12_224_936, 1_827_430_400),
    ('Repeat-ResNet18-w2-swish', 'ImageNet-1k'): (12_225_088, 6_695_706_624),
    ('Repeat-CNN-c4-linear', 'Rotated MNIST'): (352_921, 27_987_024),
    ('Repeat-CNN-c4-swish', 'Rotated MNIST'): (352_987, 228_229_824),
    ('Repeat-CNN-c8-linear', 'Rotated MNIST'): (360_773, 27_993_808),
    ('Repeat-CNN-c8-swish', 'Rotated MNIST'): (360_963, 452_485_508),
    ('Repeat-CNN-c16-linear', 'Rotated MNIST'): (371_897, 28_003_408),
    ('Repeat-CNN-c16-swish', 'Rotated MNIST'): (372_179, 908_964_608),
}


# The same of what their code can build beside the table, by the options of a config: data set, groups, S and U.
OPTIONS = {
    ('100', 'single', 16, 2): (6_770_180, 536_594_432),
    ('100', 'single', 16, 4): (7_338_852, 568_051_712),
    ('100', 'single', 16, 8): (8_476_196, 630_966_272),
    ('100', 'single', 16, 16): (10_750_884, 756_795_392),
    ('100', 'single', 32, 2): (8_011_012, 788_252_672),
    ('100', 'single', 32, 4): (8_579_684, 819_709_952),
    ('100', 'single', 32, 8): (9_717_028, 882_624_512),
    ('100', 'single', 32, 16): (11_991_716, 1_008_453_632),
    ('100', 'single', 32, 32): (16_541_092, 1_260_111_872),
    ('100', 'single', 16, 0): (6_201_508, 505_137_152),  # ResNet34_SharedOnly
    ('100', 'single', 32, 0): (7_442_340, 756_795_392),
    ('100', 'single', 0, 16): (9_510_052, 505_137_152),  # ResNet34_NonShared
    ('100', 'single', 0, 32): (14_059_428, 756_795_392),
    ('10', 'double', 8, 1): (174_858, 47_628_928),
    ('10', 'single', 24, 1): (243_850, 110_543_488),
    ('10', 'double', 24, 1): (316_426, 110_543_488),
    ('10', 'double', 16, 0): (218_650, 75_154_048),
    ('10', 'single', 0, 16): (508_954, 75_154_048),
}


@pytest.mark.parametrize('options', OPTIONS, ids=lambda options: 'cifar{}-{}-s{}u{}'.format(*options))
def test_the_ranks_of_a_config_give_the_authors_other_networks(options):
    data, bases, shared_rank, unique_rank = options
    depth = {'100': 34, '10': 32}[data]
    cfg = Config.fromfile(ROOT / f'configs/shared_resnet/shared-resnet{depth}-s16u1_b256_cifar{data}.py')
    cfg.merge_from_dict(
        {
            'model.backbone.sharing.bank.shared_rank': shared_rank,
            'model.backbone.sharing.bank.unique_rank': unique_rank,
            'model.backbone.sharing.groups': dict(single=['conv[12]'], double=['conv1', 'conv2'])[bases],
        }
    )
    model = build_model(cfg)
    assert (parameter_count(model), count_multiply_adds(model, (32, 32))['']) == OPTIONS[options]


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_config_builds_a_network_that_shares_if_it_says_so(path):
    if 'steerable' in path.stem and WITHOUT_ESCNN:
        pytest.skip(WITHOUT_ESCNN)
    cfg = Config.fromfile(path)
    model = build_model(cfg) if 'steerable' in path.stem else build_empty(cfg)  # escnn computes what it builds
    shares = path in SHARING_CONFIGS
    assert bool(banks(model)) is shares
    found = banks(model)
    regularised = any(bank.basis() is not None for bank in found) and 'recurrent' not in path.stem
    assert any(hook['type'] == 'OrthogonalityLossHook' for hook in cfg.get('custom_hooks', [])) is regularised
    for hook in cfg.get('custom_hooks', []):
        HOOKS.build(hook)
    if shares:
        plain = build_empty(cfg, build_plain)
        assert not banks(plain)
        # Masks are as large as kernels, and a network with as many templates as convs has their coefficients beside.
        grows = any(word in path.stem for word in ('bireal', 'swrn28-10-6'))
        assert parameter_count(plain) > parameter_count(model) or grows


def levels(path: Path) -> int:
    """The most files of ours, each the base of the one before, that a config is made of."""
    bases = re.findall(r"'(\.[^']*\.py)'", path.read_text())
    return 1 + max((levels(path.parent / base) for base in bases), default=0)


def test_configs_have_three_levels_at_most():
    assert {path.name: levels(path) for path in CONFIGS if levels(path) > 3} == {}


@pytest.mark.parametrize('path', SUITES, ids=lambda path: path.stem)
def test_every_entry_of_a_suite_names_what_is_there_builds_and_is_another_run(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    suite, seen = yaml.safe_load(path.read_text()), []
    assert len(suite['configs']) > 4
    for entry in suite['configs']:
        entry = dict(config=entry) if isinstance(entry, str) else entry
        cfg = load_config(entry['config'])
        _, _, changes = entry.get('script', '').partition(' --cfg-options ')
        parents = [change.partition('=')[0].rpartition('.')[0] for change in changes.split()]  # defaults may be set
        for key in [*entry.get('options', {}), *filter(None, parents)]:
            value = cfg
            for part in key.split('.'):
                value = value[part]
        if 'script' in entry:
            assert Path(entry['script'].split()[0]).is_file()
        else:
            assert suite['metric'].split('/')[0] in str(cfg.val_evaluator).lower()
        merge_options(cfg, {**suite.get('options', {}), **entry.get('options', {})})
        run = cfg.to_dict(), entry.get('script')
        assert run not in seen
        seen.append(run)
        if not (WITHOUT_ESCNN and 'steerable' in entry['config']):
            build_empty(cfg)
        for hook in cfg.get('custom_hooks', []):
            HOOKS.build(hook)


@pytest.mark.parametrize('network', TEMPLATES, ids=lambda network: 'wrn{}-{}-{}'.format(*network))
def test_wide_resnets_have_the_parameters_of_the_authors(network):
    depth, width, templates = network
    assert wide_resnet_macs(28, 10, 10) == 5_243_328_768  # as counted in their code
    for classes, expected in zip((10, 100), TEMPLATES[network]):
        name = 'swrn28-10-2' if templates else 'wrn28-10'
        cfg = Config.fromfile(ROOT / f'configs/soft_sharing/{name}_b128_cifar{classes}.py')
        cfg.merge_from_dict(
            dict(model=dict(backbone=dict(depth=depth, widen_factor=width), head=dict(in_channels=64 * width)))
        )
        if templates:
            cfg.model.backbone.sharing.bank.num_templates = templates
        model = build_empty(cfg)
        assert expected in (parameter_count(model), None)
        own = [parameter.numel() for name, parameter in model.named_parameters() if name.endswith('.coefficients')]
        assert sum(own) == (depth - 10) * templates


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
