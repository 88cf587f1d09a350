"""The configs of RepeatNet build the networks that the authors' code builds."""

import re
from copy import deepcopy

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, MODELS
from torch import nn

from helpers import REPEATED as BANK
from helpers import ROOT, call, evaluating, randomise_norms, small, train
from mmshared import SharingError, TrainOnlyHook, banks, fold_layers
from mmshared.analysis.complexity import count_multiply_adds, parameter_count
from mmshared.convert.rescale import rescale
from mmshared.engine.build import build_empty, build_model, build_plain
from mmshared.engine.checkpoint import load_checkpoint_file

pytestmark = pytest.mark.slow  # networks of full size

CONFIGS = ROOT / 'configs/repeatnet'
CLASSES = {'cifar10': (10, 100, 200), 'rotmnist': (10,), 'in1k': (1000,)}
SIZES = {'cifar10': (32, 32), 'rotmnist': (1, 29, 29), 'in1k': (224, 224)}

# Counted in the authors' code: parameters for each number of classes, and multiply-adds in units of 1e9.
PLAIN = {
    'resnet-w1_b128_cifar10': ((175_258, 181_108, 187_608), '0.027'),
    'resnet-w2_b128_cifar10': ((692_122, 703_732, 716_632), '0.101'),
    'resnet-w4_b128_cifar10': ((2_749_786, 2_772_916, 2_798_616), '0.393'),
    'resnet-w8_b128_cifar10': ((10_963_162, 11_009_332, 11_060_632), '1.548'),
    'resnet18-w1_8xb32_in1k': ((11_689_512,), '1.814'),
    'resnet18-w2_8xb32_in1k': ((45_618_216,), '6.696'),
    'resnet18-w4_8xb32_in1k': ((180_191_016,), '25.913'),
    'vgg4_b128_cifar10': ((114_378, 125_988, 138_888), '0.058'),
    'vgg5_b128_cifar10': ((262_218, 273_828, 286_728), '0.096'),
    'vgg6_b128_cifar10': ((559_178, 582_308, 608_008), '0.115'),
    'vgg7_b128_cifar10': ((1_149_770, 1_172_900, 1_198_600), '0.153'),
    'vgg8_b128_cifar10': ((2_333_514, 2_379_684, 2_430_984), '0.172'),
    'vgg9_b128_cifar10': ((4_694_346, 4_740_516, 4_791_816), '0.209'),
    'vgg10_b128_cifar10': ((7_055_178, 7_101_348, 7_152_648), '0.219'),
    'vgg11_b128_cifar10': ((9_416_010, 9_462_180, 9_513_480), '0.228'),
    'cnn_b128_rotmnist': ((340_309,), '0.028'),
}
# Parameters with plain copies, the numbers that swish has beside them, the values of the masks of bireal, those of
# them that touch no kernel and get no gradient in the authors' code, where the small kernel has the size of the conv
# (we have none there), and multiply-adds of the direct form.
REPEATED = {
    'resnet-w1_b128_cifar10': ((175_802, 181_652, 188_152), 0, 173_056, 173_056, '0.027'),
    'resnet-w2_b128_cifar10': ((178_426, 190_036, 202_936), 112, 688_128, 0, '0.101'),
    'resnet-w4_b128_cifar10': ((183_066, 206_196, 231_896), 432, 2_742_272, 0, '0.393'),
    'resnet-w8_b128_cifar10': ((192_346, 238_516, 289_816), 1_696, 10_948_608, 0, '1.548'),
    'resnet18-w1_8xb32_in1k': ((11_694_248,), 0, 11_157_504, 11_157_504, '1.814'),
    'resnet18-w2_8xb32_in1k': ((12_224_936,), 152, 44_564_480, 0, '6.696'),
    'resnet18-w4_8xb32_in1k': ((13_277_736,), 592, 178_094_080, 0, '25.913'),
    'vgg4_b128_cifar10': ((126_282, 172_452, 223_752), 252, 9_289_728, 0, '0.228'),
    'vgg5_b128_cifar10': ((273_738, 319_908, 371_208), 176, 9_142_272, 0, '0.228'),
    'vgg6_b128_cifar10': ((568_650, 614_820, 666_120), 96, 8_847_360, 0, '0.228'),
    'vgg7_b128_cifar10': ((1_158_474, 1_204_644, 1_255_944), 88, 8_257_536, 0, '0.228'),
    'vgg8_b128_cifar10': ((2_338_122, 2_384_292, 2_435_592), 28, 7_077_888, 0, '0.228'),
    'vgg9_b128_cifar10': ((4_697_418, 4_743_588, 4_794_888), 4, 4_718_592, 2_359_296, '0.228'),
    'vgg10_b128_cifar10': ((7_056_714, 7_102_884, 7_154_184), 0, 2_359_296, 2_359_296, '0.228'),
    'cnn-c4_b128_rotmnist': ((352_921,), 66, 2_716_736, 0, '0.228'),
    'cnn-c8_b128_rotmnist': ((360_773,), 190, 5_416_885, 0, '0.452'),
    'cnn-c16_b128_rotmnist': ((371_897,), 282, 10_860_672, 0, '0.909'),
}
# Parameters of still wider networks that their code builds.
WIDER = {
    'repeat-resnet18-w8-linear_8xb32_in1k': 15_383_336,
    'repeat-resnet18-w8-swish_8xb32_in1k': 15_385_672,
    'repeat-resnet18-w8-bireal_8xb32_in1k': 727_431_976,
    'resnet18-w8_8xb32_in1k': 716_231_976,
    'repeat-resnet-w10-swish_b128_cifar10': 199_626,
}


