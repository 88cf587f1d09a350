import os

os.environ.setdefault('CUDA_VISIBLE_DEVICES', '')  # tests need no GPU, and two processes would not share one

import mmshared  # noqa: F401, I001  (before mmdet: it supplies mmcv's operators)

import copy
import gc
from functools import cache
from pathlib import Path

import mmengine
import mmengine.config.utils as config_utils
import numpy as np
import pytest
import torch
import yapf.yapflib.yapf_api as yapf_api
from mmengine.config import Config
from mmengine.registry import DefaultScope, init_default_scope
from PIL import Image

# For each base that is a library's, mmengine reads all metafiles of that library: here once.
config_utils.load = cache(config_utils.load)
_ROOT = Path(__file__).parents[1]
_FOLDERS = (_ROOT / 'configs', _ROOT / 'projects', Path(mmengine.__file__).parents[1])
_read = cache(Config._file2dict)


def _read_once(filename, *options, **named):
    """A config and its bases, of this clone or of a library, are read once: that takes a tenth of a second."""
    if not any(map(Path(filename).is_relative_to, _FOLDERS)):
        return _read.__wrapped__(filename, *options, **named)
    return copy.deepcopy(_read(str(filename), *options, **named))


Config._file2dict = staticmethod(_read_once)
# mmengine has yapf format a config each time that its text is asked for, half a second: here once.
_formatted = cache(lambda text, style, format=yapf_api.FormatCode: format(text, style_config=dict(style)))
yapf_api.FormatCode = lambda text, style_config: _formatted(text, tuple(style_config.items()))
# mmengine's data sets collect all garbage when they are made: not among what the imports above have left.
gc.freeze()


@pytest.fixture(autouse=True)
def _same_numbers():
    torch.manual_seed(0)
    yield
    DefaultScope._instance_dict.clear()


@pytest.fixture(params=['mmpretrain', pytest.param('mmdet', marks=pytest.mark.slow)])
def library(request):
    init_default_scope(request.param)
    return request.param


@pytest.fixture
def mmpretrain():
    init_default_scope('mmpretrain')


@pytest.fixture
def mmdet():
    init_default_scope('mmdet')


@pytest.fixture(scope='session')
def images(tmp_path_factory):
    """A folder of images for each of ten classes."""
    root, random = tmp_path_factory.mktemp('images'), np.random.default_rng(0)
    for name in (f'{split}/{label}/{i}.png' for split in ('train', 'test') for label in range(10) for i in range(4)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(root / name)
    return root
