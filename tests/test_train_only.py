"""Only some parameters are trained."""

from types import SimpleNamespace

import pytest
from torch import nn

from helpers import REPEATED, small, train
from mmshared import SharingError, TrainOnlyHook


def test_training_nothing_is_refused(tmp_path, mmpretrain):
    with pytest.raises(SharingError, match="to train 'mask', and no parameter of the model has that in its name"):
        train(small(REPEATED), tmp_path, [TrainOnlyHook(['bn', 'mask'])])
    for keys in ('bn', []):
        with pytest.raises(SharingError, match=r"is not a list of parts of names: write for example keys=\['bn'\]"):
            TrainOnlyHook(keys)


def test_processes_that_expect_gradients_are_told():
    wrapper = nn.parallel.DistributedDataParallel
    runner = SimpleNamespace(model=type('Wrapped', (wrapper,), {'find_unused_parameters': False}).__new__(wrapper))
    with pytest.raises(SharingError, match='set find_unused_parameters=True'):
        TrainOnlyHook(['bn']).before_train(runner)