def config(name):
    """The config of a network: its file, or that of another with the options that make it of this."""
    if (CONFIGS / f'{name}.py').is_file():
        return Config.fromfile(CONFIGS / f'{name}.py')
    network, rest = name.split('_', 1)
    repeated, kind, size, transform = re.fullmatch(r'(repeat-)?(resnet18-w|\D+)(\d+)-?(.*)', network).groups()
    size, bank, options = int(size), 'model.backbone.sharing.bank', {}
    if kind.startswith('resnet'):
        base = f'repeat-{kind}2-linear' if repeated else f'{kind}1'
        channels, stages = (64 * size, 4) if kind == 'resnet18-w' else (16 * size, 3)
        options = {'model.backbone.base_channels': channels, 'model.head.in_channels': channels << stages - 1}
        if repeated:
            options[f'{bank}.width'] = size
    elif repeated:
        base = f'repeat-{kind}{size}-{"swish" if kind == "vgg" else "linear"}'
    else:
        base = 'vgg11'
        options = {'model.backbone.depth': size, 'model.head.in_channels': min(512, 64 << (size // 2 - 1))}
    if transform:
        options[f'{bank}.transform.type'] = transform.replace('-', '_')
    cfg = Config.fromfile(CONFIGS / f'{base}_{rest}.py')
    cfg.merge_from_dict(options)
    return cfg


def counts(model, cfg, classes):
    """The parameters of a model with heads of other numbers of classes."""
    heads = [MODELS.build(dict(deepcopy(cfg.model.head), num_classes=number)) for number in classes]
    return tuple(parameter_count(model.backbone) + parameter_count(head) for head in heads)


@pytest.mark.parametrize('name', PLAIN)
def test_plain_networks_have_the_authors_counts(name):
    data, cfg = name.rpartition('_')[2], config(name)
    parameters, macs = PLAIN[name]
    model = build_empty(cfg)
    assert not banks(model) and counts(model, cfg, CLASSES[data]) == parameters
    assert f'{count_multiply_adds(model, SIZES[data])[""] / 1e9:.3f}' == macs


@pytest.mark.parametrize('transform', ['linear', 'swish', 'bireal'])
@pytest.mark.parametrize('name', REPEATED)
def test_repeated_networks_have_the_authors_counts(name, transform):
    (network, rest), data = name.split('_', 1), name.rpartition('_')[2]
    cfg = config(f'repeat-{network}-{transform}_{rest}')
    parameters, numbers, masks, dead, macs = REPEATED[name]
    model = build_empty(cfg)
    own = dict(linear=0, swish=numbers, bireal=masks - dead)[transform]
    assert sum(p.numel() for key, p in model.named_parameters() if '.transform.' in key) == own
    assert counts(model, cfg, CLASSES[data]) == tuple(number + own for number in parameters)
    direct = f'{count_multiply_adds(model, SIZES[data])[""] / 1e9:.3f}'
    # Plain copies are computed with fewer multiply-adds, where there are any.
    assert direct < macs if transform == 'linear' and not network.endswith(('w1', 'vgg10')) else direct == macs


def test_dropped_and_random_kernels_are_no_parameters():
    # The small kernels have 173,312 values.
    for transform, parameters, stored in (
        ('static-drop', 178_426, 688_128),
        ('random-bireal', 178_426 + 688_128, 688_128 - 173_312),
    ):
        model = build_empty(config(f'repeat-resnet-w2-{transform}_b128_cifar10'))
        assert parameter_count(model) == parameters
        assert sum(buffer.numel() for key, buffer in model.named_buffers() if '.transform.' in key) == stored


@pytest.mark.parametrize('name', WIDER)
def test_other_widths_are_options(name):
    assert parameter_count(build_empty(config(name))) == WIDER[name]


@pytest.mark.parametrize('width', [2, 4])
def test_plain_copies_need_the_multiply_adds_of_the_small_network(width):
    model = build_empty(config(f'repeat-resnet-w{width}-linear_b128_cifar10'))
    base = count_multiply_adds(build_empty(config('resnet-w1_b128_cifar10')), (32, 32))['']
    # And of the first downsample, which the small network does not have, and of a wider linear layer.
    assert count_multiply_adds(model, (32, 32))[''] == base + 16 * 16 * 32**2 + (width - 1) * 64 * 10


def test_the_forms_of_plain_copies_are_timed_against_each_other():
    tool, options = 'analysis_tools/benchmark_linear_form.py', ('--shape', 8, '--batch', 1, '--rounds', 1)
    result = call(tool, CONFIGS / 'repeat-resnet-w4-linear_b128_cifar10.py', *options)
    direct = count_multiply_adds(build_empty(config('resnet-w4_b128_cifar10')), (8, 8))['']
    cells = result.stdout.splitlines()[-1].split(' | ')
    assert int(cells[1].replace(',', '')) == direct and len(cells) == 5, result.stderr
    assert int(cells[2].replace(',', '')) < direct / 10
    result = call(tool, CONFIGS / 'resnet-w1_b128_cifar10.py', *options)
    assert result.returncode and 'has no plain copies: give one whose transform is linear' in result.stderr


@pytest.mark.parametrize(
    'number, sources',
    {
        4: 'conv2_1 ' * 7,
        5: 'conv2_1 conv2_2 ' * 3,
        6: 'conv2_1 conv2_2 conv3_1 conv2_2 conv3_1',
        7: 'conv2_1 conv2_2 conv3_1 conv3_2',
        8: 'conv3_1 conv3_2 conv4_1',
        9: 'conv4_1 conv4_2',
        10: 'conv5_1',
    }.items(),
)
def test_the_convs_of_a_vgg_repeat_the_kernels_of_the_authors_sources(number, sources):
    model = build_empty(config(f'repeat-vgg{number}-swish_b128_cifar10')).backbone
    convs = dict(model.features[0].named_children())
    names = {conv: name for name, conv in convs.items()}
    found = [
        names[conv.bank.layers[0]]
        for conv in convs.values()
        if hasattr(conv, 'bank') and conv.bank.layers[0] is not conv
    ]
    assert found == sources.split() and len(found) + number - 1 == 10


@pytest.mark.parametrize(
    'name, size', [('repeat-resnet-w2-swish_b128_tinyimagenet', 32), ('resnet18-w1_8xb32_in1k', 224)]
)
def test_images_pass_the_affine_augmentation(mmpretrain, images, name, size):
    pipeline = config(name).train_dataloader.dataset.pipeline

    def data(*left_out):
        steps = [step for step in pipeline if step['type'].rpartition('/')[2] not in left_out]
        return DATASETS.build(dict(type='CustomDataset', data_root=str(images), data_prefix='train', pipeline=steps))

    assert all(data()[3]['inputs'].shape == (3, size, size) for _ in range(3))
    # Nothing else makes a difference here.
    others = 'RandomFlip', 'RandomResizedCrop', 'RandomCrop'
    for left_out, alike in ((others, False), ((*others, 'RandomAffine'), True)):
        first, second = (data(*left_out)[3]['inputs'] for _ in range(2))
        assert torch.equal(first, second) is alike
    affine = {step['type']: step for step in pipeline}['torchvision/RandomAffine']
    assert (affine.degrees, affine.scale, affine.shear) == (20, (0.8, 1.2), 20)


def test_optimizers_and_learning_rates_are_those_of_the_recipes():
    from mmengine.optim import build_optim_wrapper
    from mmengine.registry import PARAM_SCHEDULERS

    for name, kind, decay, expected in (
        ('resnet-w1_b128_cifar10', 'SGD', 1e-3, {0: 0.1, 79: 0.1, 80: 0.01, 119: 0.01, 120: 0.001, 159: 0.001}),
        (
            'repeat-resnet-w2-bireal-maskonly_b128_cifar10',
            'SGD',
            1e-4,
            {0: 0.1, 5: 0.1, 6: 0.01, 11: 0.01, 12: 0.001, 17: 0.001},
        ),
        ('repeat-resnet-w2-swish_b128_tinyimagenet', 'SGD', 1e-4, {29: 0.1, 30: 0.01, 59: 0.01, 60: 0.001, 89: 0.001}),
        ('resnet18-w1_8xb32_in1k', 'SGD', 1e-4, {29: 0.1, 30: 0.01, 60: 0.001, 89: 0.001}),
        ('cnn_b128_rotmnist', 'Adam', 1e-7, {9: 1e-3, 10: 0.8e-3, 11: 0.64e-3, 29: 0.8**20 * 1e-3}),
    ):
        cfg = config(name)
        optimizer = dict(cfg.optim_wrapper.optimizer)
        assert (optimizer['type'], optimizer['weight_decay']) == (kind, decay)
        assert optimizer.get('momentum') == (0.9 if kind == 'SGD' else None)
        assert 'paramwise_cfg' not in cfg.optim_wrapper  # everything decays
        loader = cfg.train_dataloader
        assert loader.batch_size == (32 if 'in1k' in name else 128) and loader.drop_last
        assert cfg.train_cfg.max_epochs == max(expected) + 1 and cfg.optim_wrapper.clip_grad.max_norm == 1
        wrapper = build_optim_wrapper(nn.Linear(1, 1), cfg.optim_wrapper)
        scheduler = PARAM_SCHEDULERS.build(dict(cfg.param_scheduler), default_args=dict(optimizer=wrapper.optimizer))
        for epoch in range(max(expected) + 1):
            if epoch in expected:
                assert wrapper.optimizer.param_groups[0]['lr'] == pytest.approx(expected[epoch]), (name, epoch)
            wrapper.optimizer.step()
            scheduler.step()


@pytest.mark.parametrize(
    'name, base, size',
    [
        ('repeat-resnet-w4-linear_b128_cifar10', 'resnet-w1_b128_cifar10', (3, 32, 32)),
        ('repeat-resnet-w2-bireal_b128_cifar10', 'repeat-resnet-w1-swish_b128_cifar10', (3, 32, 32)),
        ('repeat-cnn-c8-linear_b128_rotmnist', 'cnn_b128_rotmnist', (1, 29, 29)),  # sizes that do not divide
        ('repeat-resnet-w2-bireal-maskonly_b128_cifar10', 'repeat-resnet-w2-linear_b128_cifar10', (3, 32, 32)),
    ],
)
def test_a_rescaled_network_begins_as_the_small_one(name, base, size, tmp_path):
    base = randomise_norms(build_model(config(base)).double())
    for key, parameter in base.named_parameters():
        if key.endswith('bias'):
            nn.init.normal_(parameter, std=0.1)
    torch.save(dict(state_dict=base.state_dict()), tmp_path / 'small.pth')
    out = tmp_path / 'new/out.pth'
    result = call('model_converters/rescale.py', CONFIGS / f'{name}.py', tmp_path / 'small.pth', out)
    assert f'wrote {out}' in result.stdout, result.stderr
    model = build_model(config(name)).double()
    model.load_state_dict(load_checkpoint_file(str(out))['state_dict'], strict=True)
    x = torch.randn(2, *size).double()
    with torch.no_grad():
        expected = evaluating(base)(x)
        for network in (evaluating(model), fold_layers(deepcopy(model))):
            assert (network(x) - expected).abs().max() < 1e-6 * expected.abs().max()


def test_a_shortcut_that_the_small_network_lacks_becomes_the_identity():
    base = build_model(config('resnet-w1_b128_cifar10'))
    model = randomise_norms(build_model(config('repeat-resnet-w2-linear_b128_cifar10')))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias)
    model.load_state_dict(rescale(model, base.state_dict())[0])
    shortcut, x = evaluating(model).backbone.layer1[0].downsample, torch.randn(1, 16, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(shortcut(x), x.repeat(1, 2, 1, 1))


def test_the_convs_of_a_small_vgg_become_the_kernels_that_are_passed_on(tmp_path):
    base = randomise_norms(build_model(config('vgg6_b128_cifar10')))
    torch.save(base.state_dict(), tmp_path / 'small.pth')
    out, options = tmp_path / 'out.pth', ('--cfg-options', 'model.head.num_classes=10')
    result = call(
        'model_converters/rescale.py',
        CONFIGS / 'repeat-vgg6-swish_b128_cifar10.py',
        tmp_path / 'small.pth',
        out,
        *options,
    )
    assert 'started as in the config: backbone.features.0.conv3_2, backbone.features.0.bn3_2, ' in result.stdout
    assert result.stdout.count('conv5_2') == 1 and 'conv3_1' not in result.stdout, result.stderr
    model = build_model(config('repeat-vgg6-swish_b128_cifar10'))
    model.load_state_dict(load_checkpoint_file(str(out))['state_dict'], strict=True)
    chains, x = [evaluating(each).backbone.features[0] for each in (base, model)], torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        layer = [name for name, _ in chains[0].named_children()].index('conv3_1')
        # What lies behind the last conv of the small network is a pooling of its own.
        torch.testing.assert_close(chains[1][: layer + 3](x), chains[0][: layer + 3](x))


def test_what_cannot_be_rescaled_is_refused():
    model, state = (
        build_model(config(name)) for name in ('repeat-resnet-w2-linear_b128_cifar10', 'resnet-w1_b128_cifar10')
    )
    state = state.state_dict()
    for change, words in [
        (lambda state: state.pop('backbone.layer1.0.conv1.weight'), r'conv1.kernel of the shape .* it has nothing'),
        (lambda state: state.pop('backbone.layer1.0.bn2.bias'), 'bn2.bias of the shape .* it has nothing'),
        (lambda state: state.update({'backbone.layer4.0.conv1.weight': torch.zeros(1)}), 'it has backbone.layer4.0'),
        (lambda state: state.update({'backbone.layer2.1.conv2.weight': torch.zeros(16, 16, 3, 3)}), r'\(16, 16, 3'),
    ]:
        changed = dict(state)
        change(changed)
        with pytest.raises(SharingError, match=words):
            rescale(model, changed)
    with pytest.raises(SharingError, match='of 5 classes, .* set its model.head.num_classes=5'):
        rescale(model, {key: tensor[:5] if key.startswith('head') else tensor for key, tensor in state.items()})
    with pytest.raises(SharingError, match='does not repeat kernels within its layers or between them'):
        rescale(build_model(config('resnet-w2_b128_cifar10')), state)
    vgg, wide = (
        build_model(config(name)).state_dict()
        for name in ('vgg6_b128_cifar10', 'repeat-resnet-w2-linear_b128_cifar10')
    )
    for name, state, words in (
        ('repeat-vgg5-linear_b128_cifar10', vgg, r'it has backbone.features.0.conv3_1.weight'),
        ('repeat-vgg7-linear_b128_cifar10', vgg, r'nothing for .*conv3_2\.(bank\.kernel|weight)'),
        ('repeat-resnet-w4-linear_b128_cifar10', wide, 'repeats its kernel to 32 channels, and here it has 64'),
    ):
        with pytest.raises(SharingError, match=words):
            rescale(build_model(config(name)), state)


def test_a_cnn_without_channels_is_refused(mmpretrain):
    with pytest.raises(SharingError, match='widen_factor=0.01 leaves convs without channels'):
        MODELS.build(dict(type='mmpretrain.RotMNISTCNN', widen_factor=0.01))


def test_copies_of_a_rescaled_network_stay_alike_where_nothing_transforms_them():
    base = build_model(config('resnet-w1_b128_cifar10')).state_dict()
    for transform, alike in (('linear', True), ('swish', False)):
        model = build_model(config(f'repeat-resnet-w2-{transform}_b128_cifar10'))
        model.load_state_dict(rescale(model, base)[0])
        model.train()
        model(torch.randn(4, 3, 16, 16)).square().mean().backward()
        one, two = model.backbone.layer3[1].bn2.weight.grad.chunk(2)
        assert torch.allclose(one, two, rtol=1e-3, atol=1e-6) is alike


def test_a_detector_on_a_rescaled_backbone_computes(mmdet):
    model = build_empty(Config.fromfile(CONFIGS / 'faster-rcnn_repeat-r18-w2-swish_fpn_1x_coco.py'))
    plain = build_empty(Config.fromfile(CONFIGS / 'faster-rcnn_repeat-r18-w2-swish_fpn_1x_coco.py'), build_plain)
    assert parameter_count(model.backbone) < 0.3 * parameter_count(plain.backbone)
    assert count_multiply_adds(model, (64, 64))[''] == count_multiply_adds(plain, (64, 64))['']


def test_masks_and_norms_alone_are_trained(tmp_path, mmpretrain):
    (hook,) = config('repeat-resnet-w2-bireal-maskonly_b128_cifar10').custom_hooks
    network, before = small(dict(BANK, transform=dict(type='bireal'))), {}

    class Watch(Hook):
        def before_train(self, runner):
            before.update({name: parameter.clone() for name, parameter in network.named_parameters()})

    optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, weight_decay=0.1))
    model, _ = train(network, tmp_path, [Watch(), TrainOnlyHook(hook['keys'])], optim_wrapper=optim_wrapper)
    moved = {name for name, parameter in model.backbone.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {name for name in before if 'bn' in name or 'transform.mask' in name or 'downsample' in name}
    assert sum('transform.mask' in name for name in moved) == 8
