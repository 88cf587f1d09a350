"""Every committed config that shares folds into the network of its stock config."""

import pytest
import torch
from mmengine.config import Config
from mmpretrain.registry import MODELS

from helpers import SHARING_CONFIGS, evaluating, randomise_norms
from mmshared import SharingError, banks, share_layers
from mmshared.backbones.cifar import ResNetA_CIFAR
from mmshared.convert.fold import fold_model
from mmshared.engine.build import build_model


def narrowed(cfg: Config) -> Config:
    """A config with fewer channels in the networks that are wide: the layers, the groups and the ranks in proportion
    stay."""
    model, backbone = cfg.model, cfg.model.backbone
    if backbone.type == 'SharedWideResNet_CIFAR':
        backbone.widen_factor, model.head.in_channels = 1, 64
    elif backbone.type == 'SharedDenseNet_CIFAR':
        backbone.arch = dict(growth_rate=8, depths=[6, 12, 24, 16], init_channels=16)
        backbone.sharing.bank.base_channels, model.head.in_channels = 32, 256
    elif backbone.type == 'SharedResNet':
        quarter = backbone.get('base_channels', 64) // 4
        bank = backbone.sharing.bank
        if 'shared_rank' in bank:
            bank.base_channels = 16
        if quarter == 16:
            backbone.base_channels = backbone.stem_channels = 16
            if 'neck' in model and 'in_channels' in model.neck:
                model.neck.in_channels = [channels // 4 for channels in model.neck.in_channels]
            elif 'in_channels' in model.get('head', {}):
                model.head.in_channels //= 4
    return cfg


@pytest.mark.slow
@pytest.mark.parametrize('path', SHARING_CONFIGS, ids=lambda path: path.stem)
def test_the_network_of_a_config_folds_into_its_stock_one(path):
    cfg = narrowed(Config.fromfile(path))
    shared = evaluating(randomise_norms(build_model(cfg)))
    size = (1, 29, 29) if 'rotmnist' in path.stem else (3, 32, 32)
    folded = fold_model(cfg, shared, torch.randn(2, *size))
    assert banks(shared) and not banks(folded.plain)
    assert 'sharing' not in folded.config.pretty_text


def test_a_network_that_shares_by_its_own_code_needs_a_twin():
    @MODELS.register_module(force=True)
    class SharingByItself(ResNetA_CIFAR):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            share_layers(self, groups=['conv1'], bank=dict(type='TiedFilters'))

    cfg = Config(dict(default_scope='mmpretrain', model=dict(type='SharingByItself', depth=20)))
    shared = evaluating(build_model(cfg))
    with pytest.raises(SharingError, match='by its own code.*give its class a twin'):
        fold_model(cfg, shared, torch.randn(2, 3, 32, 32))
