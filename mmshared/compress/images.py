"""The images that a trained network is studied on: some of its training images, prepared as for testing."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner


def calibration_batches(cfg: Config, images: int) -> Iterator[Any]:
    """Batches of training images without augmentation, drawn at random but the same for each call.

    Args:
        cfg (Config): A config with ``train_dataloader`` and ``val_dataloader``. The images are from the first, their
            preparation and the size of the batches from the second.
        images (int): About how many images: whole batches, unless there are fewer.
    """
    init_default_scope(cfg.default_scope)
    loader = copy.deepcopy(cfg.val_dataloader)
    loader.dataset = plain_dataset(cfg.train_dataloader.dataset, pipeline_of(loader.dataset))
    loader.sampler = dict(type='DefaultSampler', shuffle=True, seed=0)
    for key in ('batch_sampler', 'drop_last'):
        loader.pop(key, None)
    loader.batch_size = min(loader.batch_size, images)
    left = images
    for batch in Runner.build_dataloader(loader, seed=0):
        yield batch
        left -= loader.batch_size
        if left <= 0:
            return


def pipeline_of(dataset: dict) -> list[dict]:
    """The pipeline of a data set, or of the first of several."""
    while 'pipeline' not in dataset:
        dataset = dataset['dataset'] if 'dataset' in dataset else dataset['datasets'][0]
    return dataset['pipeline']


def plain_dataset(dataset: dict, pipeline: list[dict]) -> dict:
    """A data set with another pipeline, without what repeats, balances or mixes its images."""
    if 'dataset' in dataset:
        return plain_dataset(dataset['dataset'], pipeline)
    if 'datasets' in dataset:
        return {**dataset, 'datasets': [plain_dataset(each, pipeline) for each in dataset['datasets']]}
    return {**dataset, 'pipeline': pipeline}
