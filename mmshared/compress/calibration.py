"""The images that a network is measured on while it is made smaller."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner import Runner
from torch import nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import ConcatDataset, DataLoader, Subset

from ..engine.config import check_data, inner_datasets
from ..sharing import SharingError

#: Batches of images, run through in the same order each time.
Batches: TypeAlias = DataLoader | Sequence


def calibration_data(cfg: Config) -> ConcatDataset:
    """A config's training set, loaded as for testing: without augmentation.

    Raises:
        SharingError: If the config has no training data, or if they are not there.
    """
    if not cfg.get('train_dataloader'):
        raise SharingError(
            'The config has no train_dataloader: the inputs of layers are measured on training images, so add one.'
        )
    init_default_scope(cfg.default_scope)
    check_data(cfg, ['train_dataloader'])
    pipeline = next(inner_datasets(_tested(cfg).dataset)).get('pipeline')
    parts = []
    for each in inner_datasets(cfg.train_dataloader.dataset):
        parts.append(DATASETS.build({**each, **(dict(pipeline=pipeline) if pipeline else {})}))
    return ConcatDataset(parts)


def _tested(cfg: Config) -> Any:
    return cfg.get('test_dataloader') or cfg.get('val_dataloader') or cfg.train_dataloader


def calibration_loader(cfg: Config, images: int, data: ConcatDataset | None = None) -> DataLoader:
    """Load images of a config's training set as for testing, in batches of the test set's size. Each process of a
    distributed run gets its share of them.

    Args:
        cfg (Config): The config.
        images (int): Their number, always the same ones. A smaller training set gives all that it has.
        data (ConcatDataset, optional): What :func:`calibration_data` gives, by default made here.

    Raises:
        SharingError: If the config has no training data, or if they are not there.
    """
    if images < 1:
        raise SharingError(f'images={images}: give 1 or more, some hundred if you can.')
    dataset: Any = calibration_data(cfg) if data is None else data
    drawn = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[:images]
    loader = {key: value for key, value in _tested(cfg).items() if key not in ('batch_sampler', 'num_batch_per_epoch')}
    if cfg.default_scope == 'mmpretrain':  # as its own tools do
        loader.setdefault('collate_fn', dict(type='default_collate'))
    loader.update(
        dataset=Subset(dataset, drawn.tolist()),
        # With a seed, one process can make it without the others.
        sampler=dict(type='DefaultSampler', shuffle=False, round_up=False, seed=0),
        drop_last=False,
    )
    return Runner.build_dataloader(loader)


def within(batches: Iterable, pixels: float) -> Iterator[Any]:
    """The first batches whose images have so many pixels in all, or all batches."""
    for batch in batches:
        yield batch
        pixels -= sum(image.shape[-2:].numel() * image.shape[:-3].numel() for image in tree_leaves(batch['inputs']))
        if pixels <= 0:
            return


def predict(model: nn.Module, batch: Any) -> object:
    """Run a model on a batch as it is tested, so that every layer of backbone, neck and heads runs. A network that is
    not one of mmengine's is called."""
    return getattr(model, 'test_step', model)(batch)
