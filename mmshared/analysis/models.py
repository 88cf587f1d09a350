"""The models of configs, without a runner."""
import copy
from functools import partial
from typing import Any, Callable, Dict
from unittest.mock import patch

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from ..checkpoint import load_checkpoint_file, state_dict_of
from ..sharing import SharingError
from ..sharing.state_dict import share_state_dict


def build_model(cfg: Config) -> nn.Module:
    """Build a config's model from scratch, without loading or downloading what its ``init_cfg`` names."""
    init_default_scope(cfg.default_scope)
    return MODELS.build(copy.deepcopy(cfg.model))


def build_empty(cfg: Config, build: Callable[[Config], nn.Module] = build_model) -> nn.Module:
    """Build a config's model, or what another function makes of it, on the meta device: without numbers, to count, and
    whatever its size in no time."""
    try:
        # Backbones read their drop path rates out of a linspace.
        with patch('torch.linspace', partial(torch.linspace, device='cpu')), torch.device('meta'):
            return build(cfg)
    except NotImplementedError:  # escnn reads the numbers of its filters
        return build(cfg)


def plain_twin(cfg: Any) -> Any:
    """A model config without sharing: each type that shares becomes the plain one that it is made of."""
    if isinstance(cfg, dict):
        twin = type(cfg)({key: plain_twin(value) for key, value in cfg.items() if key != 'sharing'})
        if 'sharing' in cfg:
            kind = cfg['type']
            twin['type'] = kind.replace('Shared', '', 1) if isinstance(kind, str) else kind.plain
        return twin
    return [plain_twin(item) for item in cfg] if isinstance(cfg, list) else cfg


def build_plain(cfg: Config) -> nn.Module:
    """Build the plain twin of a config's model."""
    return build_model(Config(dict(model=plain_twin(cfg.model), default_scope=cfg.default_scope)))


def load_whole(module: nn.Module, state_dict: Dict[str, Tensor], checkpoint: str, network: str) -> None:
    """Load the state dict of a checkpoint into a module: all of it, and no other; or say that it is not of a network.

    Raises:
        SharingError: If it does not fit.
    """
    try:
        module.load_state_dict(state_dict)
    except (RuntimeError, TypeError, ValueError) as error:
        reason = str(error).split('\n\t')[-1].strip()
        raise SharingError(f'The checkpoint {checkpoint} is not of {network}: {reason}') from None


def load_model(cfg: Config, checkpoint: str) -> nn.Module:
    """A config's model in eval mode, with the weights of a checkpoint: all of them, and no others.

    Raises:
        SharingError: If the checkpoint cannot be read, or is not one of this model.
    """
    model = build_model(cfg)
    state_dict = state_dict_of(load_checkpoint_file(checkpoint))
    if share_state_dict(model, dict(state_dict)):
        raise SharingError(f'The checkpoint {checkpoint} is of the plain network, and that of this config shares: '
                           'tools/model_converters/dense_to_shared.py makes one of it.')
    load_whole(model, state_dict, checkpoint, 'the model of this config')
    model.eval()
    return model
