"""Laws of fits to outputs: with the moments of their inputs, layers lose less of what they compute."""

import copy

import pytest
import torch
from torch import nn

from helpers import KINDS, LAYERS, chain, energy, evaluating, randomise_norms
from mmshared import SharingError, banks, share_layers
from mmshared.convert.dense import share_checkpoint

# All but those that have no fit, or whose random part is most of the error.
FITTED = {kind: bank for kind, bank in KINDS.items() if kind not in ('repeated-swish', 'repeated-random-bireal')}
OWN_AND_SHARED = ('basis', 'basis-without-norm', 'orthonormal')
# Not of these: the plain fit of a basis does not know of own filters, that of a relaxed tie is the mean, and loops
# count kernels alike however often they run.
BEST_ALREADY = [kind for kind in FITTED if kind not in (*OWN_AND_SHARED, 'relaxed', 'loops')]
GROUPED = {kind: FITTED[kind] for kind in ('tied', 'templates', 'loops', 'relaxed')}


def group(bank, make=lambda: nn.Conv2d(16, 16, 1, bias=False)):
    """The bank of some layers, and plain weights for them, all of the norm 1."""
    network = chain(make)
    (made,) = share_layers(network, groups=['0'], bank=bank)
    kernels = [torch.randn(layer.shape) for layer in made.layers]
    return evaluating(randomise_norms(made)), [kernel / kernel.norm() for kernel in kernels]


def random_moments(kernels, blocks=()):
    """Second moments of random patches, of which a few directions have most of the energy."""
    size = kernels[0][0].numel()
    patches = [torch.randn(*blocks, 2 * size, size).double() for _ in kernels]
    decay = torch.logspace(0, -2, size).double()
    mixed = [x * decay @ nn.init.orthogonal_(torch.empty(size, size)).double() for x in patches]
    return [x.mT @ x for x in mixed]


def errors(bank, kernels, moments):
    """The relative error of the outputs of each layer."""
    weights = [layer.dense()[0] for layer in bank.layers]
    return [energy(w - k, m) / energy(k, m) for w, k, m in zip(weights, kernels, moments)]


def losses(bank, kernels, moments):
    """The error of the outputs by a fit to the weights, and by one to the outputs."""
    bank.fit(kernels)
    by_weights = sum(errors(bank, kernels, moments))
    bank.fit(kernels, moments)
    return by_weights, sum(errors(bank, kernels, moments))


@pytest.mark.parametrize('layer', ['conv', 'linear'])
@pytest.mark.parametrize('kind', FITTED)
def test_moments_never_make_the_outputs_worse(kind, layer):
    bank, kernels = group(FITTED[kind], LAYERS[layer])
    moments = random_moments(kernels)
    by_weights, by_outputs = losses(bank, kernels, moments)
    assert by_outputs < 0.95 * by_weights


@pytest.mark.parametrize('kind', GROUPED)
@pytest.mark.parametrize('groups', [4, 16])
def test_each_group_of_a_grouped_conv_has_moments_of_its_own(kind, groups):
    bank, kernels = group(GROUPED[kind], lambda: nn.Conv2d(16, 32, 3, groups=groups))
    moments = random_moments(kernels, blocks=[groups])
    by_weights, by_outputs = losses(bank, kernels, moments)
    assert by_outputs < 0.95 * by_weights


@pytest.mark.parametrize('factor', [1.0, 1e6])
@pytest.mark.parametrize('kind', FITTED)
def test_white_inputs_change_nothing(kind, factor):
    bank, kernels = group(FITTED[kind])
    moments = [factor * torch.eye(kernel[0].numel()) for kernel in kernels]
    by_weights, by_outputs = losses(bank, kernels, moments)
    assert by_outputs < by_weights * (1 + 1e-6)
    assert kind not in BEST_ALREADY or by_outputs > by_weights * (1 - 1e-4)


@pytest.mark.parametrize('kind', FITTED)
def test_the_unit_of_the_moments_of_a_layer_has_no_effect(kind):
    bank, kernels = group(FITTED[kind])
    moments = random_moments(kernels)
    bank.fit(kernels, moments)
    before = [layer.dense()[0].detach().clone() for layer in bank.layers]
    bank.fit(kernels, [factor * moment for factor, moment in zip((1e-6, 1.0, 1e6, 1.0), moments)])
    for layer, weight in zip(bank.layers, before):
        torch.testing.assert_close(layer.dense()[0], weight, rtol=1e-3, atol=1e-4)


