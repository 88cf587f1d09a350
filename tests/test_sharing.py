"""Laws of banks, shared convs and the surgery."""

import copy
import pickle
from functools import partial
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from mmengine.model import ExponentialMovingAverage, convert_sync_batchnorm, revert_sync_batchnorm
from mmengine.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS, init_default_scope
from torch import nn
from torch.utils.checkpoint import checkpoint

from helpers import (
    BANKS,
    BASIS,
    KINDS,
    LAYERS,
    TIED,
    TWO_STAGES,
    backbone,
    chain,
    evaluating,
    image,
    randomise_norms,
    small,
    stage_banks,
)
from mmshared import (
    OrthonormalFilterBasis,
    SharedLayer,
    SharingError,
    banks,
    fold_layers,
    share_layers,
)
from mmshared.sharing.deployment import relative_difference

NETWORKS = [
    dict(type='ResNet', depth=34, groups=['conv1', 'conv2'], bank=BASIS),
    *[dict(type='ResNet', depth=18, groups=['conv[12]'], bank=bank) for bank in BANKS.values()],
    dict(type='ResNet', depth=50, groups=['conv2', 'conv3'], bank=TIED),
    dict(
        type='ResNeXt',
        depth=50,
        groups=['conv2'],
        bank=TIED,
        base_channels=64,
        stem_channels=64,
        **{**TWO_STAGES, 'out_indices': (0, 1)},
    ),
    # mmpretrain names its convs by number, mmdet by their part.
    dict(
        type='MobileNetV2',
        groups=['(conv.0|expand_conv).conv', '(conv.2|linear_conv).conv'],
        bank=TIED,
        out_indices=(2, 4, 6),
    ),
]
DCN = dict(type='DCN', deform_groups=1)


def shared_layers(model):
    return [module for module in model.modules() if isinstance(module, SharedLayer)]


@pytest.mark.parametrize('network', NETWORKS, ids=lambda network: f'{network["type"]}-{network["bank"]["type"]}')
def test_folding_preserves_the_output_and_gives_the_plain_network(library, network):
    shared = evaluating(randomise_norms(backbone(**network)))
    x = image(32)
    before = shared(x)
    assert len(shared_layers(shared)) > 1
    fold_layers(shared)
    assert not shared_layers(shared)
    assert relative_difference(shared(x), before) < 1e-5
    plain = backbone(**{**network, 'bank': None})
    plain.load_state_dict(shared.state_dict(), strict=True)
    assert relative_difference(evaluating(plain)(x), before) < 1e-5
    assert sum(p.numel() for p in plain.parameters()) == sum(p.numel() for p in shared.parameters())


@pytest.mark.parametrize('bank', BANKS.values(), ids=BANKS)
def test_a_shared_tensor_is_stored_once(library, bank):
    model = backbone(depth=34, groups=['conv1', 'conv2'], bank=bank)
    state = model.state_dict()
    pointers = [tensor.data_ptr() for tensor in state.values() if tensor.numel()]
    assert len(set(pointers)) == len(pointers)
    # Under its first conv, where it has parameters at all.
    names = {conv: name for name, conv in model.named_modules() if isinstance(conv, SharedLayer)}
    banks = [each for banks in stage_banks(model).values() for each in banks if [*each.parameters()]]
    first = [names[each.layers[0]] for each in banks]
    assert len(first) == (0 if bank.get('width') else 2 * 4)
    assert list(dict.fromkeys(key.partition('.bank.')[0] for key in state if '.bank.' in key)) == first
    assert sum(p.numel() for p in model.parameters()) == sum(
        p.numel() for _, p in model.named_parameters(remove_duplicate=False)
    )


