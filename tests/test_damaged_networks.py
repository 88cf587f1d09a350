"""Damaged checkpoints of networks: whatever was done to a tensor, they are refused in a sentence, and nothing of them
is loaded. (Damaged bytes are in test_checkpoint.py.)"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.runner.checkpoint import load_checkpoint

from helpers import classifier_config, evaluating, randomise_norms
from mmshared import SharingError
from mmshared.engine.build import build_model, load_whole
from mmshared.engine.checkpoint import load_checkpoint_file, state_dict_of

BACKBONE = dict(
    type='SharedResNetA_CIFAR',
    depth=20,
    sharing=dict(groups=['conv[12]'], bank=dict(type='FilterBasis', shared_rank=8, unique_rank=1, base_channels=16)),
)
CASES = settings(max_examples=50, derandomize=True, deadline=None, database=None)
DAMAGES = ('not finite', 'name', 'no tensor', 'sparse', 'renamed', 'dropped', 'shape')


def classifier(shared: bool) -> torch.nn.Module:
    torch.manual_seed(0)
    backbone = BACKBONE if shared else dict(type='ResNetA_CIFAR', depth=20)
    return evaluating(randomise_norms(build_model(classifier_config(backbone, 64))))


def write_damaged(state, path, kind, place, other):
    """Write a damaged copy of a checkpoint."""
    state = dict(state)
    # Of the stages: what the rest of a network lacks is the loader's matter.
    keys = [key for key in state if '.layer' in key and not key.endswith('num_batches_tracked') and state[key].numel()]
    key = keys[int(place * len(keys))]
    tensor = state.pop(key)
    if kind == 'not finite':
        tensor = tensor.clone()
        tensor.view(-1)[int(other * tensor.numel())] = float('nan')
    changed = {
        'not finite': {key: tensor},
        'name': {int(100 * other): tensor, key: tensor},
        'no tensor': {key: [1.0]},
        'sparse': {key: tensor.to_sparse()},
        'renamed': {f'{key}x': tensor},
        'dropped': {},
        'shape': {key: torch.cat([tensor, tensor])},
    }[kind]
    torch.save(dict(meta=dict(epoch=1), state_dict={**state, **changed}), path)


@pytest.mark.parametrize('shared', [True, False], ids=['shared', 'plain'])
@pytest.mark.parametrize('way', ['runner', 'load_whole'])
@pytest.mark.slow
def test_of_a_damaged_network_nothing_is_loaded(tmp_path, shared, way):
    state, path, target = classifier(shared).state_dict(), tmp_path / 'damaged.pth', classifier(True)
    for tensor in target.state_dict().values():  # what no checkpoint holds
        tensor.fill_(7)

    @CASES
    @given(
        kind=st.sampled_from(DAMAGES), place=st.floats(0, 1, exclude_max=True), other=st.floats(0, 1, exclude_max=True)
    )
    def try_one(kind, place, other):
        write_damaged(state, path, kind, place, other)
        with pytest.raises(SharingError) as error:
            if way == 'runner':
                load_checkpoint(target, str(path), map_location='cpu')
            else:
                load_whole(target, state_dict_of(load_checkpoint_file(str(path))), str(path), 'this network')
        assert '\n' not in str(error.value)
        assert all(tensor.eq(7).all() for tensor in target.state_dict().values())

    try_one()
