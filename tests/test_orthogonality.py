"""The orthogonality loss: equal to the authors' formulas, and a loss like every other while a model trains."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from helpers import (
    BASIS,
    LAYERS,
    TIED,
    Classifier,
    backbone,
    chain,
    evaluating,
    image,
    small,
    stage_banks,
    train,
)
from mmshared import OrthogonalityLossHook, SharingError, named_banks, share_layers
from mmshared.hooks import orthogonality_loss, orthogonality_spaces


def disturbed(**kwargs):
    """A backbone whose bases are not orthonormal any more."""
    model = backbone(**kwargs).double()
    for banks in stage_banks(model).values():
        for bank in banks:
            bank.filters.data += 0.1 * torch.randn_like(bank.filters)
    return model


def rows(*banks):
    return torch.cat([bank.filters.flatten(1) for bank in banks])


# The three formulas as train_ilsvrc.py of the authors' code has them: D = (B B^T - I)^2, summed over the stages and
# divided by the summed squares of the numbers of filters.


def single(stages):
    """train_basis_single: one basis a stage."""
    error, count = 0, 0
    for banks in stages:
        basis = rows(banks[0])
        error += ((basis @ basis.T - torch.eye(len(basis)).double()) ** 2).sum()
        count += len(basis) ** 2
    return error / count


def double(stages):
    """train_basis_double: both bases of a stage stacked."""
    error, count = 0, 0
    for banks in stages:
        basis = rows(*banks)
        error += ((basis @ basis.T - torch.eye(len(basis)).double()) ** 2).sum()
        count += len(basis) ** 2
    return error / count


def separate(stages):
    """train_basis_double_separate: a mean for the first bases and one for the second."""
    return single(stages) + single([banks[1:] for banks in stages])


def with_own_filters(stages):
    """train_basis_single and train_basis_double of train_cifar10.py, with include_unique_basis."""
    error, count = 0, 0
    for banks in stages:
        shared = rows(*banks)
        own = [conv.unique.flatten(1) for bank in banks for conv in bank.layers]
        everything = torch.cat([shared, *own])
        gram = (everything @ everything.T - torch.eye(len(everything)).double()) ** 2
        error += gram[: len(shared)].sum()
        count += len(shared) * len(everything)
        at = len(shared)
        for unique in own:
            error += gram[at : at + len(unique), at : at + len(unique)].sum()
            count += len(unique) ** 2
            at += len(unique)
    return error / count


@pytest.mark.parametrize('groups', [['conv[12]'], ['conv1', 'conv2']], ids=['single', 'double'])
def test_the_loss_with_own_filters_equals_the_authors_formula(mmpretrain, groups):
    model = disturbed(depth=34, groups=groups, bank=BASIS)
    stages = list(stage_banks(model).values())
    loss, expected = orthogonality_loss(orthogonality_spaces(model), include_unique=True), with_own_filters(stages)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    parameters = [p for p in model.parameters() if p.requires_grad]
    grads = [torch.autograd.grad(value, parameters, allow_unused=True) for value in (loss, expected)]
    assert sum(grad is not None for grad in grads[0]) == sum(len(b.layers) + 1 for banks in stages for b in banks)
    for grad, other in zip(*grads):
        torch.testing.assert_close(grad, other, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    'formula, network',
    [
        (single, dict(depth=34, groups=['conv[12]'], bank=BASIS)),
        (single, dict(depth=50, groups=['conv2'], bank=TIED)),
        (double, dict(depth=34, groups=['conv1', 'conv2'], bank=BASIS)),
        (separate, dict(depth=50, groups=['conv2', 'conv3'], bank=TIED)),
    ],
    ids=['single-FilterBasis', 'single-TiedFilters', 'double', 'separate'],
)
def test_the_loss_equals_the_authors_formulas(mmpretrain, formula, network):
    model = disturbed(**network)
    loss = orthogonality_loss(orthogonality_spaces(model))
    expected = formula(list(stage_banks(model).values()))
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    parameters = [bank.filters for banks in stage_banks(model).values() for bank in banks]
    for grad, other in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters)):
        torch.testing.assert_close(grad, other, rtol=1e-10, atol=1e-14)


def test_several_groups_of_one_pattern_in_a_stage_are_kept_orthogonal_together():
    network = chain(LAYERS['conv'], 6)
    for own_blocks in (3, 0):
        share_layers(network, ['0'], TIED, own_blocks=own_blocks)
    found = list(named_banks(network).values())
    assert [bank.names[0] for bank in found] == ['0.0', '3.0']
    (space,) = orthogonality_spaces(network)
    assert space.banks == found


def test_a_stage_without_a_group_leaves_the_others_together(mmdet):
    # Deformable convs keep their kernels: stages 2 to 4 have no group of conv2.
    model = disturbed(
        groups=['conv2', 'conv3'], dcn=dict(type='DCN', deform_groups=1), stage_with_dcn=(False, True, True, True)
    )
    stages = list(stage_banks(model).values())
    assert [len(banks) for banks in stages] == [2, 1, 1, 1]
    expected = single(stages[:1]) + single([banks[-1:] for banks in stages])
    torch.testing.assert_close(orthogonality_loss(orthogonality_spaces(model)), expected)


def test_an_orthonormal_start_costs_nothing_but_the_rank_floor(mmpretrain):
    for groups in (['conv2'], ['conv1', 'conv2']):  # the two bases of a stage are orthogonal to each other too
        assert orthogonality_loss(orthogonality_spaces(backbone(depth=34, groups=groups, bank=BASIS))) < 1e-12
    # Of 4C filters in C dimensions at most C are orthonormal: sum (N - M) / sum N^2 is left (papers' Shared++).
    model = backbone(groups=['conv2', 'conv3'])
    shapes = [banks[1].filters.flatten(1).shape for banks in stage_banks(model).values()]
    floor = sum(n - m for n, m in shapes) / sum(n**2 for n, _ in shapes)
    torch.testing.assert_close(orthogonality_loss(orthogonality_spaces(model)), torch.tensor(floor), rtol=1e-4, atol=0)


def test_half_precision_is_no_matter(mmpretrain):
    model = disturbed(depth=34, bank=BASIS).float()
    exact = orthogonality_loss(orthogonality_spaces(model))
    with torch.autocast('cpu', torch.bfloat16):
        assert orthogonality_loss(orthogonality_spaces(model)).dtype == torch.float32
        torch.testing.assert_close(orthogonality_loss(orthogonality_spaces(model)), exact)
    model.bfloat16()
    torch.testing.assert_close(orthogonality_loss(orthogonality_spaces(model)), exact, rtol=0.02, atol=0)


def test_frozen_banks_are_left_out(library):
    model = disturbed(depth=34, bank=BASIS, frozen_stages=2)
    model.train()
    loss = orthogonality_loss(orthogonality_spaces(model))
    torch.testing.assert_close(loss, single(list(stage_banks(model).values())[2:]))


def run(network, tmp_path, loss_weight=10.0, iterations=2, **kwargs):
    return train(network, tmp_path, [OrthogonalityLossHook(loss_weight, **kwargs)], iterations)


def test_the_hook_adds_the_weighted_loss_to_the_sum_and_the_gradient(mmpretrain, tmp_path):
    network = small()
    for banks in stage_banks(network).values():
        banks[0].filters.data += 0.1 * torch.randn_like(banks[0].filters)
    start = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    expected = 10 * single([[bank.double() for bank in banks] for banks in stage_banks(network).values()])
    network.float()
    model, seen = run(network, tmp_path, 10.0, 1)
    torch.testing.assert_close(seen[0]['loss_orth'].double(), expected.double(), rtol=1e-5, atol=0)
    names = [name for name in seen[0] if name.startswith('loss')]
    assert sorted(names) == ['loss', 'loss_orth']

    plain = small()
    plain.load_state_dict(start)
    other, seen = run(plain, tmp_path, 0.0, 1)
    step = model.backbone.state_dict()['layer1.1.conv1.bank.filters']
    step_without = other.backbone.state_dict()['layer1.1.conv1.bank.filters']
    assert seen[0]['loss_orth'] == 0 and not torch.allclose(step, step_without)
    error = [torch.dist(f.flatten(1) @ f.flatten(1).T, torch.eye(len(f))) for f in (step, step_without)]
    assert error[0] < error[1]


def test_the_hook_leaves_the_model_as_it_found_it(mmpretrain, tmp_path):
    model, _ = run(small(), tmp_path)
    assert not model._forward_hooks
    assert isinstance(evaluating(model)(torch.randn(1, 3, 32, 32)), torch.Tensor)


def test_bases_of_one_space_may_differ_in_their_own_filters():
    network = nn.Sequential(*[nn.Sequential(nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3)) for _ in range(4)])
    ranks = [dict(BASIS, base_channels=16, shared_rank=4, unique_rank=rank) for rank in (1, 2)]
    made = share_layers(network, groups=['0', '1'], bank=ranks)
    basis = torch.cat([bank.filters.flatten(1) for bank in made])
    errors = [(basis @ basis.T - torch.eye(8)).square().sum()]
    for bank in made:
        for own in (layer.unique.flatten(1) for layer in bank.layers):
            errors += [(basis @ own.T).square().sum(), (own @ own.T - torch.eye(len(own))).square().sum()]
    count = 8 * 8 + 3 * (8 * 1 + 1) + 3 * (8 * 2 + 4)
    loss = orthogonality_loss(orthogonality_spaces(network), include_unique=True)
    torch.testing.assert_close(loss, sum(errors) / count)


def test_own_filters_that_are_not_there_are_refused(mmpretrain, tmp_path):
    with pytest.raises(SharingError, match='no filters of their own: leave include_unique out'):
        run(small(bank=TIED), tmp_path, include_unique=True)


def test_a_model_without_a_basis_is_refused(mmpretrain, tmp_path):
    with pytest.raises(SharingError, match='found no filter basis in the model'):
        run(small(bank=None), tmp_path)


def test_a_copy_of_a_hooked_model_has_a_loss_of_its_own(mmpretrain):
    model = Classifier(small(TIED)).eval()
    hook = OrthogonalityLossHook()
    hook.before_train(SimpleNamespace(model=model))
    twin = copy.deepcopy(model)
    for banks in stage_banks(twin).values():
        banks[0].filters.data *= 1.5
    losses = [each(inputs=image(), labels=torch.tensor([0, 1]), mode='loss')['loss_orth'] for each in (model, twin)]
    assert losses[1] > 2 * losses[0]
    losses[1].backward()
    assert all(p.grad is None for p in model.parameters())
    assert sum(p.grad is not None for p in twin.parameters()) == 2
