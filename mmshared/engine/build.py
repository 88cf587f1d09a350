"""Builds the models of configs, without a runner."""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeGuard
from unittest.mock import patch

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..sharing import SharingError
from ..sharing.state_dict import share_state_dict
from .checkpoint import load_checkpoint_file, state_dict_of
from .config import first_line, plain_twin, shares


def build_model(cfg: Config) -> nn.Module:
    """Build a config's model from scratch, without loading or downloading what its ``init_cfg`` names. It gets the
    ``data_preprocessor`` that the config has beside it, as from a runner."""
    init_default_scope(cfg.default_scope)
    model = copy.deepcopy(cfg.model)
    if cfg.get('data_preprocessor'):
        model.setdefault('data_preprocessor', copy.deepcopy(cfg.data_preprocessor))
    return MODELS.build(model)


def build_empty(cfg: Config, build: Callable[[Config], nn.Module] = build_model) -> nn.Module:
    """Build a config's model, or what another function makes of it, on the meta device: without values, for counting,
    and instantly whatever its size."""
    try:
        # Backbones read their drop path rates from a linspace.
        with patch('torch.linspace', partial(torch.linspace, device='cpu')), torch.device('meta'):
            return build(cfg).to('meta')  # some parameters ignore the device, as those by torch.Tensor(256)
    except NotImplementedError:  # escnn reads the values of its filters
        return build(cfg)


def build_plain(cfg: Config) -> nn.Module:
    """Build the plain twin of a config's model."""
    plain = copy.deepcopy(cfg)
    plain.model = plain_twin(cfg.model)
    return build_model(plain)


def load_whole(module: nn.Module, state_dict: dict[str, Tensor], checkpoint: str, network: str) -> None:
    """Load the state dict of a checkpoint into a module, with exactly its keys, or say that it is not of ``network``.

    Raises:
        SharingError: If it does not fit.
    """
    try:
        module.load_state_dict(state_dict)
    except (RuntimeError, TypeError, ValueError) as error:
        reason = str(error).split('\n\t')[-1].strip()
        raise SharingError(f'The checkpoint {checkpoint} is not of {network}: {reason}') from None


def load_model(cfg: Config, checkpoint: str) -> nn.Module:
    """Load a config's model in eval mode, with exactly the weights of a checkpoint.

    Raises:
        SharingError: If the checkpoint cannot be read or is not of this model.
    """
    model = build_model(cfg)
    state_dict = state_dict_of(load_checkpoint_file(checkpoint))
    if share_state_dict(model, dict(state_dict)):
        raise SharingError(
            f'The checkpoint {checkpoint} is of the plain network, and that of this config shares: '
            'convert it with `mmshared dense-to-shared`.'
        )
    load_whole(model, state_dict, checkpoint, 'the model of this config')
    model.eval()
    return model


def check_sharing(cfg: Config) -> None:
    """Build the model of a config that shares, without values, so that sharing errors are raised before anything else
    is done.

    Raises:
        SharingError: If the model cannot share in this way. Other errors are raised when the model is really built.
    """
    if shares(cfg.model):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            try:
                build_empty(cfg)
            except SharingError:
                raise
            except Exception:
                return


def is_detector(model: nn.Module) -> TypeGuard[Any]:
    """Whether a model is one of mmdet's detectors. If it is, mmdet has been imported already."""
    detectors = sys.modules.get('mmdet.models.detectors')
    return detectors is not None and isinstance(model, detectors.BaseDetector)


def has_softmax(model: nn.Module) -> bool:
    """Whether the logits of a classifier are of classes that exclude each other: not those of several labels, nor of a
    loss with a sigmoid."""
    head, heads = getattr(model, 'head', None), sys.modules.get('mmpretrain.models.heads')
    several = heads is not None and isinstance(head, heads.MultiLabelClsHead)
    losses = head.modules() if isinstance(head, nn.Module) else ()
    return not several and not any(getattr(each, 'use_sigmoid', False) for each in losses)


def predicts_masks(detector: Any) -> bool:
    """Whether a detector predicts a mask of each object."""
    in_head = hasattr(getattr(detector, 'bbox_head', None), 'mask_head')  # as in RTMDet-Ins
    return in_head or hasattr(detector, 'panoptic_head') or getattr(detector, 'with_mask', False)


def feature_maps(model: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
    """The output of a model for images, (N, 3, H, W): the logits of a classifier, or the neck's feature maps of a
    detector.

    Raises:
        SharingError: If it takes no images of this size or with this number of channels.
    """
    features: Any = getattr(model, 'extract_feat', None) if is_detector(model) else model
    try:
        maps = features(images)
    except (AssertionError, RuntimeError) as error:
        raise SharingError(
            f'The network cannot take images of {"x".join(map(str, images.shape[1:]))}: {first_line(error)}'
        ) from error
    return tuple(maps) if isinstance(maps, (tuple, list)) else (maps,)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within this context a model is in eval mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def inner(model: nn.Module) -> nn.Module:
    """The backbone of a detector; a classifier itself."""
    return model.get_submodule('backbone') if is_detector(model) else model


def tensors_in(values: Any) -> list[Tensor]:
    """The tensors in nested lists and dicts, such as batches and outputs; anything else is left out."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