def refitted(kind, layer, by_data):
    """A bank with random parameters that is fitted to the weights that it had before, and these weights."""
    (bank,) = share_layers(evaluating(chain(LAYERS[layer])), groups=['0'], bank=KINDS[kind])
    weights = [each.dense()[0].detach().clone() for each in bank.layers]
    for name, parameter in bank.layers[0].named_parameters():
        if 'transform' not in name:
            nn.init.normal_(parameter)
    bank.fit(weights, random_moments(weights) if by_data else None)
    return bank, weights


@pytest.mark.parametrize('by_data', [False, True], ids=['by-weights', 'by-data'])
@pytest.mark.parametrize('layer', LAYERS)
@pytest.mark.parametrize('kind', [kind for kind in KINDS if kind not in ('repeated-swish', *OWN_AND_SHARED)])
def test_what_is_of_the_form_of_a_bank_is_fitted_without_loss(kind, layer, by_data):
    bank, weights = refitted(kind, layer, by_data)
    for each, weight in zip(bank.layers, weights):
        torch.testing.assert_close(each.dense()[0], weight, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('layer', LAYERS)
@pytest.mark.parametrize('kind', OWN_AND_SHARED)
def test_own_filters_leave_less_than_the_best_shared_filters_alone(kind, layer):
    """Own filters of three layers are more than a basis can hold, so that it is not fitted without loss."""
    bank, weights = refitted(kind, layer, by_data=False)
    left = torch.linalg.svdvals(torch.cat([each.flatten(1) for each in weights]))[8:].square().sum()
    assert sum((each.dense()[0] - weight).square().sum() for each, weight in zip(bank.layers, weights)) < left


@pytest.mark.parametrize('type', ['FilterBasis', 'OrthonormalFilterBasis'])
def test_a_basis_of_the_rank_of_the_inputs_loses_nothing_of_the_outputs(type):
    bank, kernels = group(dict(type=type, shared_rank=9, unique_rank=1, base_channels=16), LAYERS['conv'])
    alive = torch.zeros(16, 9, dtype=torch.bool)
    alive[3] = True  # one channel, nine values
    for each in (alive, torch.rand(16, 9) < 0.05):
        moments = [moment * torch.outer(each.flatten(), each.flatten()) for moment in random_moments(kernels)]
        bank.fit(kernels, moments)
        assert all(error < 1e-6 for error in errors(bank, kernels, moments))


@pytest.mark.parametrize('kind', FITTED)
def test_a_layer_that_got_no_inputs_is_fitted_by_its_weight(kind):
    bank, kernels = group(FITTED[kind])
    size = kernels[0][0].numel()
    bank.fit(kernels, [torch.zeros(size, size)] * len(kernels))
    dead = [layer.dense()[0].detach().clone() for layer in bank.layers]
    bank.fit(kernels, [torch.eye(size)] * len(kernels))
    for layer, weight in zip(bank.layers, dead):
        torch.testing.assert_close(layer.dense()[0], weight, rtol=1e-3, atol=1e-4)


def test_a_tied_weight_solves_the_normal_equations():
    bank, kernels = group(KINDS['tied'])
    moments = random_moments(kernels)
    bank.fit(kernels, moments)
    weight = bank.filters.detach().double().requires_grad_()
    total = 0
    for kernel, moment in zip(kernels, moments):
        rest, rows = (weight - kernel).flatten(1), kernel.double().flatten(1)
        total = total + (rest @ moment * rest).sum() / (rows @ moment * rows).sum()
    total.backward()
    assert weight.grad.norm() < 1e-3


@pytest.mark.parametrize('kind', ['basis', 'orthonormal'])
def test_the_norm_of_a_basis_adds_nothing_to_the_fit(kind):
    bank, kernels = group(KINDS[kind])
    bank.fit(kernels, random_moments(kernels))
    for layer in bank.layers:
        assert layer.dense()[1].abs().max() < 1e-6
        filters = layer.filters().flatten(1)
        torch.testing.assert_close(filters @ filters.T, torch.eye(len(filters)), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    'moments, words',
    [
        ([torch.eye(16)] * 2, 'There are 2 moments for [34] layers'),
        ([torch.eye(9)] * 4, r'shape \(16, 16, 1, 1\) have the shape \(9, 9\): give \(16, 16\)'),
        ([torch.eye(16).expand(5, -1, -1)] * 4, r'have the shape \(5, 16, 16\): give \(16, 16\)'),
        ([torch.full((16, 16), torch.nan)] * 4, 'not finite'),
    ],
)
def test_moments_that_do_not_fit_are_refused(moments, words):
    for kind in FITTED:
        bank, kernels = group(FITTED[kind])
        before = copy.deepcopy(bank.layers[0].state_dict())
        with pytest.raises(SharingError, match=words):
            bank.fit(kernels, moments[: len(kernels)])
        assert all(torch.equal(tensor, before[key]) for key, tensor in bank.layers[0].state_dict().items())


@pytest.mark.parametrize(
    'spoil, words',
    [
        (lambda kernels: kernels[:-1], 'give one for each layer'),
        (lambda kernels: [kernel[:, :-1] for kernel in kernels], r'\(16, 15, 1, 1\).*give one for each layer'),
        (lambda kernels: [torch.full_like(kernel, torch.nan) for kernel in kernels], 'not finite'),
    ],
)
def test_kernels_that_do_not_fit_are_refused(spoil, words):
    for kind in FITTED:
        bank, kernels = group(FITTED[kind])
        before = copy.deepcopy(bank.layers[0].state_dict())
        with pytest.raises(SharingError, match=words):
            bank.fit(spoil(kernels))
        assert all(torch.equal(tensor, before[key]) for key, tensor in bank.layers[0].state_dict().items())


def test_a_grouped_conv_needs_the_moments_of_its_groups():
    bank, kernels = group(KINDS['tied'], lambda: nn.Conv2d(16, 16, 3, groups=4))
    with pytest.raises(SharingError, match=r'have the shape \(36, 36\): give \(4, 36, 36\)'):
        bank.fit(kernels, [torch.eye(36)] * 3)


class Wrapped(nn.Module):
    """A network in a whole model."""

    def __init__(self, network):
        super().__init__()
        self.backbone, self.fc = network, nn.Linear(16, 3)


@pytest.mark.parametrize('whole', [True, False])
def test_a_checkpoint_is_converted_with_the_moments_of_its_layers(whole):
    plain, shared = Wrapped(chain(LAYERS['linear'])), Wrapped(chain(LAYERS['linear']))
    share_layers(shared.backbone, groups=['0'], bank=KINDS['basis'])
    names = [f'backbone.{i}.0' for i in (1, 2, 3)]
    kernels = [plain.get_submodule(name).weight.detach() for name in names]
    moments = dict(zip(names, random_moments(kernels)))

    def convert(moments):
        state_dict = (plain if whole else plain.backbone).state_dict()
        (conversion,) = share_checkpoint(shared, state_dict, 'plain.pth', moments)
        return conversion

    by_weights, by_outputs = convert(None), convert(moments)
    assert by_weights.output_error is None and 'of the outputs' not in str(by_weights)
    expected = sum(errors(by_outputs.bank, kernels, list(moments.values()))) / 3
    assert by_outputs.output_error == pytest.approx(expected**0.5, rel=1e-3)
    assert f'of the outputs {by_outputs.output_error:.4f}' in str(by_outputs)
    assert by_outputs.error > by_weights.error
    for layer, fitted in zip(banks(shared)[0].layers, by_outputs.bank.layers):
        torch.testing.assert_close(layer.weight, fitted.weight)
    del moments[names[1]]  # a layer that was not called
    assert convert(moments).output_error is None


def test_a_packed_projection_has_moments_of_queries_keys_and_values():
    attention = nn.ModuleList(nn.MultiheadAttention(16, 4) for _ in range(4))
    (bank,) = share_layers(attention, groups=['in_proj'], bank=FITTED['basis-without-own'])
    kernels = [torch.randn(48, 16) for _ in range(3)]
    moments = random_moments(kernels, blocks=[3])
    by_weights, by_outputs = losses(bank, kernels, moments)
    assert by_outputs < 0.95 * by_weights
