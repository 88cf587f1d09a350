"""Counts parameters and multiply-adds, shared against plain."""

import copy
import math
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch
import torchvision  # noqa: F401, which has deformable convs
from mmengine.config import Config
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..engine.build import build_empty, build_plain, evaluating, feature_maps, is_detector
from ..sharing import SharedLayer, fold_layers, named_banks
from ..sharing.attention import plain_attention
from ..sharing.bank import generate_once, stage_of
from ..sharing.filter_basis import BasisLayer


def _deformable(x: tuple, weight: tuple, *args: Any, out_shape: tuple, **kwargs: Any) -> int:
    """The operations of a deformable conv: those of the conv, without the offsets' interpolation."""
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


_DEFORMABLE = {torch.ops.torchvision.deform_conv2d: _deformable}


def parameter_count(model: nn.Module) -> int:
    """The number of parameters, with shared ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_multiply_adds(model: nn.Module, size: tuple[int, ...]) -> dict[str, int]:
    """The multiply-adds of the convs and linear layers for one image, by module. What makes the weights, once for a
    whole batch, is not counted. Layers on a basis count as the filters and then the coefficients, as in the paper,
    though in eval mode they may run as the plain layer. The projections of an ``nn.MultiheadAttention`` are counted
    under the attention, which does not call them as modules.

    Args:
        model (nn.Module): A classifier or a detector. Only the backbone and neck of a detector are counted: the rest
            depends on the number of proposals.
        size (tuple[int, ...]): Height and width of the image, preceded by its channels if not 3.

    Returns:
        dict[str, int]: The number for each module by name; the name '' has the total.
    """
    image = torch.zeros(1, *(3, *size)[-3:], device=next(model.parameters()).device)
    with torch.no_grad(), evaluating(model), plain_attention(), generate_once(model), ExitStack() as made:
        made.enter_context(patch.object(BasisLayer, 'plain_is_cheaper', return_value=False))
        for layer in model.modules():
            if isinstance(layer, SharedLayer):
                made.enter_context(patch.object(layer, 'dense', return_value=layer.dense()))
        with FlopCounterMode(display=False, custom_mapping=_DEFORMABLE) as counter:
            feature_maps(model, image)
    # The counter names the outermost modules by their class: the model, or backbone and neck of a detector, which may
    # be in its teacher.
    named = list(model.named_modules())
    parts = (
        [each for each in named if each[0].rpartition('.')[2] in ('backbone', 'neck')] if is_detector(model) else []
    )
    roots = {type(module).__name__: name for name, module in [*reversed(named), *reversed(parts)]} | {'Global': ''}
    counts = {}
    for path, flops in counter.get_flop_counts().items():
        root, _, rest = path.partition('.')
        counts['.'.join(filter(None, (roots[root], rest)))] = sum(flops.values()) // 2
    return counts


def complexity(cfg: Config, size: tuple[int, ...]) -> dict[str, int]:
    """Parameters and multiply-adds of a config's model and of its plain twin."""
    shared, plain = build_empty(cfg), build_empty(cfg, build_plain)
    return dict(
        parameters=parameter_count(shared),
        plain_parameters=parameter_count(plain),
        multiply_adds=count_multiply_adds(shared, size)[''],
        plain_multiply_adds=count_multiply_adds(plain, size)[''],
    )


def _sum(counts: dict[str, int], layers: list[str]) -> int | None:
    found = [counts[layer] for layer in layers if layer in counts]
    return sum(found) if found else None


def sharing_groups(model: nn.Module, size: tuple[int, ...]) -> list[dict]:
    """Which layers share what in a model, a row for each group.

    Args:
        model (nn.Module): A classifier or a detector.
        size (tuple[int, ...]): The image size for counting multiply-adds.

    Returns:
        list[dict]: For each group its stage, group, bank, the layers by their names in the stage, their shared
        parameters, their own parameters and the parameters that they would have without sharing, and the
        multiply-adds of all of them, shared and plain: None if :func:`count_multiply_adds` has none of them.
    """
    multiply_adds = count_multiply_adds(model, size)
    plain_multiply_adds = count_multiply_adds(fold_layers(copy.deepcopy(model)), size)
    names = {layer: name for name, layer in model.named_modules() if isinstance(layer, SharedLayer)}
    rows = []
    for name, bank in named_banks(model).items():
        stage = stage_of(name, bank) or ''
        shared, layers = parameter_count(bank), [names[layer] for layer in bank.layers]
        rows.append(
            dict(
                stage=stage,
                group=bank.group,
                bank=type(bank).__name__,
                layers=[layer.removeprefix(f'{stage}.') for layer in layers],
                shared=shared,
                own=sum(parameter_count(layer) for layer in bank.layers) - shared,
                plain=sum(
                    layer.shape.numel() + (0 if layer.bias is None else layer.bias.numel()) for layer in bank.layers
                ),
                multiply_adds=_sum(multiply_adds, layers),
                plain_multiply_adds=_sum(plain_multiply_adds, layers),
            )
        )
    return rows
