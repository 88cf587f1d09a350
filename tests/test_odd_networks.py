"""The door holds for networks that use a layer in several places, and a refusal leaves everything as it was."""

import pytest
import torch
from blocks import Towers, conv_modules
from torch import nn

from helpers import (
    BANKS,
    BASIS,
    REPEATED,
    TIED,
    evaluating,
    image,
    randomise_norms,
    refuses,
    refuses_to_share,
    state_of,
)
from mmshared import Bank, SharedLayer, SharingError, banks, fold_layers, share_layers
from mmshared.engine.build import feature_maps
from mmshared.sharing.deployment import relative_difference


@pytest.mark.parametrize('bank', [BASIS, BANKS['repeated-swish']])
def test_a_bias_stays_where_norms_of_several_places_see_it(bank):
    network, x = Towers(), torch.randn(2, 16, 8, 8)
    share_layers(network, groups=['conv'], bank=bank)
    evaluating(randomise_norms(network))
    for layer in banks(network)[0].layers:
        if getattr(layer, 'added_bias', None) is not None:
            nn.init.normal_(layer.added_bias)
    expected = [y.clone() for y in network(x)]
    assert relative_difference(fold_layers(network)(x), expected) < 1e-4


def test_a_plain_checkpoint_is_fitted_under_all_names_of_a_layer():
    plain, network = Towers(), Towers()
    share_layers(network, groups=['conv'], bank=TIED)
    network.load_state_dict(plain.state_dict())
    mean = (plain.towers[0][1].conv.weight + plain.towers[0][2].conv.weight) / 2
    torch.testing.assert_close(network.towers[2][2].conv.weight, mean)


def test_a_refused_group_leaves_the_biases_of_another():
    network = nn.Sequential(*[nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1)) for _ in range(3)])
    before = state_of(network)
    with pytest.raises(SharingError, match='more than that'):
        share_layers(network, groups=['0', '1'], bank=[REPEATED, dict(BASIS, shared_rank=40, base_channels=8)])
    assert all(torch.equal(before[key], tensor) for key, tensor in network.state_dict().items())


def test_a_plain_group_without_a_bias_is_refused():
    network, plain = conv_modules(bias=True), conv_modules(bias=True).state_dict()
    share_layers(network, layers=r'[1-3]\.conv', bank=TIED)
    del plain['2.conv.bias']
    refuses(network, plain, 'has 2.conv.weight and no 2.conv.bias')


def test_a_bank_of_another_size_is_refused_for_layers_named_outright():
    networks = [conv_modules(), conv_modules()]
    for network, templates in zip(networks, (2, 3)):
        share_layers(network, layers=r'[1-3]\.conv', bank=dict(type='TemplateBank', num_templates=templates))
    refuses(networks[0], networks[1].state_dict(), 'has the shape')


class FrozenLayer(SharedLayer):
    def dense(self):
        return self.bank() + self.bank.offset, self.bias


class Frozen(Bank):
    layer_class = FrozenLayer

    def __init__(self, layers):
        super().__init__()
        self.filters = nn.Parameter(layers[0].weight.detach().clone())
        self.offset = nn.Parameter(torch.zeros(()), requires_grad=False)

    def generate(self):
        return self.filters


def test_what_is_trained_stays_so():
    network = conv_modules()
    (bank,) = share_layers(network, groups=['conv'], bank=dict(type=Frozen))
    assert bank.filters.requires_grad and not bank.offset.requires_grad
    network = conv_modules(bias=True)
    for block in network:
        block.conv.weight.requires_grad_(False)
    share_layers(network, groups=['conv'], bank=TIED)
    conv = fold_layers(network)[2].conv
    assert not conv.weight.requires_grad and conv.bias.requires_grad


@pytest.mark.parametrize('bank', [TIED, BASIS], ids=['tied', 'basis'])
@pytest.mark.parametrize('dtype', [torch.half, torch.bfloat16, torch.double])
def test_a_network_of_any_precision_shares(bank, dtype):
    (made,) = share_layers(conv_modules().to(dtype), groups=['conv'], bank=bank)
    rows = made.basis().detach().double().flatten(1)
    assert made.basis().dtype == dtype
    torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows)).double(), rtol=0, atol=1e-2)


def test_bases_start_orthonormal_where_a_stage_has_more_of_them_than_dimensions():
    network = nn.Sequential(*[nn.ModuleDict({name: nn.Linear(16, 16) for name in 'qkvo'}) for _ in range(3)])
    for bank in share_layers(network, groups=list('qkvo'), bank=BASIS):
        rows = bank.basis().detach()
        torch.testing.assert_close(rows @ rows.T, torch.eye(8), rtol=0, atol=1e-5)


def test_each_group_of_one_has_to_be_smaller():
    network = nn.Sequential(nn.Conv2d(16, 16, 1), *[nn.Conv2d(16, 16, 3) for _ in range(9)])
    words, bank = "'0' would have 4.. parameters for 256", [dict(BASIS, unique_rank=16), TIED]
    refuses_to_share(network, words, layers=['0', '[1-9]'], bank=bank)


def test_a_layer_whose_weight_is_computed_is_left_out():
    network = conv_modules()
    nn.utils.spectral_norm(network[2].conv)
    (bank,) = share_layers(network, groups=['conv'], bank=TIED)
    assert bank.names == ('1.conv', '3.conv')


@pytest.mark.parametrize(
    'bank, words',
    [
        (dict(type='TemplateBank', num_templates='4'), "num_templates='?4"),
        (dict(BASIS, shared_rank=8.0), 'not a number of filters'),
        (dict(BASIS, base_channels=0), 'base_channels=0'),
    ],
)
def test_an_argument_of_the_wrong_kind_is_one_sentence(bank, words):
    with pytest.raises(SharingError, match=words):
        share_layers(conv_modules(), groups=['conv'], bank=bank)


class Picky(nn.Module):
    def forward(self, x):
        raise AssertionError  # as a transformer's windows do


def test_a_network_that_asserts_the_size_of_its_images_is_one_sentence():
    with pytest.raises(SharingError, match='The network cannot take images of 3x32x32: AssertionError$'):
        feature_maps(Picky(), image(32))