def test_the_gradient_of_a_tied_kernel_is_the_sum_over_its_convs(mmpretrain):
    shared = randomise_norms(backbone(groups=['conv2'])).double()
    plain = fold_layers(copy.deepcopy(shared))
    x = image().double()
    for model in (shared, plain):
        model(x)[0].square().mean().backward()
    for stage, found in stage_banks(shared).items():
        convs = [block.conv2 for block in list(plain.get_submodule(stage))[1:]]
        torch.testing.assert_close(found[0].filters.grad, sum(conv.weight.grad for conv in convs))


def test_a_copy_of_a_network_shares_within_itself_alone(mmpretrain):
    model = backbone(depth=34, groups=['conv[12]'], bank=BASIS)
    twin = copy.deepcopy(model)
    for convs in (shared_layers(model), shared_layers(twin)):
        first = [conv for conv in convs if conv.bank is convs[0].bank]
        assert len(first) == 4 and first == convs[0].bank.layers
    assert not {id(conv.bank) for conv in shared_layers(model)} & {id(conv.bank) for conv in shared_layers(twin)}


def test_bases_start_orthonormal_and_init_weights_leaves_them_so(library):
    for bank in (TIED, BASIS):
        model = backbone(depth=34, groups=['conv2'], bank=bank)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items() if 'bank' in name}
        plain_conv = model.layer1[0].conv2.weight.clone()
        model.init_weights()
        for name, tensor in before.items():
            assert torch.equal(model.state_dict()[name], tensor)
            rows = tensor.flatten(1)
            torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows)), rtol=0, atol=1e-5)
        assert not torch.equal(model.layer1[0].conv2.weight, plain_conv)


def test_the_first_block_and_single_convs_keep_their_own(mmpretrain):
    model = backbone(depth=34, groups=['conv1', 'conv2'])
    for name in stage_banks(model):
        stage = model.get_submodule(name)
        assert type(stage[0].conv1) is nn.Conv2d and type(stage[0].conv2) is nn.Conv2d
        assert all(isinstance(block.conv1, SharedLayer) for block in list(stage)[1:])
    mobile = backbone(type='MobileNetV2', groups=['conv.0.conv'])
    # Of the stages of 1, 2, 3, 4, 3, 3 and 1 blocks those with two besides the first share.
    assert list(stage_banks(mobile)) == ['layer3', 'layer4', 'layer5', 'layer6']


def test_one_pattern_is_one_bank(mmpretrain):
    single = backbone(depth=34, groups=['conv[12]'], bank=BASIS)
    double = backbone(depth=34, groups=['conv1', 'conv2'], bank=BASIS)
    assert [len(banks) for banks in stage_banks(single).values()] == [1] * 4
    assert [len(banks) for banks in stage_banks(double).values()] == [2] * 4
    assert [len(banks[0].layers) for banks in stage_banks(single).values()] == [4, 6, 10, 4]


def test_ranks_grow_with_the_width(mmpretrain):
    model = backbone(depth=34, groups=['conv2'], bank=BASIS)
    shapes = [tuple(banks[0].filters.shape[:2]) for banks in stage_banks(model).values()]
    assert shapes == [(8, 16), (16, 32), (32, 64), (64, 128)]
    assert [len(banks[0].layers[0].unique) for banks in stage_banks(model).values()] == [1, 2, 4, 8]


@pytest.mark.parametrize(
    'groups, bank, words',
    [
        (['conv9'], TIED, ["'conv9' forms no group", 'conv1, conv2, conv3']),
        (['conv2', 'downsample.0'], TIED, ["'downsample.0' forms no group"]),
        (['conv[13]'], TIED, ["'conv[13]'", 'layers that differ', '1x1 from 64 to 16 channels']),
        (['conv('], TIED, ["'conv('", 'not a regular expression']),
        ('conv2', TIED, ['groups is a list', "groups=['conv2']"]),
        (['conv2'], dict(BASIS, shared_rank=3), ['shared_rank=3 at 64 channels is 0.75 filters at the 16 channels']),
        (['conv2'], dict(BASIS, shared_rank=-4), ['shared_rank=-4']),
        (['conv2'], dict(BASIS, shared_rank=600), ['151 filters', '144 dimensions']),
        (['conv2'], dict(BASIS, shared_rank=0, unique_rank=0), ['0 filters', 'at least one filter']),
        ([], TIED, ['groups=[] has no pattern']),
        (['conv2', 'conv2'], TIED, ['one twice']),
        (['conv2', '.*2'], TIED, ["'.*2' forms no group", 'conv2 is in the group of another pattern']),
        (['conv2'], 'TiedFilters', ["bank='TiedFilters' is not a config of a bank"]),
    ],
)
def test_what_cannot_be_shared_is_refused_with_the_reason(library, groups, bank, words):
    with pytest.raises(SharingError) as error:
        backbone(groups=groups, bank=bank)
    for word in words:
        assert word in str(error.value)


