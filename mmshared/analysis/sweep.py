"""Builds every stock config of a library with the repeated layers of its backbone tied."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from ..engine.build import build_empty, tensors_in
from ..engine.config import config_folder, shared_type
from ..sharing import RepeatedLayers, SharingError, banks, fold_layers, repeated_layers
from ..sharing.deployment import relative_difference

TIED = dict(type='TiedFilters')
NOT_RUN = 'not run, as the plain backbone cannot be either'


class Outcome(NamedTuple):
    """The result for a config.

    Attributes:
        result (str): ``built``, with the repeated layers of its backbone tied; ``no repeated layer``; ``no backbone``;
            ``not here`` if the plain model cannot be built either; ``failed``.
        reason (str): Why it was not built, or not run.
        groups (int): Number of groups.
        saved (float): The share of the backbone's parameters that tying saves.
    """

    result: str
    reason: str = ''
    groups: int = 0
    saved: float = 0.0


def stock_configs(library: str) -> dict[str, Path]:
    """The configs of a library by their names in it."""
    root = Path(config_folder(library))
    paths = [path for path in sorted(root.rglob('*.py')) if '_base_' not in path.parts]
    return {f'{library}::{path.relative_to(root)}': path for path in paths}


def backbones_of(model: object) -> Iterator[dict]:
    """The configs of all backbones in a model's config."""
    if isinstance(model, dict):
        backbone = model.get('backbone')
        if isinstance(backbone, dict) and 'type' in backbone:
            yield backbone
        for value in model.values():
            yield from backbones_of(value)
    elif isinstance(model, (list, tuple)):
        for value in model:
            yield from backbones_of(value)


def tie(backbone: dict, groups: list[RepeatedLayers]) -> None:
    """Turn the config of a backbone into one of its twin with tied groups, in place."""
    backbone['type'] = shared_type(backbone['type'])
    backbone['sharing'] = [
        dict(stages=re.escape(group.stage), groups=[re.escape(group.group)], bank=TIED, own_blocks=0)
        for group in groups
    ]


def build_part(model: dict, scope: str) -> nn.Module:
    """Build a model, or a part of one, without values."""
    return build_empty(Config(dict(model=model, default_scope=scope)))


class Sweep:
    """Builds configs with the repeated layers of their backbones tied, and runs each distinct backbone once."""

    def __init__(self) -> None:
        self.listed: dict[str, tuple[list[RepeatedLayers], int]] = {}
        self.tried: dict[str, str] = {}

    def config(self, path: Path) -> Outcome:
        """Build the model of a config without values, and its backbone once with values."""
        try:
            cfg = Config.fromfile(path)
        except Exception as error:
            return Outcome('not here', _sentence(error))
        backbones = list(backbones_of(cfg.get('model')))
        if not backbones:
            return Outcome('no backbone')
        scope = cfg.get('default_scope') or 'mmpretrain'
        init_default_scope(scope)
        try:
            for backbone in backbones:
                backbone.pop('init_cfg', None)
                self._list(backbone, scope)
        except Exception as error:
            return Outcome('not here', _sentence(error))
        found = [(backbone, *self.listed[_key(backbone, scope)]) for backbone in backbones]
        total, groups = sum(count for _, _, count in found), sum(len(groups) for _, groups, _ in found)
        if not groups:
            return Outcome('no repeated layer', ', '.join(dict.fromkeys(each['type'] for each in backbones)))
        tried = [self._try(backbone, scope, groups) for backbone, groups, _ in found if groups]
        saved = sum((len(group.layers) - 1) * group.parameters for _, groups, _ in found for group in groups)
        try:
            build_part(cfg.to_dict()['model'], scope)
        except Exception as error:
            return Outcome('not here', _sentence(error))
        for backbone, each, _ in found:
            if each:
                tie(backbone, each)
        try:
            build_part(cfg.model, scope)
        except Exception as error:
            return Outcome('failed', _sentence(error))
        reason = next(filter(None, tried), '')
        failed = any(each and not each.startswith(NOT_RUN) for each in tried)
        return Outcome('failed' if failed else 'built', reason, groups, saved / total)

    def _list(self, backbone: dict, scope: str) -> None:
        key = _key(backbone, scope)
        if key not in self.listed:
            network = build_part(backbone, scope)
            self.listed[key] = repeated_layers(network, own_blocks=0), sum(p.numel() for p in network.parameters())

    def _try(self, backbone: dict, scope: str, groups: list[RepeatedLayers]) -> str:
        key = _key(backbone, scope)
        if key not in self.tried:
            shared = json.loads(json.dumps(backbone))
            tie(shared, groups)
            try:
                with patch.object(nn.init, 'trunc_normal_', nn.init.normal_):  # it is slow and not under test
                    network = MODELS.build(shared)
                self.tried[key] = try_network(network, lambda: MODELS.build(json.loads(json.dumps(backbone))))
            except Exception as error:
                self.tried[key] = _sentence(error)
        return self.tried[key]


