"""Every stock config of a library with its backbone swapped for the shared twin."""
import copy
from collections import Counter
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple

from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from ..sharing import SharingError
from .models import build_model

#: The pattern for the 3x3 convs of a backbone's blocks (for those of MobileNetV2 and ShuffleNet, their expansions).
GROUPS = {
    'ResNet, ResNetV1c, ResNetV1d, SEResNet, ResNet_CIFAR of 18 or 34 layers': 'conv[12]',
    'ResNet, ResNetV1c, ResNetV1d, SEResNet, ResNet_CIFAR of 50 layers or more': 'conv2',
    'ResNeXt, SEResNeXt, RegNet, TridentResNet, DetectoRS_ResNet, DetectoRS_ResNeXt': 'conv2',
    'Res2Net': r'convs.\d',
    'ResNeSt': 'conv2.conv',
    'MobileNetV2': '(expand_conv|conv.0).conv',
    'ShuffleNetV1': 'g_conv_1x1_expand.conv',
}


class Outcome(NamedTuple):
    """What became of a config.

    Attributes:
        result (str): ``built``; ``refused``, by mmshared; ``no seam``, the backbone does not build its stages in one
            method; ``not here``, the plain model cannot be built either; ``failed``.
        reason (str): Of what is not built.
    """

    result: str
    reason: str = ''


def pattern_for(backbone: dict) -> str:
    """The pattern of :data:`GROUPS` for a backbone's config."""
    name = backbone['type'].rpartition('.')[2]
    rows = {kind: pattern for kinds, pattern in GROUPS.items() for kind in kinds.split(' of ')[0].split(', ')}
    return 'conv[12]' if backbone.get('depth') in (18, 34) and rows[name] == 'conv2' else rows[name]


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


def swap_backbones(model: dict) -> int:
    """Swap the backbones that have a shared twin in the current scope, in place; returns how many there are."""
    swapped = 0
    for backbone in list(backbones_of(model)):
        library, dot, name = backbone['type'].rpartition('.')
        with MODELS.switch_scope_and_registry(library or None) as registry:
            twin = registry.get(f'Shared{name}')
        if twin is not None:
            backbone['sharing'] = dict(groups=[pattern_for(backbone)], bank=dict(type='TiedFilters'))
            backbone['type'] = f'{library}{dot}Shared{name}'
            swapped += 1
    return swapped


def sweep_config(path: Path) -> Outcome:
    """Build the model of a config with its backbones swapped."""
    try:
        cfg = Config.fromfile(path)
    except Exception as error:
        return Outcome('not here', _sentence(error))
    if 'model' not in cfg:
        return Outcome('no seam', 'the config has no model')
    init_default_scope(cfg.get('default_scope', 'mmpretrain'))
    swapped = copy.deepcopy(cfg)
    if not swap_backbones(swapped.model):
        kinds = [backbone['type'] for backbone in backbones_of(cfg.model)]
        return Outcome('no seam', ', '.join(dict.fromkeys(kinds)) or 'no backbone')
    try:
        build_model(swapped)
    except SharingError as error:
        return Outcome('refused', _sentence(error))
    except Exception as error:
        try:
            build_model(cfg)
        except Exception as plain_error:
            return Outcome('not here', _sentence(plain_error))
        return Outcome('failed', _sentence(error))
    return Outcome('built')


def _sentence(error: Exception) -> str:
    return str(error) if isinstance(error, SharingError) else f'{type(error).__name__}: {error}'.split('\n')[0][:300]


def count(outcomes: Dict[str, Outcome]) -> Dict[str, List]:
    """For each result its number, and the reasons with theirs, most frequent first."""
    return {result: [number, Counter(o.reason for o in outcomes.values() if o.result == result and o.reason)
                     .most_common()]
            for result, number in Counter(outcome.result for outcome in outcomes.values()).most_common()}