def test_what_sharing_lacks_is_said(library):
    for sharing in (None, dict(groups=['conv2']), dict(group=['conv2'], bank=TIED)):
        with pytest.raises(SharingError, match=r'SharedResNet needs sharing=dict\(groups=\[...\], bank=dict'):
            MODELS.build(dict(type='SharedResNet', depth=50, sharing=sharing))


def test_grouped_convs_are_tied_but_have_no_basis(mmpretrain):
    kwargs = dict(type='ResNeXt', base_channels=64, stem_channels=64)
    assert shared_layers(backbone(**kwargs))[0].groups == 32
    with pytest.raises(SharingError, match='groups=32: use TiedFilters'):
        backbone(bank=BASIS, **kwargs)


def test_convs_that_pad_with_more_than_zeros_are_refused():
    blocks = [nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, padding_mode='reflect')) for _ in range(3)]
    with pytest.raises(SharingError, match="padding_mode='reflect', which cannot be shared"):
        share_layers(nn.Sequential(*blocks), ['0'], TIED)


@pytest.mark.parametrize(
    'scope, network, kind',
    [
        ('mmdet', dict(dcn=DCN, stage_with_dcn=(True,) * 4), 'DeformConv2dPack'),
        ('mmdet', dict(dcn=dict(DCN, type='DCNv2'), stage_with_dcn=(True,) * 4), 'ModulatedDeformConv2dPack'),
        ('mmdet', dict(conv_cfg=dict(type='ConvWS')), 'ConvWS2d'),
        ('mmpretrain', dict(type='SparseResNet'), 'SparseConv2d'),
    ],
)
def test_convs_of_other_kinds_are_never_shared(scope, network, kind):
    init_default_scope(scope)
    with pytest.raises(SharingError, match=f"'conv2' forms no group.*conv2 is a {kind}, which is never shared"):
        backbone(**network)


def test_stages_without_deformable_convs_share(mmdet):
    model = backbone(dcn=DCN, stage_with_dcn=(False, True, True, True))
    assert list(stage_banks(model)) == ['layer1']


def test_frozen_stages_freeze_their_banks(library):
    model = backbone(depth=34, bank=BASIS, frozen_stages=2, norm_eval=False)
    model.train()
    for trained, found in zip((False, False, True, True), stage_banks(model).values()):
        assert found[0].filters.requires_grad is trained
        assert all(conv.norm.training is trained for conv in found[0].layers)
    fold_layers(model)
    assert [stage[1].conv2.weight.requires_grad for stage in (model.layer2, model.layer3)] == [False, True]


def test_a_bank_of_a_frozen_stage_and_another_learns(library):
    sharing = dict(layers=r'layer[23]\.[1-9]\.conv1', bank=BANKS['repeated-between-layers'])
    model = backbone(depth=34, bank=None, type='SharedResNet', sharing=sharing, frozen_stages=2)
    model.train()
    assert not model.layer2[0].conv1.weight.requires_grad
    assert all(parameter.requires_grad for parameter in banks(model)[0].parameters())


