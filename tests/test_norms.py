"""Laws of norms in a compressed network: their statistics follow their inputs, and nothing else changes."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from helpers import BASIS, evaluating, image, in_two_processes, join, leave, randomise_norms, small
from mmshared import banks, fold_layers, share_layers
from mmshared.compress.norms import recalibrate_norms
from mmshared.sharing.deployment import relative_difference

LOSSLESS = dict(BASIS, shared_rank=9 * 64, unique_rank=0)


def pair(bank):
    plain = evaluating(randomise_norms(small(bank=None)))
    shared = copy.deepcopy(plain)
    share_layers(shared, groups=['conv[12]'], bank=bank)
    shared.load_state_dict(plain.state_dict())
    return plain, shared


def norms(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}


@pytest.mark.parametrize('size', [1, 4])
@pytest.mark.filterwarnings('ignore:Sharing saves nothing')
def test_norms_that_get_what_they_got_keep_their_statistics(mmpretrain, size):
    plain, shared = pair(LOSSLESS)
    recalibrate_norms(shared, plain, [image(32, size) for _ in range(2)])
    for name, norm in norms(plain).items():
        same = norms(shared)[name]
        torch.testing.assert_close(same.running_mean, norm.running_mean, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(same.running_var, norm.running_var, rtol=1e-3, atol=1e-3)


def test_a_norm_that_gets_nothing_keeps_its_statistics(mmpretrain):
    plain, shared = pair(BASIS)
    for model in (plain, shared):
        model.spare = nn.BatchNorm2d(3).eval()
    recalibrate_norms(shared, plain, [image(32, 4)])
    assert shared.spare.running_var.eq(1).all() and not shared.layer1[1].norm1.running_var.eq(1).any()


def test_a_norm_follows_the_scale_and_the_shift_of_its_inputs(mmpretrain):
    plain, _ = pair(BASIS)
    other = copy.deepcopy(plain)
    with torch.no_grad():
        other.layer1[1].conv1.weight.mul_(3)
        other.layer1[1].conv2.weight.mul_(0)
    before = copy.deepcopy(other)
    recalibrate_norms(other, plain, [image(32, 4)])
    old, new = before.layer1[1].norm1, other.layer1[1].norm1
    torch.testing.assert_close(new.running_var, 9 * old.running_var, rtol=1e-3, atol=1e-5)
    assert other.layer1[1].norm2.running_var.max() < 1e-3
    assert torch.equal(new.weight, old.weight) and not new.training
    for name in ('norm1', 'layer1.0.norm2'):  # before what has changed
        assert torch.equal(other.get_submodule(name).running_mean, before.get_submodule(name).running_mean)


def test_the_norm_of_a_basis_gets_statistics_and_the_layer_stays(mmpretrain):
    plain, shared = pair(BASIS)
    images = image(32, 12)
    for model in (plain, shared):
        for norm in norms(model).values():  # their statistics are those of the images, as in a trained network
            norm.momentum = 1.0
    plain.train()
    plain(images)
    shared.load_state_dict(evaluating(plain).state_dict())
    before = copy.deepcopy(shared)
    recalibrate_norms(shared, plain, [images])
    x = torch.randn(2, 16, 8, 8)
    for old, new in zip(banks(before)[0].layers, banks(shared)[0].layers):
        torch.testing.assert_close(new(x), old(x), rtol=1e-4, atol=1e-4)
        assert (new.norm.running_mean - old.norm.running_mean).abs().max() > 1e-3
    # In training the first layer computes almost what it does in eval mode, and did not before.
    inputs = []
    shared.layer1[1].conv1.register_forward_pre_hook(lambda layer, args: inputs.append(args[0]))
    with torch.no_grad():
        shared(images)
        apart = [
            relative_difference(
                [copy.deepcopy(model.layer1[1].conv1).train()(inputs[0])], [model.layer1[1].conv1(inputs[0])]
            )
            for model in (shared, before)
        ]
    assert apart[0] < 0.2 < apart[1]


def test_folding_after_it_changes_nothing(mmpretrain):
    plain, shared = pair(BASIS)
    recalibrate_norms(shared, plain, [image(32, 4)])
    x = image(32)
    before = shared(x)
    assert relative_difference(fold_layers(shared)(x), before) < 1e-4


def recalibrating_worker(rank, given, folder):
    join(rank, folder)
    plain, shared, batches = pickle.loads(given)
    recalibrate_norms(shared, plain, batches[rank::2])
    torch.save(shared.state_dict(), f'{folder}/{rank}.pth')
    leave()


@pytest.mark.slow
def test_each_of_two_processes_gets_the_statistics_of_all_images(mmpretrain, tmp_path):
    plain, shared = pair(BASIS)
    batches = [image(32, 4) for _ in range(4)]
    in_two_processes(recalibrating_worker, pickle.dumps((plain, shared, batches)), str(tmp_path))
    recalibrate_norms(shared, plain, batches)
    for rank in range(2):
        found = torch.load(tmp_path / f'{rank}.pth', weights_only=True)
        torch.testing.assert_close(found, dict(shared.state_dict()), rtol=1e-4, atol=1e-5)


def test_maps_of_one_value_are_left_to_the_running_statistics():
    plain = evaluating(randomise_norms(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3))))
    other = copy.deepcopy(plain)
    recalibrate_norms(other, plain, [image(8, 1)])
    assert torch.equal(other[1].running_var, plain[1].running_var)
