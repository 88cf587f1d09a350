"""A batch norm and the product behind it in one."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers import randomise_norms
from mmshared import fold_layers, share_layers
from mmshared.sharing.normalised_product import normalised_product

FORMATS = pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last], ids=['contiguous', 'last'])


def shared_blocks() -> nn.ModuleList:
    """Two convs on one filter basis, each with a norm behind it."""
    blocks = nn.ModuleList(
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(2)
    )
    share_layers(blocks, ['0'], dict(type='FilterBasis', shared_rank=4, unique_rank=1, base_channels=8), own_blocks=0)
    return blocks


def separately(responses, norm, coefficients, bias):
    return F.conv2d(norm(responses), coefficients, bias)


def found_by(work, responses, norm, coefficients, bias, grad):
    """What a form of the product gives: maps, gradients, running statistics."""
    norm = copy.deepcopy(norm)
    given = [None if each is None else each.clone().requires_grad_() for each in (responses, coefficients, bias)]
    out = work(given[0].clone(), norm, *given[1:])
    learned = [each for each in (*given, norm.weight, norm.bias) if each is not None]
    return [out.detach(), *torch.autograd.grad(out, learned, grad), *(each.to(responses) for each in norm.buffers())]


@FORMATS
@pytest.mark.parametrize('shape, out_channels', [((8, 33, 14, 14), 24), ((4, 24, 5, 5), 48)])
@pytest.mark.parametrize('mean, deviation', [(0.0, 1.0), (100.0, 0.1)])
def test_it_is_as_accurate_as_a_batch_norm_and_a_product(layout, shape, out_channels, mean, deviation):
    torch.manual_seed(0)
    rank = shape[1]
    norm = randomise_norms(nn.BatchNorm2d(rank))
    responses = (mean + deviation * torch.randn(shape)).to(memory_format=layout)
    coefficients, bias = torch.randn(out_channels, rank, 1, 1) / rank**0.5, torch.randn(out_channels)
    grad = torch.randn(shape[0], out_channels, *shape[2:]).to(memory_format=layout)
    given = responses, norm, coefficients, bias, grad
    exact = found_by(
        separately, responses.double(), copy.deepcopy(norm).double(), *(each.double() for each in given[2:])
    )
    for truth, found, usual in zip(exact, found_by(normalised_product, *given), found_by(separately, *given)):
        error, usual_error = ((each - truth).norm() / truth.norm() for each in (found, usual))
        assert error < 2 * usual_error + 1e-6


def test_norms_may_be_more_exact_than_the_weights():
    blocks = nn.ModuleList(
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), randomise_norms(nn.BatchNorm2d(8))) for _ in range(2)
    )
    for conv, _ in blocks:
        conv.to(torch.bfloat16)
    share_layers(blocks, ['0'], dict(type='FilterBasis', shared_rank=4, unique_rank=1, base_channels=8), own_blocks=0)
    network, x = nn.Sequential(*blocks), torch.randn(4, 8, 9, 9, dtype=torch.bfloat16)
    assert {each.weight.dtype for each in network.modules() if isinstance(each, nn.BatchNorm2d)} == {torch.float32}
    exact = copy.deepcopy(network).float()
    for mode in (True, False):
        found, expected = network.train(mode)(x), exact.train(mode)(x.float())
        assert found.dtype == torch.bfloat16
        assert (found - expected).norm() < 0.02 * expected.norm()
        found.sum().backward()
    torch.testing.assert_close(fold_layers(copy.deepcopy(network))(x), network(x), rtol=0.05, atol=0.05)


@FORMATS
@pytest.mark.parametrize('bias', [True, False], ids=['bias', 'none'])
def test_its_gradients_are_those_of_a_batch_norm_and_a_product(layout, bias):
    norm = randomise_norms(nn.BatchNorm2d(5)).double()
    maps = [torch.randn(3, channels, 4, 4).double().to(memory_format=layout) for channels in (5, 6)]
    coefficients = torch.randn(6, 5, 1, 1).double().to(memory_format=layout)
    given = [maps[0], norm, coefficients, torch.randn(6).double() if bias else None, maps[1]]
    for found, expected in zip(found_by(normalised_product, *given), found_by(separately, *given)):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_a_single_value_has_no_statistics():
    with pytest.raises(ValueError, match='more than 1 value per channel'):
        normalised_product(torch.randn(1, 5, 1, 1), nn.BatchNorm2d(5), torch.randn(6, 5, 1, 1), None)


def test_the_responses_are_all_that_it_keeps_of_maps():
    norm, responses = nn.BatchNorm2d(5), torch.randn(2, 5, 9, 9, requires_grad=True) * 1
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        normalised_product(responses, norm, torch.randn(6, 5, 1, 1, requires_grad=True), None)
    assert {tensor.data_ptr() for tensor in kept if tensor.dim() == 4 and len(tensor) == 2} == {responses.data_ptr()}


@pytest.mark.parametrize(
    'norm',
    [
        nn.BatchNorm2d(5, momentum=None),
        nn.BatchNorm2d(5, affine=False),
        nn.BatchNorm2d(5, track_running_stats=False),
        nn.BatchNorm2d(5).eval(),
        nn.BatchNorm2d(5).bfloat16(),
        nn.GroupNorm(5, 5),
        nn.Identity(),
    ],
    ids=['momentum', 'affine', 'statistics', 'eval', 'bfloat16', 'group', 'identity'],
)
def test_other_norms_are_computed_as_they_are(norm):
    like = next(norm.parameters(), torch.empty(0))
    responses, coefficients = torch.randn(2, 5, 4, 4).to(like), torch.randn(6, 5, 1, 1).to(like)
    twin, before = copy.deepcopy(norm), responses.clone()
    assert torch.equal(
        normalised_product(responses, norm, coefficients, None), separately(before, twin, coefficients, None)
    )
    assert all(map(torch.equal, norm.state_dict().values(), twin.state_dict().values()))


def test_mixed_precision_is_that_of_a_batch_norm_and_a_product():
    norm, conv = randomise_norms(nn.BatchNorm2d(5)), nn.Conv2d(3, 5, 3)
    given = torch.randn(2, 3, 8, 8), norm, torch.randn(6, 5, 1, 1), torch.randn(6), torch.randn(2, 6, 6, 6).bfloat16()
    with torch.autocast('cpu', torch.bfloat16):
        forms = [
            found_by(lambda x, *rest, form=form: form(conv(x), *rest), *given)
            for form in (normalised_product, separately)
        ]
    for found, expected in zip(*forms):
        assert found.dtype == expected.dtype
        assert (found - expected).norm() < 0.02 * expected.norm()


@FORMATS
@pytest.mark.parametrize('backend', ['eager', 'aot_eager'])
@pytest.mark.slow
def test_a_compiled_network_has_no_graph_break_and_the_same_training_step(layout, backend):
    torch._dynamo.reset()
    blocks = shared_blocks().to(memory_format=layout)
    works = [nn.Sequential(*copy.deepcopy(blocks)) for _ in range(2)]
    works[1].compile(fullgraph=True, backend=backend)
    x = torch.randn(4, 8, 6, 6).to(memory_format=layout)
    outs = [work(x) for work in works]
    torch.testing.assert_close(outs[1], outs[0], rtol=0, atol=1e-5)
    for out in outs:
        out.square().mean().backward()
    for (name, found), expected in zip(works[1].named_parameters(), works[0].parameters()):
        torch.testing.assert_close(
            found.grad, expected.grad, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f'{name}: {text}'
        )
    for found, expected in zip(works[1].buffers(), works[0].buffers()):
        torch.testing.assert_close(found, expected)
