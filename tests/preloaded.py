"""What the server of :func:`helpers.forks` has imported before it forks."""

import conftest  # noqa: F401, I001  (first: it supplies mmcv's operators)

import gc
import warnings

import mmdet.utils
import mmpretrain.utils
from mmengine.config import Config

import helpers  # noqa: F401
from mmshared.engine.config import config_path

with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    for library in (mmdet, mmpretrain):
        library.utils.register_all_modules(init_default_scope=False)
# The metafiles of both libraries, which a base config reads all.
for name in ('mmdet::_base_/models/retinanet_r50_fpn.py', 'mmpretrain::_base_/models/resnet18.py'):
    Config.fromfile(config_path(name))
gc.freeze()
