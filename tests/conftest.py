import mmshared  # noqa: F401, I001  (before mmdet: it supplies mmcv's operators)

import pytest
import torch
from mmengine.registry import DefaultScope, init_default_scope


@pytest.fixture(autouse=True)
def _same_numbers():
    torch.manual_seed(0)
    yield
    DefaultScope._instance_dict.clear()


@pytest.fixture(params=['mmdet', 'mmpretrain'])
def library(request):
    init_default_scope(request.param)
    return request.param


@pytest.fixture
def mmpretrain():
    init_default_scope('mmpretrain')


@pytest.fixture
def mmdet():
    init_default_scope('mmdet')
