"""Converts a checkpoint of a plain network by what its layers compute on images."""

from __future__ import annotations

from collections.abc import Mapping

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import print_log
from torch import Tensor, nn

from ..convert.dense import share_checkpoint
from ..engine.build import build_model, build_plain, load_whole
from ..engine.data import images_named
from ..sharing import SharingError
from ..sharing.state_dict import Conversion
from .calibration import Batches, calibration_loader
from .norms import recalibrate_norms
from .reconstruction import reconstruct
from .statistics import collect_moments, shared_names


def fit_model(
    model: nn.Module, plain: nn.Module, name: str, moments: Mapping[str, Tensor], batches: Batches, steps: int
) -> list[Conversion]:
    """Fit a shared model to a plain one, without labels: its banks to the outputs of the layers, then the statistics
    of its batch norms, and then what is each layer's own to the outputs of the blocks.

    Args:
        model (nn.Module): The shared model. It is changed in place. Both models go to a GPU if there is one, and
            into eval mode.
        plain (nn.Module): The plain model.
        name (str): The name of its checkpoint, for messages.
        moments (Mapping[str, Tensor]): The second moments of the inputs of its layers, by :func:`collect_moments`.
        batches (Batches): Batches of images.
        steps (int): Number of steps for each block, see :func:`reconstruct`; 0 for none.

    Returns:
        list[Conversion]: The result for each group, before any step.

    Raises:
        SharingError: If the model shares nothing or is not that of the plain one.
    """
    state_dict = {key: tensor.cpu() for key, tensor in plain.state_dict().items()}
    conversions = share_checkpoint(model.cpu(), state_dict, name, moments)
    for each in (model, plain):
        each.to(get_device()).eval()
    recalibrate_norms(model, plain, batches)
    if steps:
        for block in reconstruct(model, plain, batches, steps):
            print_log(
                f'{block.block}: relative error {block.before:.4f}, after {steps} steps {block.after:.4f}',
                logger='current',
            )
    return conversions


def fit_checkpoint(
    cfg: Config, state_dict: dict[str, Tensor], name: str, images: int, steps: int
) -> tuple[nn.Module, list[Conversion]]:
    """Convert the state dict of a plain model to that of a config's shared one, fitted to what it computes on images.

    Args:
        cfg (Config): The config of the shared model, with training data.
        state_dict (dict): The state dict of the whole plain model.
        name (str): The name of the checkpoint, for messages.
        images (int): The number of training images that the layers and the batch norms are measured on.
        steps (int): Number of steps for each block, see :func:`reconstruct`; 0 for none.

    Returns:
        tuple: The shared model, in eval mode and on a GPU if there is one, and the result for each group.

    Raises:
        SharingError: If the config has no training data or shares nothing, or if the state dict is not of the whole
            plain model.
    """
    loader = calibration_loader(cfg, images)
    model, plain = build_model(cfg), build_plain(cfg)
    share_checkpoint(build_model(cfg), dict(state_dict), name)  # what does not fit is refused before any image is read
    if hasattr(model, 'backbone') and not any(key.startswith('backbone.') for key in state_dict):
        raise SharingError(f'{name} is of a backbone, and images run through the whole network: give all of it.')
    load_whole(plain, state_dict, name, 'the plain network of the config')
    with images_named(lambda: [loader.dataset]):
        moments = collect_moments(plain.to(get_device()).eval(), loader, shared_names(model))
        return model, fit_model(model, plain, name, moments, loader, steps)