def test_stages_that_are_frozen_in_train_freeze_their_banks(mmdet):
    sharing = dict(groups=['conv2.conv'], bank=TIED, own_blocks=0)
    model = MODELS.build(dict(type='SharedCSPDarknet', widen_factor=0.125, sharing=sharing, frozen_stages=3))
    for change in (model.train, model.eval, model.train):
        change()
    assert [bank.filters.requires_grad for bank in banks(model)] == [False, False, False, True]


def norm_and_product(conv, x):
    """What a conv on a basis computes, by a batch norm and a 1x1 conv."""
    x = nn.functional.conv2d(x, conv.filters(), None, conv.stride, conv.padding)
    return nn.functional.conv2d(conv.norm(x), conv.coefficients, conv.bias)


@pytest.mark.parametrize('training', [True, False], ids=['training', 'eval'])
@pytest.mark.parametrize('size', [2, 7], ids=['maps-smaller-than-filters', 'maps-larger-than-filters'])
def test_a_basis_computes_the_same_by_either_branch(size, training):
    stage = nn.ModuleList(nn.Sequential(nn.Conv2d(8, 6, 3, padding=1, bias=False)) for _ in range(2)).double()
    share_layers(stage, ['0'], dict(type='FilterBasis', shared_rank=4, unique_rank=2, base_channels=8), own_blocks=0)
    conv = randomise_norms(stage)[1][0].train(training)
    x = torch.randn(4, 8, size, size, dtype=torch.double)
    assert conv.plain_is_cheaper(x) == (size == 7)
    parameters = [conv.bank.filters, *conv.parameters()]
    gradients = []
    for work in (conv, lambda x: norm_and_product(conv, x)):
        given = x.clone().requires_grad_()
        gradients.append(torch.autograd.grad(work(given).square().sum(), [given, *parameters]))
    for found, expected in zip(*gradients):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_norm_eval_holds_for_the_norms_of_a_basis(library):
    model = backbone(depth=34, bank=BASIS, norm_eval=True)
    model.train()
    assert not any(conv.norm.training for conv in shared_layers(model))


def test_a_bank_has_the_layer_decay_of_its_first_conv(mmpretrain):
    wrapper = OPTIM_WRAPPER_CONSTRUCTORS.build(
        dict(
            type='mmpretrain.LearningRateDecayOptimWrapperConstructor',
            optim_wrapper_cfg=dict(optimizer=dict(type='SGD', lr=1.0, weight_decay=0.1)),
            paramwise_cfg=dict(layer_decay_rate=0.5),
        )
    )
    sharing = dict(groups=['conv2'], bank=TIED)
    model = MODELS.build(dict(type='ImageClassifier', backbone=dict(type='SharedResNet', depth=50, sharing=sharing)))
    rates = {id(p): group['lr'] for group in wrapper(model).param_groups for p in group['params']}
    assert all(id(p) in rates for p in model.parameters())
    for stage, found in stage_banks(model).items():
        first = model.get_submodule(stage)[1]
        assert rates[id(found[0].filters)] == rates[id(first.conv1.weight)] < 1


@pytest.mark.parametrize('bank', BANKS.values(), ids=BANKS)
def test_checkpointed_blocks_have_the_same_gradients(library, bank):
    models = [small(bank, with_cp=with_cp).double() for with_cp in (False, True)]
    models[1].load_state_dict(models[0].state_dict())
    x = image(32).double().requires_grad_()
    for model in models:
        model.train()
        model(x)[-1].square().mean().backward()
    for (name, a), b in zip(models[0].named_parameters(), models[1].parameters()):
        torch.testing.assert_close(a.grad, b.grad, msg=lambda text, name=name: f'{name}: {text}')


class SecondInItsWay(nn.Sequential):
    """Blocks, of which the second, the first that shares, runs in a way of its own."""

    def __init__(self, way, *blocks):
        super().__init__(*blocks)
        self.way = way

    def forward(self, x):
        for number, block in enumerate(self):
            x = self.way(block, x) if number == 1 else block(x)
        return x


