"""Laws of the one door: any repeated layer of any network, and every promise kept behind it."""

import copy
import pickle
import re
import warnings
from unittest.mock import patch

import pytest
import torch
from mmcv.cnn import ConvModule
from mmengine.registry import MODELS
from torch import nn

from helpers import (
    BASIS,
    KINDS,
    LAYERS,
    REPEATED,
    TIED,
    TWO_STAGES,
    backbone,
    chain,
    evaluating,
    image,
    randomise_norms,
    refused,
    refuses,
    refuses_to_share,
)
from mmshared import (
    Bank,
    SharedLayer,
    SharingError,
    TiedFilters,
    banks,
    deploy,
    fold_layers,
    named_banks,
    repeated_layers,
    share_layers,
)
from mmshared.sharing.deployment import relative_difference


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(width), nn.MultiheadAttention(width, 4, batch_first=True)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        y = self.norm(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.fc2(self.fc1(x).relu())


class Transformer(nn.Module):
    """A network of somebody else: six attention blocks and a head."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Attention(16) for _ in range(6))
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@pytest.mark.parametrize('layer', LAYERS)
@pytest.mark.parametrize('kind', KINDS)
def test_every_bank_folds_a_conv_and_a_linear(kind, layer):
    network = chain(LAYERS[layer])
    plain = copy.deepcopy(network)
    share_layers(network, groups=['0'], bank=KINDS[kind])
    state = [tensor for tensor in network.state_dict().values() if tensor.numel()]
    assert len({tensor.data_ptr() for tensor in state}) == len(state)
    masks = kind in ('repeated-bireal', 'repeated-static-drop', 'repeated-random-bireal')  # as large as kernels
    assert masks or sum(map(torch.numel, state)) < sum(map(torch.numel, plain.state_dict().values()))
    evaluating(randomise_norms(network))
    x = torch.randn(2, 16, 8, 8) if 'conv' in layer else torch.randn(2, 5, 16)
    before = network(x)
    for shared in banks(network)[0].layers:
        weight, bias = shared.dense()
        if bias is shared.bias:
            torch.testing.assert_close(shared.weight, weight)
        else:
            with pytest.raises(SharingError, match='is not all of it'):
                assert shared.weight is not None
            assert not hasattr(shared, 'weight')  # so that initialisers and tracers pass it over
        y = torch.randn_like(x)
        torch.testing.assert_close(shared(y), shared.compute(y, weight, bias), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.jit.trace(network, x)(x), before, rtol=1e-4, atol=1e-5)
    fold_layers(network)
    assert [type(module) for module in network.modules()] == [type(module) for module in plain.modules()]
    torch.testing.assert_close(network(x), before, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('bank', [*KINDS.values(), dict(BASIS, shared_rank=64)], ids=[*KINDS, 'basis-of-high-rank'])
def test_torch_exports_every_bank_once_for_all_sizes(bank):
    network, x = evaluating(chain(LAYERS['conv'])), torch.randn(2, 16, 24, 24)
    share_layers(network, groups=['0'], bank=bank)
    sizes = {2: torch.export.Dim('height', max=64), 3: torch.export.Dim('width', max=64)}
    program = torch.export.export(network, (x,), dynamic_shapes=(sizes,))
    for each in (x, torch.randn(2, 16, 4, 5)):
        torch.testing.assert_close(program.module()(each), network(each), rtol=1e-4, atol=1e-5)
    assert program.state_dict.keys() == network.state_dict().keys()


@pytest.mark.parametrize('kind', KINDS)
def test_every_bank_shares_a_network_of_half_precision(kind):
    network = chain(LAYERS['conv']).to(torch.bfloat16)
    share_layers(network, groups=['0'], bank=KINDS[kind])
    assert {shared.dense()[0].dtype for shared in banks(network)[0].layers} == {torch.bfloat16}


@pytest.mark.parametrize('layer', ['conv', 'linear'])
@pytest.mark.parametrize('kind', KINDS)
def test_what_follows_a_shared_layer_may_work_in_place(kind, layer):
    network = nn.Sequential(*[nn.Sequential(LAYERS[layer](), nn.ReLU(inplace=True)) for _ in range(4)])
    share_layers(network, groups=['0'], bank=KINDS[kind])
    x = torch.randn(2, 16, 16, 16)
    expected = copy.deepcopy(network)
    for block in expected:
        block[1].inplace = False
    for each in (network, expected):
        each.train()(x).square().sum().backward()
    for found, wanted in zip(network.parameters(), expected.parameters()):
        assert (found.grad is None) == (wanted.grad is None)
        assert found.grad is None or torch.equal(found.grad, wanted.grad)


def test_a_relaxed_tie_is_the_mean_and_the_best_of_its_rank():
    network = chain(LAYERS['linear'])
    weights = [block[0].weight.detach().clone() for block in network][1:]
    (bank,) = share_layers(network, groups=['0'], bank=dict(type='RelaxedTie', rank=3))
    assert all(torch.equal(layer.weight, bank.shared) for layer in bank.layers)  # tied at the start
    bank.fit(weights)
    mean = torch.stack(weights).mean(0)
    torch.testing.assert_close(bank.shared.detach(), mean)
    for layer, weight in zip(bank.layers, weights):
        tail = torch.linalg.svdvals(weight - mean)[3:].square().sum()  # Eckart and Young
        torch.testing.assert_close((layer.weight - weight).square().sum(), tail, rtol=1e-4, atol=1e-6)
    for rank in (0, 17, 2.5):
        with pytest.raises(SharingError, match=f'rank={rank} is not a rank of weights .* from 1 to 16'):
            share_layers(chain(LAYERS['linear']), groups=['0'], bank=dict(type='RelaxedTie', rank=rank))


@pytest.mark.slow
def test_listed_layers_are_those_that_the_door_takes():
    for own_blocks in (0, 1, 2):
        for network in (Transformer(), MODELS.build(dict(type='mmpretrain.ResNet', depth=50))):
            listed = repeated_layers(network, own_blocks)
            names = [name for group in listed for name in group.layers]
            assert listed and len(set(names)) == len(names)
            for group in listed:
                layer = dict(network.named_modules()).get(group.layers[0])
                if layer is not None:
                    assert layer.weight.shape == group.shape and layer.weight.numel() == group.parameters
                (made,) = share_layers(
                    network,
                    stages=re.escape(group.stage),
                    groups=[re.escape(group.group)],
                    bank=TIED,
                    own_blocks=own_blocks,
                )
                assert made.names == group.layers and (made.stage, made.group) == (group.stage, re.escape(group.group))
            assert not repeated_layers(network, own_blocks)


def test_the_layers_of_a_resnet_50_that_repeat():
    # What tying all of them saves is 47 % of the backbone.
    network = MODELS.build(dict(type='mmpretrain.ResNet', depth=50))
    saved = sum((len(group.layers) - 1) * group.parameters for group in repeated_layers(network, own_blocks=0))
    assert saved == 10_969_088
    assert {group.stage for group in repeated_layers(network)} == {f'layer{i}' for i in range(1, 5)}


def test_an_attention_shares_its_packed_projection_and_folds():
    network = evaluating(Transformer())
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    plain, x = copy.deepcopy(network), torch.randn(2, 5, 16)
    for group in repeated_layers(network):
        share_layers(network, stages=group.stage, groups=[group.group], bank=dict(type='RelaxedTie', rank=4))
    assert {bank.group for bank in banks(network)} == {'attn.in_proj', 'attn.out_proj', 'fc1', 'fc2'}
    network.load_state_dict(plain.state_dict())
    with torch.no_grad():
        fast = network(x)
    torch.testing.assert_close(fast, network(x), rtol=1e-4, atol=1e-5)
    network(x).sum().backward()
    assert all(parameter.grad is not None for bank in banks(network) for parameter in bank.parameters())
    twin = pickle.loads(pickle.dumps(network))
    torch.testing.assert_close(twin(x), network(x))
    fold_layers(network)
    assert [*network.state_dict()] == [*plain.state_dict()]
    assert type(network.blocks[1].attn) is nn.MultiheadAttention
    torch.testing.assert_close(network(x), fast, rtol=1e-4, atol=1e-5)
    plain.load_state_dict(network.state_dict())


def test_promises_hold_for_a_network_of_somebody_else_and_its_copy():
    plain = Transformer()
    network = Transformer()
    for name in ('fc1', 'attn.in_proj'):
        share_layers(network, groups=[re.escape(name)], bank=TIED)
    for each in (network, copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        each.load_state_dict(plain.state_dict(), strict=False)
        mean = torch.stack([block.fc1.weight for block in plain.blocks[1:]]).mean(0)
        torch.testing.assert_close(each.blocks[3].fc1.weight, mean)
        mean = torch.stack([block.attn.in_proj_weight for block in plain.blocks[1:]]).mean(0)
        torch.testing.assert_close(each.blocks[2].attn.in_proj_weight, mean)
        half = {key: value for key, value in plain.state_dict().items() if 'blocks.4.' not in key}
        refuses(each, half, 'blocks has 5 blocks there and 6 here')
        for key in ('blocks.4.fc1.weight', 'blocks.4.norm.bias', 'blocks.2.attn.in_proj_weight'):
            refuses(each, {k: v for k, v in plain.state_dict().items() if k != key}, key)


def test_a_part_of_a_network_takes_no_plain_weights_that_others_share():
    network, plain = Transformer(), Transformer()
    share_layers(network, groups=['fc1'], bank=TIED)
    refuses(network.blocks[2], plain.blocks[2].state_dict(), 'shares with layers outside of what is loaded')
    refuses(network.blocks, {k: v for k, v in plain.blocks.state_dict().items() if '2.fc1' not in k}, 'neither as')
    network.blocks.load_state_dict(plain.blocks.state_dict())
    with refused(network, 'shares with layers of this module and is not part of it'):
        fold_layers(network.blocks[2])


def test_a_bank_generates_once_in_a_pass_of_a_network_of_somebody_else():
    network, made = Transformer(), []
    (bank,) = share_layers(
        network, groups=['fc1'], bank=dict(type='OrthonormalFilterBasis', shared_rank=32, unique_rank=4)
    )
    generate = bank.generate
    bank.generate = lambda: made.append(1) or generate()
    x = torch.randn(2, 5, 16)
    for count in (1, 2):
        network(x).sum().backward()
        assert len(made) == count
    # A pass that ends by an error leaves nothing behind, and one that was interrupted begins anew.
    with pytest.raises(RuntimeError):
        network(torch.randn(2, 5, 17))
    assert not bank.generates_once

    def interrupt(*_):
        raise KeyboardInterrupt

    handle = network.blocks[3].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        network(x)
    handle.remove()
    bank.directions.data += 0.1 * torch.randn_like(bank.directions)
    expected = copy.deepcopy(network)
    fold_layers(expected)
    torch.testing.assert_close(network(x), expected(x), rtol=1e-4, atol=1e-5)
    made.clear()
    fold_layers(network)
    assert len(made) == 1


@pytest.mark.parametrize('own_blocks', [0, 1, 2])
def test_each_stage_keeps_first_blocks_of_its_own(own_blocks):
    network = nn.ModuleDict({name: chain(LAYERS['conv'], 5) for name in 'abc'})
    made = share_layers(network, groups=['0'], bank=TIED, stages='[bc]', own_blocks=own_blocks)
    assert [bank.names for bank in made] == [tuple(f'{name}.{i}.0' for i in range(own_blocks, 5)) for name in 'bc']


def test_groups_are_named_outright_across_stages():
    network = nn.ModuleDict(dict(cls=chain(LAYERS['conv'], 3), reg=chain(LAYERS['conv'], 3)))
    (bank,) = share_layers(network, layers=r'(cls|reg)\.[12]\.0', bank=TIED)
    assert bank.names == ('cls.1.0', 'cls.2.0', 'reg.1.0', 'reg.2.0')
    assert network['reg'][2][0].weight is bank.filters
    assert [*named_banks(network)] == [r'(cls|reg)\.[12]\.0']


def test_a_group_of_one_is_allowed_where_it_becomes_smaller():
    network = nn.Sequential(nn.Flatten(), nn.Linear(256, 64))
    (bank,) = share_layers(network, layers='1', bank=dict(type='FilterBasis', shared_rank=2, unique_rank=0))
    assert sum(p.numel() for p in network.parameters()) == 8 * 256 + 64 * 8 + 64
    weight = torch.randn(64, 8) @ torch.randn(8, 256)
    network.load_state_dict({'1.weight': weight, '1.bias': torch.zeros(64)})
    torch.testing.assert_close(network[1].weight, weight, rtol=1e-3, atol=1e-3)
    for bank in (TIED, dict(type='FilterBasis', shared_rank=60, unique_rank=0)):
        words = r'A group of one layer .* for 16,384'
        refuses_to_share(nn.Sequential(nn.Linear(256, 64)), words, layers='0', bank=bank)


def test_layers_that_stand_in_several_places_are_replaced_in_all_and_tied_weights_left_alone():
    tower = chain(LAYERS['conv'], 3)
    network = nn.ModuleDict(dict(a=tower, b=nn.Sequential(tower[1], nn.ReLU())))
    share_layers(network, groups=['0'], bank=TIED)
    assert isinstance(network['b'][0][0], SharedLayer) and network['b'][0][0] is network['a'][1][0]
    fold_layers(network)
    assert type(network['b'][0][0]) is nn.Conv2d and network['b'][0][0] is network['a'][1][0]
    tied = chain(LAYERS['linear'], 4)
    tied[3][0].weight = tied[2][0].weight
    assert not repeated_layers(tied)


def test_depthwise_and_grouped_convs_are_tied():
    network = chain(lambda: nn.Conv2d(16, 16, 3, padding=1, groups=16), 3)
    plain, x = copy.deepcopy(network), torch.randn(1, 16, 5, 5)
    share_layers(network, groups=['0'], bank=TIED)
    network.load_state_dict(plain.state_dict())
    before = network(x)
    torch.testing.assert_close(fold_layers(network)(x), before)


@pytest.mark.parametrize(
    'network',
    [
        dict(
            type='SharedDenseNet_CIFAR',
            arch=dict(growth_rate=8, depths=[2, 3], init_channels=16),
            sharing=dict(groups=['conv2'], own_blocks=0, bank=dict(BASIS, base_channels=32)),
        ),
        dict(
            type='SharedRes2Net',
            depth=50,
            **TWO_STAGES,
            scales=4,
            base_width=26,
            sharing=dict(
                groups=[r'convs.\d'], bank=dict(type='FilterBasis', shared_rank=8, unique_rank=2, base_channels=26)
            ),
        ),
        dict(
            type='SharedWideResNet_CIFAR',
            depth=16,
            widen_factor=1,
            sharing=dict(groups=['conv[12]'], bank=dict(BASIS, base_channels=16, shared_rank=8, unique_rank=1)),
        ),
    ],
    ids=lambda network: network['type'],
)
def test_the_bias_of_a_fold_goes_into_every_norm_that_sees_it(mmpretrain, network):
    shared = evaluating(randomise_norms(MODELS.build(network)))
    x = image()
    before = shared(x)
    fold_layers(shared)
    plain = MODELS.build({**{k: v for k, v in network.items() if k != 'sharing'}, 'type': network['type'][6:]})
    plain.load_state_dict(shared.state_dict(), strict=True)
    assert relative_difference(evaluating(plain)(x), before) < 1e-5


@pytest.mark.parametrize('order', [('norm', 'conv', 'act'), ('conv', 'norm', 'act')])
def test_a_norm_before_its_conv_is_not_the_norm_behind(order):
    network = nn.Sequential(
        *[ConvModule(16, 16, 3, padding=1, norm_cfg=dict(type='BN'), order=order) for _ in range(4)]
    )
    share_layers(network, groups=['conv'], bank=KINDS['basis'])
    evaluating(randomise_norms(network))
    x = torch.randn(2, 16, 8, 8)
    before = network(x)
    torch.testing.assert_close(deploy(network, x)(x), before, rtol=1e-4, atol=1e-4)
    fold_layers(network)
    torch.testing.assert_close(network(x), before, rtol=1e-4, atol=1e-4)
    biased = [module.conv.bias is not None for module in network]
    # Behind the last conv there is no norm: of the others the norm of the next block is behind an activation.
    assert biased == ([False, True, True, True] if order[0] == 'norm' else [False] * 4)


def test_a_second_call_keeps_what_the_first_shared(mmpretrain):
    network = backbone(depth=34, bank=None)
    share_layers(network, groups=['conv1'], bank=BASIS)
    share_layers(network, groups=['conv2'], bank=BASIS)
    assert [*named_banks(network)] == [f'layer{i}.conv{j}' for i in range(1, 5) for j in (1, 2)]
    assert [*named_banks(network.layer2)] == ['conv1', 'conv2']
    pair = nn.ModuleList([copy.deepcopy(network).layer1 for _ in range(2)])
    assert [*named_banks(pair)] == ['0.conv1', '0.conv2', '1.conv1', '1.conv2']
    twin = backbone(depth=34, groups=['conv1', 'conv2'], bank=BASIS)
    twin.load_state_dict(network.state_dict(), strict=True)


def test_channels_last_survives_surgery_fold_and_deploy(mmpretrain):
    x = image().contiguous(memory_format=torch.channels_last)
    for kind in ('tied', 'basis', 'templates', 'repeated-linear', 'relaxed'):
        network = backbone(depth=34, bank=None).to(memory_format=torch.channels_last)
        share_layers(network, groups=['conv[12]'], bank=dict(KINDS[kind]))
        evaluating(randomise_norms(network))
        before = network(x)
        for plain in (deploy(network, x), fold_layers(network)):
            for module in plain.modules():
                if isinstance(module, nn.Conv2d) and module.kernel_size[0] > 1:
                    assert module.weight.is_contiguous(memory_format=torch.channels_last)
            assert relative_difference(plain(x), before) < 1e-4


def test_a_stage_may_have_children_without_parameters():
    network = nn.Sequential(*[nn.Sequential(LAYERS['conv'](), nn.ReLU()) for _ in range(3)], nn.MaxPool2d(2))
    plain = copy.deepcopy(network)
    share_layers(network, groups=['0'], bank=TIED)
    copy.deepcopy(network).load_state_dict(network.state_dict(), strict=True)
    network.load_state_dict(plain.state_dict(), strict=False)


def test_a_bank_of_somebody_else_keeps_its_own_start():

    class Halves(Bank):
        layer_class = SharedLayer

        def __init__(self, layers):
            super().__init__()
            self.filters = nn.Parameter(torch.full_like(layers[0].weight, 0.5))

        def basis(self):
            return self.filters

    network = nn.Sequential(*[nn.ModuleDict(dict(a=LAYERS['conv'](), b=LAYERS['conv']())) for _ in range(3)])
    share_layers(network, groups=['a', 'b'], bank=dict(type=Halves))
    assert all(bank.filters.eq(0.5).all() for bank in banks(network))


def test_a_mistake_in_a_layer_of_somebody_else_is_named():
    class Mistyped(SharedLayer):
        def dense(self):
            return self.bank.filtres, self.bias

    class Weighted(SharedLayer):
        def __init__(self, layer, bank, norm=None):
            super().__init__(layer, bank, norm)
            self.weight = nn.Parameter(torch.zeros_like(layer.weight))

    class Mistaken(TiedFilters):
        layer_class = Mistyped

    network = chain(LAYERS['linear'])
    share_layers(network, groups=['0'], bank=dict(type=Mistaken))
    with pytest.raises(RuntimeError, match='Mistyped.dense.. failed: .* no attribute .filtres'):
        hasattr(network[1][0], 'weight')
    Mistaken.layer_class = Weighted
    words = 'The weight of a Weighted is what dense.. returns: give its parameter another name'
    refuses_to_share(chain(LAYERS['linear']), words, groups=['0'], bank=dict(type=Mistaken))


def test_a_checkpoint_without_anything_shared_is_left_to_torch(mmpretrain):
    network = MODELS.build(
        dict(
            type='ImageClassifier',
            head=dict(type='LinearClsHead', num_classes=3, in_channels=512),
            backbone=dict(type='SharedResNet', depth=18, sharing=dict(groups=['conv[12]'], bank=TIED)),
        )
    )
    head = {'head.fc.weight': torch.ones(3, 512)}
    network.load_state_dict(head, strict=False)
    assert network.head.fc.weight.eq(1).all()


def test_nothing_draws_from_the_global_generator_for_nothing(mmpretrain):
    network = evaluating(randomise_norms(backbone(depth=34, bank=BASIS)))
    x = image()
    state = torch.get_rng_state()
    deploy(network, x)
    fold_layers(network)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    'bank, words',
    [
        (dict(type='TiedFiltres'), "There is no bank 'TiedFiltres': there are TiedFilters, "),
        (dict(type='TemplateBank'), "do not fit TemplateBank: missing a required argument: 'num_templates'"),
        (dict(type='TemplateBank', num_templates=2, rank=1), "unexpected keyword argument 'rank'"),
        (dict(type='LN'), 'LN is not a bank'),
        (dict(type='OrthonormalFilterBasis', shared_rank=4), "missing a required argument: 'unique_rank'"),
        (dict(type='LoopedTemplates', kernels=2, num_templates=1), r'kernels=\[2\] is not a list of kernels'),
        (dict(REPEATED, input_channels='16'), "input_channels='16' is not a number of channels"),
    ],
)
def test_a_mistake_in_a_bank_is_one_sentence(bank, words):
    refuses_to_share(Transformer(), words, groups=['fc1'], bank=bank)


@pytest.mark.parametrize(
    'arguments, words',
    [
        (dict(), 'Say which layers are to share'),
        (dict(groups=['fc1'], layers='.*'), 'Say which layers are to share'),
        (dict(layers='.*fc1', stages='blocks'), 'leave one of them out'),
        (dict(groups=['fc1'], stages='encoder'), "stages='encoder' matches no stage: there are blocks"),
        (dict(groups=['fc1'], stages=['blocks']), r"stages=\['blocks'\] is not a pattern"),
        (dict(groups=5), r'write groups=\[5\]'),
        (dict(layers=5), 'layers=5 is not a pattern'),
        (dict(groups=['fc3'], own_blocks=2), 'outside its first 2 blocks'),
        (dict(groups=['fc1'], own_blocks=-1), 'own_blocks=-1 is not a number of blocks'),
        (dict(layers='blocks.1.fc'), r"'blocks.1.fc' in layers matches .* there are blocks.1.fc[12], blocks.1.fc[12]"),
        (dict(layers='blocks.*'), 'makes one group of layers that differ: linear from'),
        (dict(groups=['fc1', 'fc2'], bank=[TIED]), 'There are 1 banks for the groups'),
    ],
)
def test_what_the_door_cannot_do_is_one_sentence_and_changes_nothing(arguments, words):
    refuses_to_share(Transformer(), words, **{'bank': TIED, **arguments})


def test_a_bank_that_saves_nothing_warns_with_the_numbers():
    with pytest.warns(
        UserWarning, match=r"saves nothing here: the layers of \['fc1'\] have 4,136 parameters for 2,560"
    ):
        share_layers(Transformer(), groups=['fc1'], bank=dict(type='TemplateBank', num_templates=8))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        share_layers(Transformer(), groups=['fc1'], bank=TIED)


@pytest.mark.parametrize(
    'value, words',
    [
        (torch.full((32, 16), float('nan')), 'not finite in blocks.2.fc1.weight'),
        (torch.zeros(32, 16).to_sparse(), 'blocks.2.fc1.weight is sparse'),
        ([1, 2], 'blocks.2.fc1.weight is a list, not a plain tensor'),
        (torch.zeros(16, 16), 'blocks.2.fc1.weight has the shape (16, 16) there and (32, 16) here'),
    ],
)
def test_a_damaged_tensor_is_refused(value, words):
    network = Transformer()
    share_layers(network, groups=['fc1'], bank=TIED)
    refuses(network, {**Transformer().state_dict(), 'blocks.2.fc1.weight': value}, words)
    refuses(network, {**Transformer().state_dict(), 5: torch.zeros(2)}, 'names that are not strings')


def test_a_checkpoint_of_layers_shared_outright_in_another_way_is_refused():
    networks = [chain(LAYERS['conv'], 5) for _ in range(2)]
    for network, pattern in zip(networks, (r'[012]\.0', r'\d\.0')):
        share_layers(network, layers=pattern, bank=TIED)
    refuses(networks[1], networks[0].state_dict(), 'shared in another way: it has 3.0.weight and no 0.0.weight')


def test_numbers_of_eight_bits_are_loaded():
    network = chain(LAYERS['linear'])
    share_layers(network, groups=['0'], bank=TIED)
    state = {key: tensor.to(torch.float8_e4m3fn) for key, tensor in chain(LAYERS['linear']).state_dict().items()}
    network.load_state_dict(dict(state))
    torch.testing.assert_close(network[0][0].weight, state['0.0.weight'].float())


@pytest.mark.parametrize('way', ['load', 'fold'])
@torch.no_grad()
def test_nothing_that_an_interrupted_pass_made_is_used_again(way):
    network = chain(LAYERS['conv'])
    (bank,) = share_layers(network, groups=['0'], bank=KINDS['templates'])
    wanted = copy.deepcopy(network)
    nn.init.normal_(banks(wanted)[0].templates)
    with patch.object(bank.layers[-1], 'forward', side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        network(torch.randn(1, 16, 8, 8))  # its hooks at the end do not run
    if way == 'load':
        network.load_state_dict(wanted.state_dict())
    else:
        bank.templates.copy_(banks(wanted)[0].templates)
        fold_layers(network)
    assert torch.equal(network[2][0].weight, wanted[2][0].weight)


def test_the_start_of_a_bank_is_drawn_after_the_library_has_drawn_over_it(mmdet):
    # As DETR does: over every parameter with two dimensions or more.
    from mmengine.model import BaseModule

    from mmshared import SharingMixin

    class Drawing(BaseModule, Transformer):
        def __init__(self):
            BaseModule.__init__(self)
            self.blocks = Transformer().blocks

        def init_weights(self):
            super().init_weights()
            for parameter in self.parameters():
                nn.init.constant_(parameter, 7.0)

    class SharedDrawing(SharingMixin, Drawing):
        pass

    class SharedTransformer(SharingMixin, Transformer):  # whose plain class has no init_weights
        pass

    SharedTransformer(sharing=dict(groups=['fc1'], bank=TIED)).init_weights()

    network = SharedDrawing(sharing=dict(groups=['fc1'], bank=TIED))
    start = network.blocks[1].fc1.weight.detach().clone()
    network.init_weights()
    assert torch.equal(network.blocks[1].fc1.weight, start) and network.blocks[1].fc2.weight.eq(7).all()
    assert network.blocks[1].fc1.bias.eq(7).all()
