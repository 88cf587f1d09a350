"""Safetensors files of shared networks load as they are, and numpy unpacks them into the plain network."""

import copy
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from blocks import Towers, TurnedFilters, shared_blocks
from torch import nn

from helpers import BASIS, REPEATED, ROOT, evaluating, randomise_norms
from mmshared import SharedLayer, SharingError, banks, fold_layers, share_layers
from mmshared.engine.checkpoint import load_checkpoint_file

safetensors = pytest.importorskip('safetensors.torch')

from mmshared.convert.packing import pack  # noqa: E402
from mmshared.convert.unpack import unpack  # noqa: E402

FORMS = [None, 'half', 'int8']


@pytest.fixture(scope='module')
def shared():
    return shared_blocks()


@pytest.fixture(scope='module', params=FORMS, ids=str)
def packed(request, shared, tmp_path_factory):
    path = tmp_path_factory.mktemp('packed') / 'shared.safetensors'
    return path, pack(shared, path, request.param), request.param


@pytest.mark.slow
def test_a_packed_network_loads_strictly_and_unpacks_into_the_plain_one_that_it_equals(shared, packed):
    path, plain, _ = packed
    loaded = copy.deepcopy(shared)
    loaded.load_state_dict(load_checkpoint_file(str(path)), strict=True)
    folded, unpacked = fold_layers(loaded).state_dict(), unpack(path)
    assert unpacked.keys() == folded.keys() == plain.state_dict().keys()
    for key, values in folded.items():
        torch.testing.assert_close(torch.tensor(unpacked[key]), values, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_form_costs_little(shared, packed):
    path, plain, form = packed
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        differences = [
            ((found - wanted).norm() / wanted.norm()).item() for found, wanted in zip(plain(images), shared(images))
        ]
    least, most = {None: (0, 1e-5), 'half': (1e-5, 2e-3), 'int8': (1e-3, 0.05)}[form]
    assert least <= max(differences) < most


@pytest.mark.slow
def test_each_bank_is_stored_once(shared, packed):
    path, _, form = packed
    stored, state = safetensors.load_file(path), shared.state_dict()
    width = {None: 4, 'half': 2, 'int8': 1}[form]
    for key, tensor in state.items():
        assert stored[key].numel() == tensor.numel()
        if tensor.is_floating_point() and tensor.dim() > 1 and tensor.numel() >= 256:
            assert stored[key].element_size() <= width  # signs take a byte
    own = sum(each.numel() for key, each in stored.items() if key not in state and not key.endswith(':scale'))
    assert own < 0.05 * sum(each.numel() for each in state.values())  # the biases that moved


@pytest.mark.parametrize('bank', [dict(BASIS, shared_rank=8, unique_rank=0, base_channels=16), REPEATED])
@pytest.mark.parametrize('form', FORMS, ids=str)
def test_what_has_several_names_is_stored_once(bank, form, tmp_path):
    network = randomise_norms(Towers())
    share_layers(network, groups=['conv'], bank=bank)
    path = tmp_path / 'towers.safetensors'
    plain = pack(evaluating(network), path, form)
    stored = safetensors.load_file(path)
    assert not [key for key in stored if re.match(r'towers\.[12].*(conv|bank)', key)]
    loaded = copy.deepcopy(network)
    loaded.load_state_dict(load_checkpoint_file(str(path)), strict=True)
    x = torch.randn(1, 16, 8, 8)
    torch.testing.assert_close(loaded(x), plain(x), rtol=1e-3, atol=1e-4)
    before = plain(x)
    plain.load_state_dict({key: torch.tensor(each) for key, each in unpack(path).items()}, strict=True)
    torch.testing.assert_close(plain(x), before, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_copy_of_the_file_unpacks_without_mmshared(packed, tmp_path):
    path, plain, _ = packed
    code = (ROOT / 'mmshared/convert/unpack.py').read_text()
    before = "import sys\nfor name in ('torch', 'mmshared'): sys.modules[name] = None\n"
    after = '\nnp.savez(sys.argv[2], **unpack(sys.argv[1]))\n'
    subprocess.run([sys.executable, '-c', before + code + after, path, tmp_path / 'plain.npz'], check=True)
    with np.load(tmp_path / 'plain.npz') as arrays:
        plain.load_state_dict({key: torch.tensor(arrays[key]) for key in arrays}, strict=True)


def linears(bank) -> nn.Module:
    network = nn.Sequential(*[nn.Sequential(nn.Linear(20, 20)) for _ in range(3)])
    share_layers(network, ['0'], bank, own_blocks=0)
    return network.eval()


def test_a_plain_network_is_packed_too(tmp_path):
    network = nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 2))
    plain = pack(network, tmp_path / 'plain.safetensors', 'int8')
    found = unpack(tmp_path / 'plain.safetensors')
    assert list(plain.state_dict()) == list(network.state_dict()) and found.keys() == plain.state_dict().keys()
    assert 0 < (plain[0].weight - network[0].weight).abs().max() < 0.01 and plain[1].weight.equal(network[1].weight)


class Roots(TurnedFilters):
    """Filters of which both the signs and the values count."""

    def generate(self):
        return self.filters.sign() * self.filters.abs().sqrt()


@pytest.mark.parametrize('form', FORMS)
def test_values_whose_signs_count_too_are_kept(tmp_path, form):
    network = linears(dict(type=Roots))
    plain = pack(network, tmp_path / 'shared.safetensors', form)
    for found, wanted in zip(plain.parameters(), fold_layers(copy.deepcopy(network)).parameters()):
        assert (found - wanted).norm() < 0.05 * wanted.norm()


class InvertedLayer(SharedLayer):
    def dense(self):
        return torch.linalg.inv(self.bank()), self.bias


class InvertedFilters(TurnedFilters):
    layer_class = InvertedLayer


@pytest.mark.parametrize(
    'bank, form, scale, message',
    [
        (dict(type=InvertedFilters), None, 1, 'aten.linalg_inv_ex.default, which is not translated'),
        (dict(type='TiedFilters'), 'half', 1e6, 'too large for half precision'),
    ],
)
def test_what_cannot_be_packed_is_refused(tmp_path, bank, form, scale, message):
    network = linears(bank)
    for each in banks(network)[0].parameters():
        each.data.mul_(scale)
    with pytest.raises(SharingError, match=message):
        pack(network, tmp_path / 'shared.safetensors', form)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda found: {**found, '0.0.weight': found['0.0.weight'] + 1}, 'weights that .* unpacks into are others'),
        (lambda found: {**found, 'more': np.zeros(1)}, 'does not unpack into the plain network'),
    ],
)
def test_a_file_that_unpacks_into_another_network_is_not_written(tmp_path, monkeypatch, change, message):
    monkeypatch.setattr('mmshared.convert.unpack.unpack', lambda path: change(unpack(path)))
    with pytest.raises(SharingError, match=message):
        pack(linears(dict(type='TiedFilters')), tmp_path / 'shared.safetensors')
    assert not list(tmp_path.iterdir())


def test_a_file_names_no_other_operations(tmp_path):
    program = dict(steps=[['%0', 'load', 'a']], dropped=[])
    safetensors.save_file(dict(a=torch.ones(1)), tmp_path / 'a.safetensors', dict(plain=json.dumps(program)))
    with pytest.raises(KeyError, match='load'):
        unpack(tmp_path / 'a.safetensors')
