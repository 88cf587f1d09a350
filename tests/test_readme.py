"""The bank in the README, as a user would copy it: into a file beside a config that imports it."""

import re
import sys

import pytest
import torch

from helpers import ROOT, difference, evaluating, image, randomise_norms, small, train
from mmshared import OrthogonalityLossHook, banks, fold_layers
from mmshared.engine.config import load_config

BANK = dict(type='ScaledFilters')


@pytest.fixture(scope='module', autouse=True)
def _scaled_filters(tmp_path_factory):
    section = (ROOT / 'README.md').read_text().partition('## How it works')[2]
    folder = tmp_path_factory.mktemp('mine')
    (folder / 'scaled_filters.py').write_text(re.search('```python\n(.*?)```', section, re.DOTALL)[1])
    imports = re.search('`(custom_imports = [^`]*)`', section)[1]
    (folder / 'mine.py').write_text(f"{imports}\nmodel = dict()\ndefault_scope = 'mmpretrain'\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'path', list(sys.path))
        patch.setenv('PYTHONPATH', '')
        load_config(str(folder / 'mine.py'))
        yield


def test_it_folds_into_what_it_computes(mmpretrain):
    shared, x = evaluating(randomise_norms(small(BANK))), image()
    assert {type(bank).__name__ for bank in banks(shared)} == {'ScaledFilters'}
    expected = shared(x)
    assert difference(fold_layers(shared)(x), expected) < 1e-5


def test_a_plain_network_whose_kernels_are_multiples_of_one_is_fitted_exactly(mmpretrain):
    shared, plain, x = evaluating(small(BANK)), evaluating(randomise_norms(small(None))), image()
    for bank in banks(shared):
        kernels = [plain.get_submodule(name).weight for name in bank.names]
        for factor, kernel in enumerate(kernels[1:], 2):
            kernel.data.copy_(factor * kernels[0])
    shared.load_state_dict(plain.state_dict())
    with torch.no_grad():
        assert difference(shared(x), plain(x)) < 1e-5


def test_it_has_a_basis_to_keep_orthogonal(mmpretrain, tmp_path):
    _, outputs = train(small(BANK), tmp_path, [OrthogonalityLossHook()])
    assert all(output['loss_orth'] > 0 for output in outputs)
