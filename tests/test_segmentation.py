"""Segmentors of mmseg, a third library, share too."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from helpers import ROOT, loader_options
from mmshared.engine.checkpoint import load_checkpoint_file

pytest.importorskip('mmseg', reason="needs pip install '.[segmentation]'")

CONFIG = """
_base_ = 'mmseg::fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512.py'
norm_cfg = dict(type='BN')
model = dict(
    pretrained=None,
    backbone=dict(
        type='SharedResNetV1c', norm_cfg=norm_cfg, sharing=dict(groups=['conv2'], bank=dict(type='TiedFilters'))),
    decode_head=dict(norm_cfg=norm_cfg), auxiliary_head=dict(norm_cfg=norm_cfg))
"""
OPTIONS = [
    'train_cfg.max_iters=2',
    'train_cfg.val_interval=3',
    'train_dataloader.batch_size=2',
    'default_hooks.logger.interval=1',
    'default_hooks.checkpoint.interval=2',
    *loader_options('train', 'val', 'test'),
]


@pytest.mark.slow
def test_a_stock_segmentor_trains_with_shared_layers(tmp_path):
    random = np.random.default_rng(0)
    for split in ('training', 'validation'):
        for kind, suffix, shape, high in (('images', 'jpg', (64, 64, 3), 256), ('annotations', 'png', (64, 64), 151)):
            (tmp_path / kind / split).mkdir(parents=True)
            for i in range(2):
                image = Image.fromarray(random.integers(0, high, shape, dtype=np.uint8))
                image.save(tmp_path / kind / split / f'{i}.{suffix}')
    (tmp_path / 'config.py').write_text(CONFIG)
    subprocess.run(
        [
            sys.executable,
            'tools/train.py',
            str(tmp_path / 'config.py'),
            '--work-dir',
            str(tmp_path / 'work'),
            '--cfg-options',
            f'data_root={tmp_path}',
            *OPTIONS,
        ],
        cwd=ROOT,
        check=True,
    )
    state = load_checkpoint_file(str(tmp_path / 'work/iter_2.pth'))['state_dict']
    banks = [key for key in state if key.startswith('backbone.') and '.bank.' in key]
    assert len(banks) == 4 and not any('layer3.4.conv2' in key for key in state)
