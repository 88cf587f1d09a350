"""Parameters and multiply-adds, shared against plain."""
import copy
from typing import Any, Dict, Tuple

import torch
from mmdet.models.detectors import BaseDetector
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def build_model(cfg: Config) -> nn.Module:
    """Build a config's model from scratch, without loading or downloading what its ``init_cfg`` names."""
    init_default_scope(cfg.default_scope)
    return MODELS.build(copy.deepcopy(cfg.model))


def plain_twin(cfg: Any) -> Any:
    """A model config without sharing: each type that shares becomes the plain one that it is made of."""
    if isinstance(cfg, dict):
        twin = type(cfg)({key: plain_twin(value) for key, value in cfg.items() if key != 'sharing'})
        if 'sharing' in cfg:
            twin['type'] = cfg['type'].replace('Shared', '', 1)
        return twin
    return [plain_twin(item) for item in cfg] if isinstance(cfg, list) else cfg


def parameter_count(model: nn.Module) -> int:
    """The number of parameters, a shared one counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def multiply_adds(model: nn.Module, size: Tuple[int, int]) -> int:
    """The multiply-adds of the convs and linear layers that a picture passes.

    Args:
        model (nn.Module): A classifier, or a detector, of which backbone and neck are counted: the rest depends on
            the number of proposals.
        size (tuple[int, int]): Height and width of the picture.
    """
    picture = torch.zeros(1, 3, *size, device=next(model.parameters()).device)
    training = model.training
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()
        model.extract_feat(picture) if isinstance(model, BaseDetector) else model(picture)
    model.train(training)
    return counter.get_total_flops() // 2


def complexity(cfg: Config, size: Tuple[int, int]) -> Dict[str, int]:
    """Parameters and multiply-adds of a config's model and of its plain twin."""
    plain_cfg = Config(dict(model=plain_twin(cfg.model), default_scope=cfg.default_scope))
    shared, plain = build_model(cfg), build_model(plain_cfg)
    return dict(
        parameters=parameter_count(shared),
        plain_parameters=parameter_count(plain),
        macs=multiply_adds(shared, size),
        plain_macs=multiply_adds(plain, size))
