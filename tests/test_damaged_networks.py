"""Damaged checkpoints of networks: whatever was done to a file, it loads what was saved, or nothing and says why."""

import os
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from mmengine.runner.checkpoint import load_checkpoint

from helpers import evaluating, randomise_norms
from mmshared import SharingError
from mmshared.engine.build import build_model, load_whole
from mmshared.engine.checkpoint import load_checkpoint_file, state_dict_of

BACKBONE = dict(
    type='SharedResNetA_CIFAR',
    depth=20,
    sharing=dict(groups=['conv[12]'], bank=dict(type='FilterBasis', shared_rank=8, unique_rank=1, base_channels=16)),
)
CASES = settings(
    max_examples=int(os.environ.get('MMSHARED_DAMAGED_FILES', 200)) // 4,
    derandomize=True,
    deadline=None,
    database=None,
)
DAMAGES = (
    'flipped bits',
    'zeroed range',
    'cut off',
    'not finite',
    'name',
    'no tensor',
    'sparse',
    'renamed',
    'dropped',
    'shape',
)


def classifier(shared: bool) -> torch.nn.Module:
    torch.manual_seed(0)
    backbone = BACKBONE if shared else dict(type='ResNetA_CIFAR', depth=20)
    return evaluating(
        randomise_norms(
            build_model(
                Config(
                    dict(
                        default_scope='mmpretrain',
                        model=dict(
                            type='ImageClassifier',
                            backbone=backbone,
                            neck=dict(type='GlobalAveragePooling'),
                            head=dict(type='LinearClsHead', num_classes=10, in_channels=64),
                        ),
                    )
                )
            )
        )
    )


@pytest.fixture(scope='module')
def networks(tmp_path_factory):
    """For a shared and a plain checkpoint: its tensors, its file, and what the shared network becomes by it."""
    found = {}
    for name, shared in (('shared', True), ('plain', False)):
        path = tmp_path_factory.mktemp('networks') / f'{name}.pth'
        state = classifier(shared).state_dict()
        torch.save(dict(meta=dict(epoch=1), state_dict=state), path)
        target = classifier(True)
        target.load_state_dict(state)
        found[name] = state, path, {key: tensor.clone() for key, tensor in target.state_dict().items()}
    return found


def damage(state, path, kind, place, other):
    """Write a damaged copy of a checkpoint beside it."""
    out, content = path.with_name('damaged.pth'), bytearray(path.read_bytes())
    if kind == 'flipped bits':
        content[int(place * len(content))] ^= 1 << int(8 * other)
    elif kind == 'zeroed range':
        start = int(place * len(content))
        length = min(int(1 + 2000 * other), len(content) - start)
        content[start : start + length] = bytes(length)
    elif kind == 'cut off':
        content = content[: int(place * len(content))]
    else:
        state = dict(state)
        # Of the stages: what the rest of a network lacks is the loader's matter.
        keys = [
            key for key in state if '.layer' in key and not key.endswith('num_batches_tracked') and state[key].numel()
        ]
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
        torch.save(dict(meta=dict(epoch=1), state_dict={**state, **changed}), out)
        return out
    out.write_bytes(bytes(content))
    return out


@pytest.mark.parametrize('name', ['shared', 'plain'])
@pytest.mark.parametrize('way', ['runner', 'load_whole'])
@pytest.mark.slow
def test_a_damaged_network_loads_what_was_saved_or_nothing(networks, name, way):
    state, path, expected = networks[name]
    target, fresh = classifier(True), {key: tensor.clone() for key, tensor in classifier(True).state_dict().items()}
    for tensor in fresh.values():  # what no checkpoint holds
        tensor.fill_(7)
    seen = Counter()

    @CASES
    @given(
        kind=st.sampled_from(DAMAGES), place=st.floats(0, 1, exclude_max=True), other=st.floats(0, 1, exclude_max=True)
    )
    def try_one(kind, place, other):
        damaged = damage(state, path, kind, place, other)
        for key, tensor in target.state_dict().items():
            tensor.copy_(fresh[key])
        try:
            if way == 'runner':
                load_checkpoint(target, str(damaged), map_location='cpu')
            else:
                load_whole(target, state_dict_of(load_checkpoint_file(str(damaged))), str(damaged), 'this network')
        except SharingError as error:
            assert '\n' not in str(error)
            wanted, end = fresh, 'refused'
        else:
            wanted, end = expected, 'loaded'
        seen[kind, end] += 1
        for key, tensor in target.state_dict().items():
            assert torch.equal(tensor, wanted[key]), (kind, key)

    try_one()
    print(dict(seen))
    assert sum(n for (_, end), n in seen.items() if end == 'refused')
