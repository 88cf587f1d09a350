"""Laws of learnable repetition."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers import REPEATED, backbone, evaluating, image, randomise_norms
from mmshared import (
    KERNEL_TRANSFORMS,
    KernelTransform,
    RepeatedKernel,
    SharingError,
    deploy,
    fold_layers,
    share_layers,
)
from mmshared.analysis.complexity import count_multiply_adds
from mmshared.sharing import deployment
from mmshared.sharing.deployment import relative_difference
from mmshared.sharing.kernel_transforms import Swish

# Small kernel and kernel: sizes that divide, that leave rows, columns or both, and that hold less than two tiles.
SIZES = [((4, 3), (8, 9)), ((4, 3), (9, 6)), ((4, 3), (8, 7)), ((4, 3), (11, 8)), ((4, 3), (5, 3)), ((22, 1), (64, 1))]


def transform_of(name, small, shape, k=3):
    return KERNEL_TRANSFORMS.get(name)((*small, k, k), (*shape, k, k))


def directly(name, transform, kernel):
    """The kernel filter by filter, from the definition: a copy, and what becomes of it at its place."""
    (o, i), (rows, columns) = transform.small[:2], transform.shape[:2]
    if name == 'random_bireal':
        filters = [*kernel.flatten(0, 1), *transform.random]
        return torch.stack(filters).view(transform.shape) * transform.mask.sign()
    whole_rows, whole_columns = rows // o * o, columns // i * i

    def swish(x, a, b):
        if b >= whole_columns:
            alpha, beta = transform.rest_alpha[-1], transform.rest_beta[-1]
        elif a >= whole_rows:
            alpha, beta = transform.rest_alpha[0], transform.rest_beta[0]
        else:
            alpha, beta = transform.alpha[a // o, b // i], transform.beta[a // o, b // i]
        return alpha * x / (1 + torch.exp(beta * x))

    change = dict(
        linear=lambda x, a, b: x,
        swish=swish,
        bireal=lambda x, a, b: x * transform.mask[a, b].sign(),
        static_drop=lambda x, a, b: x * transform.kept[a, b],
    )[name]
    out = torch.empty(transform.shape)
    for a in range(rows):
        for b in range(whole_columns):
            out[a, b] = change(kernel[a % o, b % i] if a < whole_rows else out[a - whole_rows, b], a, b)
        for b in range(whole_columns, columns):
            out[a, b] = change(out[a, b - whole_columns], a, b)
    return out


@pytest.mark.parametrize('small, shape', SIZES)
@pytest.mark.parametrize('name', KERNEL_TRANSFORMS.module_dict)
def test_a_transform_is_what_its_definition_says_for_all_sizes(name, small, shape):
    transform = transform_of(name, small, shape)
    if hasattr(transform, 'mask') and transform.mask.is_floating_point():
        nn.init.normal_(transform.mask)
    kernel = torch.randn(transform.small)
    with torch.no_grad():
        torch.testing.assert_close(transform(kernel), directly(name, transform, kernel))


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('small, shape', SIZES)
def test_the_fast_form_is_the_direct_form_in_values_and_gradients(small, shape, stride):
    transform = transform_of('linear', small, shape)
    kernel, bias = torch.randn(transform.small, requires_grad=True), torch.randn(shape[0], requires_grad=True)
    x = torch.randn(2, shape[1], 7, 6, requires_grad=True)
    apply = partial(F.conv2d, stride=stride, padding=1)
    fast = transform.compute(apply, x, kernel, bias)
    direct = apply(x, transform(kernel), bias)
    torch.testing.assert_close(fast, direct, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(transform.compute(apply, x[0], kernel, bias), fast[0])  # an image without a batch
    weights = torch.randn_like(direct)
    for a, b in zip(*(torch.autograd.grad(y, (x, kernel, bias), weights) for y in (fast, direct))):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('width', [2, 4])
def test_the_fast_form_does_the_multiply_adds_of_the_small_kernel(width):
    counts = [
        count_multiply_adds(
            repeated_chain(8 * width, 4 * width, width=width, transform=dict(type=name))[0], (8 * width, 10, 10)
        )['']
        for name in ('linear', 'swish')
    ]
    assert counts == [8 * 4 * 9 * 100, 8 * 4 * 9 * 100 * width**2]


def test_signs_are_learned_through_clamping():
    transform = transform_of('bireal', (2, 2), (4, 2))
    assert (transform.mask > 0).all() and (transform.mask < 1e-3).all()  # plain copies at the start
    kernel = torch.randn(transform.small, requires_grad=True)
    nn.init.normal_(transform.mask, std=2)
    gradient = torch.randn(transform.shape)
    transform(kernel).backward(gradient)
    tiled = kernel.detach().repeat(2, 1, 1, 1)
    inside = transform.mask.detach().abs() <= 1
    assert 0 < inside.sum() < inside.numel()
    torch.testing.assert_close(transform.mask.grad, tiled * gradient * inside)
    torch.testing.assert_close(kernel.grad, (transform.mask.detach().sign() * gradient).view(2, 2, 2, 3, 3).sum(0))


def test_what_is_dropped_or_random_stays_so():
    drop = KERNEL_TRANSFORMS.get('static_drop')((20, 20, 3, 3), (40, 40, 3, 3), drop_rate=0.3)
    assert abs(drop.kept.float().mean() - 0.7) < 0.02 and not list(drop.parameters())
    random = transform_of('random_bireal', (2, 3), (4, 6))
    assert [name for name, _ in random.named_parameters()] == ['mask'] and random.random.shape == (18, 3, 3)
    for rate in (1, 'x'):
        with pytest.raises(SharingError, match=f'drop_rate={rate!r} is not a share'):
            KERNEL_TRANSFORMS.get('static_drop')((2, 2, 1, 1), (4, 4, 1, 1), drop_rate=rate)


def test_random_filters_have_the_variance_of_convs():
    # As torch initialises a conv from one channel: uniform, variance 1 / (3 fan in), fan in k k.
    random = transform_of('random_bireal', (2, 3), (64, 64), k=5).random
    assert random.var(unbiased=False).item() == pytest.approx(1 / 75, rel=0.02)
    assert random.abs().max() <= 0.2


def repeated_chain(*channels, pattern='conv.*', **bank):
    """One block of convs from each number of channels to the next, conv0 and so on, and its bank."""
    stage = nn.Sequential(nn.Sequential())
    for i, (a, b) in enumerate(zip(channels, channels[1:])):
        stage[0].add_module(f'conv{i}', nn.Conv2d(a, b, 3, padding=1))
    (bank,) = share_layers(stage, layers=rf'0\.{pattern}', bank=dict(type='RepeatedKernel', **bank))
    return stage[0], bank


def test_within_a_layer_each_conv_repeats_a_kernel_of_its_own():
    block, bank = repeated_chain(3, 8, 8, 12, transform=dict(type='linear'), width=4, input_channels=3)
    assert [tuple(conv.kernel.shape[:2]) for conv in bank.layers] == [(2, 3), (2, 2), (3, 2)]
    assert not list(bank.parameters()) and all(conv.bias.eq(0).all() for conv in bank.layers)
    torch.testing.assert_close(block.conv2.dense()[0], block.conv2.kernel.repeat(4, 4, 1, 1))


def test_channels_are_rounded_down_unless_the_division_is_exact():
    block, _ = repeated_chain(33, 33, transform=dict(type='linear'), width=1.1)  # 33 / 1.1 in floats is 29.999...
    assert block.conv0.kernel.shape[:2] == (30, 30)


def test_between_layers_the_kernel_of_the_first_conv_is_repeated():
    block, bank = repeated_chain(3, 4, 8, 9, pattern='conv[12]', mode='inter', transform=dict(type='swish'))
    assert type(block.conv0) is nn.Conv2d and [name for name, _ in bank.named_parameters()] == ['kernel']
    assert not any(conv.kernel is not None for conv in bank.layers)
    torch.testing.assert_close(block.conv1.dense()[0], bank.kernel)
    transform = block.conv2.transform
    torch.testing.assert_close(block.conv2.dense()[0], directly('swish', transform, bank.kernel), rtol=1e-4, atol=1e-6)
    assert block.conv1.bias.abs().max() > 0 and block.conv2.bias.eq(0).all()


def test_both_is_the_two_kernels_side_by_side():
    block, bank = repeated_chain(2, 4, 8, 11, mode='hybrid', transform=dict(type='linear'))
    assert bank.layers[0].kernel is None
    for conv, own in zip(bank.layers[1:], (2, 2)):
        assert conv.kernel.shape[:2] == (4, own)
        pair = torch.cat([conv.kernel, bank.kernel], 1)  # (4, 4, 3, 3)
        torch.testing.assert_close(conv.dense()[0], pair.repeat(3, 2, 1, 1)[: conv.out_channels, : conv.in_channels])


@pytest.mark.parametrize(
    'channels, bank, words',
    [
        ((4, 8), dict(width=0.5), 'width=0.5 makes kernels larger'),
        ((4, 8), dict(width=16), 'width=16 leaves nothing of a conv from 4 to 8'),
        ((4, 8, 8), dict(), "mode='intra' needs a width"),
        ((4, 8, 8), dict(mode='inter', width=2), 'the other modes have neither width'),
        ((4, 8), dict(mode='inter'), 'a group has only one layer'),
        ((8, 8, 4), dict(mode='inter'), r'the shape \(8, 8, 3, 3\) cannot be repeated to \(4, 8, 3, 3\)'),
        ((4, 8), dict(mode='within', width=2), "mode='within' is not one of"),
        ((4, 8), dict(width='2'), "width='2' is not a finite number"),
        ((4, 8), dict(width=float('nan')), 'width=nan is not a finite number'),
        ((4, 8), dict(width=float('inf')), 'width=inf is not a finite number'),
        ((4, 8), dict(width=2, transform='swish'), "transform='swish' is not a config of a transform: write"),
        ((4, 8), dict(width=2, transform=dict(drop_rate=0.5)), 'is not a config of a transform: write'),
        (
            (4, 8),
            dict(width=2, transform=dict(type='static_drop', rate=1)),
            "do not fit StaticDrop: .*argument 'rate'",
        ),
        (
            (4, 8),
            dict(width=2, transform=dict(type='fourier')),
            "no kernel transform 'fourier': there are linear, swish",
        ),
    ],
)
def test_what_cannot_be_repeated_is_refused_with_the_reason(channels, bank, words):
    with pytest.raises(SharingError, match=words):
        repeated_chain(*channels, **{**dict(transform=dict(type='linear')), **bank})


def test_types_are_classes_too():
    stage = nn.Sequential(nn.Sequential(nn.Conv2d(4, 8, 3)))
    share_layers(stage, layers='0.0', bank=dict(type=RepeatedKernel, width=2, transform=dict(type=Swish)))
    assert type(stage[0][0].transform) is Swish


def test_a_pattern_without_convs_is_told_what_its_own_bank_demands():
    configs = [dict(type='TiedFilters'), dict(type='RepeatedKernel', width=2, transform=dict(type='linear'))]
    for pattern, words in (
        ('a', 'two or more plain convs or linears of a stage, outside its first'),
        ('b', 'one or more'),
    ):
        stage = nn.Sequential(*[nn.Sequential(nn.Conv2d(4, 4, 3)) for _ in range(3)])
        groups = [name if name == pattern else '0' for name in 'ab']
        with pytest.raises(SharingError, match=f"'{pattern}' forms no group: a group is {words}"):
            share_layers(stage, groups, configs)


@pytest.mark.parametrize('one, other', [('bireal', 'static_drop'), ('static_drop', 'bireal')])
def test_signs_are_not_loaded_as_what_is_kept(one, other):
    with pytest.raises(RuntimeError, match='Missing key'):
        transform_of(one, (2, 2), (4, 4)).load_state_dict(transform_of(other, (2, 2), (4, 4)).state_dict())


@pytest.mark.parametrize('small, shape', SIZES)
def test_the_fast_form_keeps_memory_format_and_precision(small, shape):
    transform = transform_of('linear', small, shape)
    x = torch.randn(2, shape[1], 7, 6).bfloat16().contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        kernel, bias = torch.randn(transform.small), torch.randn(shape[0])
        apply = partial(F.conv2d, padding=1)
        fast, direct = transform.compute(apply, x, kernel, bias), apply(x, transform(kernel), bias)
    assert fast.stride() == direct.stride() and fast.dtype == direct.dtype == torch.bfloat16
    assert (shape[1] == 1) is not direct.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(fast, direct, rtol=0.1, atol=0.3)


@pytest.mark.parametrize('position', [0, 1])
def test_plain_copies_are_deployed_in_the_form_that_is_faster(monkeypatch, position):
    block, _ = repeated_chain(4, 9, transform=dict(type='linear'), width=2)
    block.append(nn.BatchNorm2d(9))
    for bias in (block.conv0.bias, block[1].bias):
        nn.init.normal_(bias)
    evaluating(randomise_norms(block))
    timed = []

    def fastest(forms, x):
        timed.append([sum(isinstance(module, nn.BatchNorm2d) for module in form.modules()) for form in forms])
        return position

    monkeypatch.setattr(deployment, 'fastest', fastest)
    x = image(8)[:, :1].repeat(1, 4, 1, 1)
    network = deploy(block, x)
    assert timed == [[0, 1]]  # the norm is there to be timed where it is not fused
    assert relative_difference([network(x)], [block(x)]) < 1e-5
    assert isinstance(network.conv0, nn.Conv2d) is (position == 0)
    assert isinstance(network[1], nn.BatchNorm2d) is (position == 1)
    counts = [count_multiply_adds(model, (4, 8, 8))[''] for model in (network, block)]
    assert (counts[0] == counts[1]) is (position == 1)


def test_grouped_convs_are_refused(mmpretrain):
    with pytest.raises(SharingError, match='only ungrouped convs'):
        backbone(type='ResNeXt', base_channels=64, stem_channels=64, bank=REPEATED)
    with pytest.raises(
        SharingError,
        match=r"'conv9' forms no group: a group is one or more plain convs or linears of a stage "
        'whose',
    ):
        backbone(groups=['conv9'], bank=REPEATED)


def test_all_convs_of_a_stage_repeat_and_what_comes_from_the_stem_is_not_widened(mmpretrain):
    model = backbone(depth=18, groups=['.*'], base_channels=32, bank=dict(REPEATED, input_channels=16))
    shapes = {
        name: tuple(conv.kernel.shape[:2])
        for name, conv in model.layer1.named_modules()
        if hasattr(conv, 'kernel') and hasattr(conv, 'added_bias')
    }
    assert shapes == {
        '0.conv1': (16, 16),
        '0.conv2': (16, 16),
        '0.downsample.0': (16, 16),
        '1.conv1': (16, 16),
        '1.conv2': (16, 16),
    }
    assert model.layer2[0].conv1.kernel.shape[:2] == (32, 16)
    assert model.layer1[0].conv1.transform.r_in == 1 and model.layer1[0].conv2.transform.r_in == 2


def test_the_bias_of_a_repeated_conv_folds_into_its_norm(mmpretrain):
    model = evaluating(
        randomise_norms(backbone(depth=18, groups=['.*'], base_channels=32, bank=dict(REPEATED, input_channels=16)))
    )
    for conv in model.layer3.modules():
        if getattr(conv, 'added_bias', None) is not None:
            nn.init.normal_(conv.added_bias)
    x = image(32)
    before = model(x)
    assert relative_difference(fold_layers(model)(x), before) < 1e-5
    assert not any('bias' in key and 'bn' not in key and 'downsample.1' not in key for key in model.state_dict())


@pytest.mark.parametrize('mode', ['intra', 'inter', 'hybrid'])
@pytest.mark.parametrize('name', [name for name, kind in KERNEL_TRANSFORMS.module_dict.items() if kind.affine])
def test_the_fit_is_the_least_squares_of_the_small_kernels(name, mode):
    settings = dict(width=2) if mode == 'intra' else {}
    block, bank = repeated_chain(4, 6, 9, 15, mode=mode, transform=dict(type=name), **settings)
    for conv in bank.layers:
        if hasattr(conv.transform, 'mask') and conv.transform.mask.is_floating_point():
            nn.init.normal_(conv.transform.mask)
    targets = [torch.randn(conv.out_channels, conv.in_channels, 3, 3) for conv in bank.layers]

    def error():
        return sum((conv.dense()[0] - target).square().sum() for conv, target in zip(bank.layers, targets))

    before = error().detach()
    bank.fit(targets)
    kernels = [p for key, p in block.named_parameters() if key.endswith('kernel')]
    assert len(kernels) == dict(intra=3, inter=1, hybrid=3)[mode] and all(p.requires_grad for p in kernels)
    after = error()
    assert after < before
    for gradient in torch.autograd.grad(after, kernels):
        assert gradient.abs().max() < 1e-4


def test_a_swish_has_no_fit():
    _, bank = repeated_chain(4, 8, 8, transform=dict(type='swish'), width=2)
    with pytest.raises(SharingError, match='RepeatedKernel cannot be started from the weights of a plain network'):
        bank.fit([conv.dense()[0] for conv in bank.layers])


def test_a_new_transform_is_one_class():

    @KERNEL_TRANSFORMS.register_module('halved', force=True)
    class Halved(KernelTransform):
        def transform(self, part, region):
            return part / 2

    try:
        block, bank = repeated_chain(4, 9, transform=dict(type='halved'), width=2)
        dense = block.conv0.dense()[0]
        torch.testing.assert_close(dense[:4, :2], block.conv0.kernel / 2)
        torch.testing.assert_close(dense[8:, :2], block.conv0.kernel[:1] / 4)  # a copy of a copy
        x = torch.randn(1, 4, 5, 5)
        torch.testing.assert_close(block(x), F.conv2d(x, dense, block.conv0.bias, padding=1))
        # It does not say that it is affine.
        with pytest.raises(SharingError, match='cannot be started from the weights'):
            bank.fit([dense])
    finally:
        KERNEL_TRANSFORMS.module_dict.pop('halved')


def test_the_fit_of_a_scaled_kernel_to_its_own_is_exact():

    class Tenth(KernelTransform):
        affine = True

        def transform(self, part, region):
            return part * 0.1

    block, bank = repeated_chain(4, 9, transform=dict(type=Tenth), width=2)
    dense = block.conv0.dense()[0].detach().clone()
    nn.init.zeros_(block.conv0.kernel)
    bank.fit([dense])
    torch.testing.assert_close(block.conv0.dense()[0], dense)
