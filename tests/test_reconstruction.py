"""Laws of reconstruction: blocks come nearer to those of the plain network, and only what is their own changes."""

import copy
import pickle

import pytest
import torch
from torch import nn

from helpers import TIED, chain, evaluating, image, in_two_processes, join, leave, randomise_norms, small
from mmshared import banks, share_layers
from mmshared.compress.reconstruction import reconstruct

RELAXED = dict(type='RelaxedTie', rank=2)


def pair(make, **sharing):
    """A plain network in eval mode, and a shared one fitted to it."""
    plain = evaluating(randomise_norms(make()))
    shared = copy.deepcopy(plain)
    share_layers(shared, **sharing)
    shared.load_state_dict(plain.state_dict())
    return plain, shared


class Residual(nn.Module):
    """A block that works on its input in place and takes a second one."""

    def __init__(self):
        super().__init__()
        self.fc, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, x, scale=None):
        x = x.mul_(0.5)
        return x + self.norm(self.fc(x)) * scale, scale


class Conv(nn.Module):
    """A residual block."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x):
        return x + self.norm(self.conv(x))


class Blocks(nn.Module):
    """A stage that is a list, or is run as one, and whose blocks take several inputs."""

    def __init__(self, kind=nn.ModuleList):
        super().__init__()
        self.blocks = kind()
        self.blocks.extend([Residual() for _ in range(4)])

    def forward(self, x):
        x, scale = x.clone(), x.std()
        for block in self.blocks:
            x, scale = block(x, scale=scale)
        return x


NETWORKS = {
    'sequential': (
        lambda: nn.Sequential(*[Conv() for _ in range(4)]),
        dict(groups=['conv'], bank=RELAXED),
        lambda: torch.randn(4, 4, 8, 8),
    ),
    'list': (Blocks, dict(groups=['fc'], bank=RELAXED), lambda: torch.randn(16, 8)),
    'by hand': (lambda: Blocks(nn.Sequential), dict(groups=['fc'], bank=RELAXED), lambda: torch.randn(16, 8)),
    'outright': (Blocks, dict(layers=r'blocks\.[13]\.fc', bank=RELAXED), lambda: torch.randn(16, 8)),
}


@pytest.mark.parametrize('network', NETWORKS)
def test_every_block_comes_nearer_and_shared_parameters_stay(network):
    make, sharing, x = NETWORKS[network]
    plain, shared = pair(make, **sharing)
    before = copy.deepcopy(shared)
    batches = [x() for _ in range(3)]
    found = reconstruct(shared, plain, batches, steps=30)
    inside = 'blocks.' if network != 'sequential' else ''
    assert [each.block for each in found] == [f'{inside}{i}' for i in ((1, 3) if network == 'outright' else (1, 2, 3))]
    assert all(each.after < each.before for each in found)
    for old, new in zip(banks(before), banks(shared)):
        assert all(torch.equal(a, b) for a, b in zip(old.parameters(), new.parameters()))
    for (name, old), new in zip(before.state_dict().items(), shared.state_dict().values()):
        if 'running' in name or name.endswith('0.fc.weight'):
            assert torch.equal(old, new)
    assert all(a.requires_grad == b.requires_grad for a, b in zip(before.parameters(), shared.parameters()))
    with torch.no_grad():
        errors = [sum((net(x.clone()) - plain(x)).norm() for x in batches) for net in (shared, before)]
    assert errors[0] < errors[1]


def test_a_block_with_nothing_of_its_own_stays():
    plain, shared = pair(lambda: chain(lambda: nn.Linear(8, 8, bias=False)), groups=['0'], bank=TIED)
    found = reconstruct(shared, plain, [torch.randn(4, 8)], steps=3)
    assert len(found) == 3 and all(each.before == each.after > 0 for each in found)


def test_the_error_of_the_last_block_is_that_of_the_network():
    make, sharing, x = NETWORKS['sequential']
    plain, shared = pair(make, **sharing)
    batch = x()
    found = reconstruct(shared, plain, [batch], steps=3)
    with torch.no_grad():
        wanted = plain(batch)
        assert found[-1].after == pytest.approx(((shared(batch) - wanted).norm() / wanted.norm()).item())


def test_the_blocks_of_a_backbone_learn_from_what_comes_behind_those_before(mmpretrain):
    plain, shared = pair(lambda: small(bank=None), groups=['conv[12]'], bank=RELAXED)
    batch, seen = image(32), []
    shared.layer2[1].register_forward_pre_hook(lambda block, args: seen.append(args[0].clone()))
    found = reconstruct(shared, plain, [batch], steps=3)
    assert [each.block for each in found] == ['layer1.1', 'layer2.1']
    before = nn.Sequential(shared.conv1, shared.norm1, nn.ReLU(), shared.maxpool, shared.layer1, shared.layer2[0])
    torch.testing.assert_close(seen[1], before(batch))


def test_a_block_of_other_inputs_learns_what_the_plain_one_makes_of_them():
    plain, shared = pair(Blocks, groups=['fc'], bank=RELAXED)
    with torch.no_grad():
        plain.blocks[0].norm.weight.mul_(-100)
    found = reconstruct(shared, plain, [torch.randn(64, 8)], steps=30)
    assert all(each.after < each.before < 0.7 for each in found)


def test_a_limit_leaves_batches_out():
    plain, shared = pair(Blocks, groups=['fc'], bank=RELAXED)
    calls = []
    plain.register_forward_pre_hook(lambda *_: calls.append(1))
    reconstruct(shared, plain, [torch.randn(16, 8) for _ in range(10)], steps=1, limit=3.5 * 2 * 16 * 8 * 4 / 1e9)
    assert len(calls) == 3 * 3


def reconstructing_worker(rank, given, folder):
    join(rank, folder)
    plain, shared, batches = pickle.loads(given)
    inputs = batches[: 1 - rank], batches[rank:]  # at first the second process has none
    found = [reconstruct(shared, plain, each, steps=5) for each in inputs]
    torch.save(([len(each) for each in found], shared.state_dict()), f'{folder}/{rank}.pth')
    leave()


@pytest.mark.slow
def test_of_two_processes_the_first_decides_and_a_block_needs_inputs_in_both(tmp_path):
    make, sharing, x = NETWORKS['sequential']
    plain, shared = pair(make, **sharing)
    batches = [x(), x()]
    given = pickle.dumps((plain, shared, batches))
    in_two_processes(reconstructing_worker, given, str(tmp_path))
    reconstruct(shared, plain, batches, steps=5)
    for rank in range(2):
        counts, found = torch.load(tmp_path / f'{rank}.pth', weights_only=True)
        assert counts == [0, 3]
        torch.testing.assert_close(dict(found), dict(shared.state_dict()))