def by_autocast(block, x):
    with torch.autocast('cpu', torch.bfloat16):
        return block(x).float()


@pytest.mark.parametrize('way', [partial(checkpoint, use_reentrant=True), by_autocast], ids=['checkpointed', 'mixed'])
@pytest.mark.parametrize('bank', KINDS.values(), ids=KINDS)
@pytest.mark.filterwarnings('ignore:Sharing saves nothing')
def test_a_pass_has_the_gradients_of_blocks_that_run_by_themselves(bank, way):
    network = SecondInItsWay(way, *chain(LAYERS['conv']))
    share_layers(network, groups=['0'], bank=bank)
    x, gradients = torch.randn(2, 16, 5, 5, requires_grad=True), []
    for run in (network, network.forward):  # which is no pass
        network.zero_grad()
        run(x).square().sum().backward()
        gradients.append([p.grad for p in network.parameters() if p.grad is not None])
    assert gradients[0]
    torch.testing.assert_close(*gradients)


def test_the_norm_of_a_basis_is_the_kind_that_the_network_uses(library):
    model = backbone(depth=34, bank=BASIS, norm_cfg=dict(type='SyncBN', requires_grad=False, eps=1e-3))
    norm = shared_layers(model)[0].norm
    assert isinstance(norm, nn.SyncBatchNorm) and norm.eps == 1e-3 and not norm.weight.requires_grad
    grouped = backbone(depth=34, groups=['conv2'], bank=BASIS, norm_cfg=dict(type='GN', num_groups=4))
    assert type(shared_layers(grouped)[0].norm) is nn.BatchNorm2d


def test_the_norm_of_a_basis_has_the_momentum_of_the_norm_behind(mmpretrain):
    model = backbone(depth=34, bank=BASIS, norm_cfg=dict(type='BN', momentum=0.03))
    assert {conv.norm.momentum for conv in shared_layers(model)} == {0.03}


def test_a_norm_of_another_width_is_not_the_norm_behind():
    stage = nn.ModuleList(
        nn.Sequential(nn.Conv2d(8, 16, 3, bias=False), nn.BatchNorm2d(8, momentum=0.5)) for _ in range(2)
    )
    share_layers(stage, ['0'], dict(type='FilterBasis', shared_rank=4, unique_rank=1, base_channels=8), own_blocks=0)
    assert {conv.norm.momentum for conv in shared_layers(stage)} == {0.1}  # that of a batch norm of its own


def test_sync_norms_come_and_go_by_conversion(mmpretrain):
    model = evaluating(randomise_norms(backbone(depth=34, bank=BASIS)))
    x = image()
    before = model(x)
    synced = convert_sync_batchnorm(model)
    assert all(isinstance(conv.norm, nn.SyncBatchNorm) for conv in shared_layers(synced))
    assert relative_difference(evaluating(revert_sync_batchnorm(synced))(x), before) == 0


def test_an_average_of_weights_averages_a_shared_tensor_once(mmpretrain):
    model = backbone(depth=34, bank=TIED)
    average = ExponentialMovingAverage(model, momentum=0.25)
    start = stage_banks(model)['layer1'][0].filters.detach().clone()
    for found in stage_banks(model).values():
        found[0].filters.data += 1
    average.update_parameters(model)  # the first step copies
    for found in stage_banks(model).values():
        found[0].filters.data += 1
    average.update_parameters(model)
    torch.testing.assert_close(stage_banks(average.module)['layer1'][0].filters.detach(), start + 1.25)


@pytest.mark.parametrize('name', ['mmdet', 'mmpretrain'])
def test_a_network_can_be_pickled_and_its_class_imported(name):
    init_default_scope(name)
    model = backbone()
    twin = pickle.loads(pickle.dumps(model))
    assert type(twin) is type(model) is import_module(f'mmshared.backbones.{name}').SharedResNet
    convs = shared_layers(twin)
    assert convs[0].bank is convs[1].bank


