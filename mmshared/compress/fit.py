"""Converts a checkpoint of a plain network by what its layers compute on images."""

from __future__ import annotations

import torch
from mmengine.config import Config
from torch import Tensor, nn

from ..convert.dense import share_checkpoint
from ..engine.build import build_model, build_plain, load_whole
from ..sharing import SharingError, banks
from ..sharing.state_dict import Conversion
from .calibration import calibration_loader
from .norms import recalibrate_norms
from .statistics import collect_moments, shared_names


def fit_checkpoint(
    cfg: Config, state_dict: dict[str, Tensor], name: str, images: int
) -> tuple[nn.Module, list[Conversion]]:
    """Convert the state dict of a plain model to that of a config's shared one, fitted to the outputs of its layers.

    Args:
        cfg (Config): The config of the shared model, with training data.
        state_dict (dict): The state dict of the whole plain model.
        name (str): The name of the checkpoint, for messages.
        images (int): The number of training images that the layers and the batch norms are measured on.

    Returns:
        tuple: The shared model, in eval mode and on a GPU if there is one, and the result for each group.

    Raises:
        SharingError: If the config has no training data or shares nothing, or if the state dict is not of the whole
            plain model.
    """
    loader = calibration_loader(cfg, images)
    model, plain = build_model(cfg), build_plain(cfg)
    if not banks(model):
        raise SharingError('The network of this config shares nothing: give a config of a network that shares.')
    if hasattr(model, 'backbone') and not any(key.startswith('backbone.') for key in state_dict):
        raise SharingError(f'{name} is of a backbone, and images run through the whole network: give all of it.')
    load_whole(plain, state_dict, name, 'the plain network of the config')
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    for each in (model, plain):
        each.to(device).eval()
    moments = collect_moments(plain, loader, shared_names(model))
    conversions = share_checkpoint(model, dict(state_dict), name, moments)
    recalibrate_norms(model, plain, loader)
    return model, conversions