def try_network(network: nn.Module, build_plain: Callable[[], nn.Module]) -> str:
    """Run a shared backbone forward and backward, fold it and run it again.

    Returns:
        str: What failed, or why it was not run if the plain backbone cannot be run either; '' if all is well.
    """
    network = revert_sync_batchnorm(network)  # such norms need a GPU
    sizes = [64, 224, *_own_sizes(network)]
    size = next((each for each in sizes if not _refusal(network, each)), None)
    if size is None:
        plain, reason = revert_sync_batchnorm(build_plain()), _refusal(network, sizes[0])
        return f'{NOT_RUN}: {reason}' if all(_refusal(plain, each) for each in sizes) else f'takes no image: {reason}'
    x = torch.randn(2, 3, size, size)
    for parameter in network.parameters():
        if not parameter.detach().abs().max() < 1e3:  # uninitialised: the library expects to load it
            nn.init.normal_(parameter, std=0.02)
    network.train()
    outputs = [output for output in _run(network, x) if output.requires_grad]
    trained = {parameter for bank in banks(network) for parameter in bank.parameters() if parameter.requires_grad}
    if trained:
        sum(output.float().square().mean() for output in outputs).backward()
        if not any(parameter.grad is not None for parameter in trained):
            return 'no gradient reaches a bank'
    network.eval()
    with torch.no_grad():
        expected = [output.clone() for output in _run(network, x)]
        found = _run(fold_layers(network), x)
    difference = relative_difference(found, expected)
    return '' if difference < 1e-4 else f'the folded network differs by a relative {difference:.2g}'


def _own_sizes(network: nn.Module) -> list[int]:
    sizes = [getattr(module, name, None) for module in network.modules() for name in ('img_size', 'init_out_size')]
    return [each[0] if isinstance(each, (list, tuple)) else each for each in sizes if each]


def _run(network: nn.Module, x: Tensor) -> list[Tensor]:
    torch.manual_seed(0)  # some networks mask random parts of the image
    return tensors_in(network(x))


def _refusal(network: nn.Module, size: int) -> str:
    """Why a network cannot take images of a size; '' if it can."""
    network.eval()
    try:
        with torch.no_grad():
            return '' if _run(network, torch.randn(2, 3, size, size)) else 'no output'
    except Exception as error:
        return _sentence(error)


def _key(backbone: dict, scope: str) -> str:
    return json.dumps([scope, backbone], sort_keys=True, default=str)


def _sentence(error: Exception) -> str:
    return str(error) if isinstance(error, SharingError) else f'{type(error).__name__}: {error}'.split('\n')[0][:300]


def count(outcomes: dict[str, Outcome]) -> dict[str, list]:
    """The count of each result and of each of its reasons, most frequent first."""
    return {
        result: [number, Counter(o.reason for o in outcomes.values() if o.result == result and o.reason).most_common()]
        for result, number in Counter(outcome.result for outcome in outcomes.values()).most_common()
    }