def test_a_bank_generates_once_in_a_forward_pass(library, monkeypatch):
    model = backbone(depth=34, groups=['conv1', 'conv2'], bank=BANKS['orthonormal'])
    made = []
    generate = OrthonormalFilterBasis.generate
    monkeypatch.setattr(OrthonormalFilterBasis, 'generate', lambda bank: made.append(bank) or generate(bank))
    for count in (1, 2):
        model(image())[-1].sum().backward()
        assert len(made) == len(set(made)) * count == 8 * count
    # Nothing is kept: new parameters give a new kernel, and a conv by itself works.
    conv = shared_layers(model)[0]
    before = conv.bank()
    conv.bank.directions.data += 0.1 * torch.randn_like(conv.bank.directions)
    assert not torch.allclose(conv.bank(), before)


def test_an_orthonormal_basis_stays_so(mmpretrain):
    model = backbone(depth=18, groups=['conv[12]'], bank=BANKS['orthonormal'])
    optimizer = torch.optim.SGD(model.parameters(), lr=1, weight_decay=0.1)
    bank = stage_banks(model)['layer1'][0]
    start = bank().detach()
    for _ in range(3):
        optimizer.zero_grad()
        model(image())[-1].square().mean().backward()
        optimizer.step()
    rows = bank().detach().flatten(1)
    assert (rows - start.flatten(1)).abs().max() > 1e-2
    torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows)), rtol=0, atol=1e-5)


def test_a_basis_of_a_resnext_is_what_the_last_conv_of_a_block_takes(mmpretrain):
    settings = dict(
        type='SharedBasisResNeXt_CIFAR',
        depth=50,
        shared_rank=8,
        unique_rank=4,
        sharing=dict(groups=['conv2.shared'], bank=TIED),
    )
    model = evaluating(randomise_norms(MODELS.build(settings)))
    block, bank = model.layer2[1], stage_banks(model)['layer2'][0]
    x = torch.randn(1, block.in_channels, 4, 4)
    inner = F.relu(block.bn1(block.conv1(x)))
    basis = torch.cat(
        [
            F.conv2d(inner, block.conv2.unique.weight, padding=1, groups=2),
            F.conv2d(inner, bank.filters, padding=1, groups=2),
        ],
        1,
    )  # 8 and 16 filters of 4 a group
    torch.testing.assert_close(block(x), F.relu(x + block.bn3(block.conv3(F.relu(block.bn2(basis))))))
    for rank in ('shared_rank', 'unique_rank'):
        with pytest.raises(SharingError, match=f'{rank}=6 .*give multiples of 4'):
            MODELS.build(dict(settings, **{rank: 6}))


def test_channel_attention_weights_what_a_block_adds(mmpretrain):
    model = evaluating(randomise_norms(MODELS.build(dict(type='ECAMobileNetV2'))))
    sizes = [
        [block.conv[-1].conv.kernel_size[0] for block in list(stage)[1:] if len(block.conv) == 4]
        for stage in (getattr(model, f'layer{i}') for i in range(1, 8))
    ]
    assert sizes == [[], [], [1, 1], [1, 1, 1], [3, 3], [3, 3], []]
    block, x = model.layer5[1], torch.randn(2, 96, 5, 5)
    added = block.conv[:3](x)
    kernel, means = block.conv[3].conv.weight.flatten(), F.pad(added.mean((2, 3)), (1, 1))
    weights = torch.sigmoid(sum(kernel[i] * means[:, i : i + 96] for i in range(3)))
    torch.testing.assert_close(block(x), x + added * weights[..., None, None])


def test_a_frozen_stage_of_a_dense_net_freezes_what_it_shares(mmpretrain):
    arch, sharing = dict(growth_rate=8, depths=[3, 4], init_channels=16), dict(groups=['conv2'], bank=TIED)
    model = MODELS.build(dict(type='SharedDenseNet_CIFAR', arch=arch, frozen_stages=1, in_channels=1, sharing=sharing))
    assert [len(bank.layers) for bank in banks(model)] == [2, 3]
    assert not any(p.requires_grad for p in model.stages[0].parameters()) and model.stem.in_channels == 1


@pytest.mark.parametrize('bank', BANKS.values(), ids=BANKS)
def test_a_bank_in_mixed_precision_runs_in_that_precision(mmpretrain, bank):
    model = evaluating(backbone(depth=34, bank=bank))
    x = image()
    exact = model(x)
    with torch.autocast('cpu', torch.bfloat16):
        assert shared_layers(model)[0](torch.randn(1, 16, 8, 8)).dtype == torch.bfloat16
        assert 1e-6 < relative_difference([each.float() for each in model(x)], exact) < 0.1


class TestFit:
    """Starting a bank from the kernels of a plain network."""

    def group(self, bank):
        stage = chain(LAYERS['conv'])
        kernels = [block[0].weight.detach().clone() for block in list(stage)[1:]]
        share_layers(stage, ['0'], bank)
        return banks(stage)[0].eval(), kernels

    def test_tied_filters_are_the_least_squares_fit(self):
        bank, kernels = self.group(TIED)
        bank.fit(kernels)
        x = bank.filters.detach().requires_grad_()
        sum((x - kernel).square().sum() for kernel in kernels).backward()
        assert x.grad.abs().max() < 1e-5

    def test_a_basis_of_full_rank_loses_nothing(self):
        bank, kernels = self.group(dict(BASIS, shared_rank=192, unique_rank=4))  # 48 = 3 x 16 filters
        bank.fit(kernels)
        for conv, kernel in zip(bank.layers, kernels):
            torch.testing.assert_close(conv.eval().dense()[0], kernel, rtol=0, atol=1e-5)
            assert conv.dense()[1].abs().max() < 1e-6

    def test_a_basis_is_fitted_whatever_its_norms_are(self):
        bank, kernels = self.group(dict(BASIS, shared_rank=192, unique_rank=4))
        for conv in bank.layers:
            randomise_norms(conv).norm.eps = 0.5
        bank.fit(kernels)
        for conv, kernel in zip(bank.layers, kernels):
            weight, bias = conv.eval().dense()
            torch.testing.assert_close(weight, kernel, rtol=0, atol=1e-5)
            assert bias.abs().max() < 1e-6

    def test_templates_may_be_more_than_convs(self):
        with pytest.warns(UserWarning, match='saves nothing'):
            bank, kernels = self.group(dict(type='TemplateBank', num_templates=5))
        bank.fit(kernels)
        for conv, kernel in zip(bank.layers, kernels):
            torch.testing.assert_close(conv.dense()[0], kernel, rtol=0, atol=1e-5)

    def test_a_basis_keeps_the_leading_singular_values(self):
        bank, kernels = self.group(dict(BASIS, shared_rank=32, unique_rank=0))
        bank.fit(kernels)
        rows = torch.cat([kernel.flatten(1) for kernel in kernels])
        tail = torch.linalg.svdvals(rows)[8:].square().sum()  # Eckart and Young
        error = sum((conv.eval().dense()[0] - kernel).square().sum() for conv, kernel in zip(bank.layers, kernels))
        torch.testing.assert_close(error, tail, rtol=1e-4, atol=0)

    def test_own_filters_lower_the_error_and_are_orthogonal_to_the_shared_ones(self):
        errors = []
        for unique_rank in (0, 4, 8):
            torch.manual_seed(0)
            bank, kernels = self.group(dict(BASIS, shared_rank=32, unique_rank=unique_rank))
            bank.fit(kernels)
            errors.append(sum((conv.eval().dense()[0] - k).norm() for conv, k in zip(bank.layers, kernels)).item())
            for conv in bank.layers:
                assert (conv.unique.flatten(1) @ bank.filters.flatten(1).T).abs().max() < 1e-5 if unique_rank else True
        assert errors[0] > errors[1] > errors[2]
