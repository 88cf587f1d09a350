"""Parameters and multiply-adds, shared against plain."""
import copy
from typing import Dict, List, Tuple

import torch
from mmengine.config import Config
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..sharing import Bank, SharedConv2d, fold_convs, shared_stages
from ..sharing.base import generate_once
from .export import feature_maps
from .models import build_empty, build_plain


def parameter_count(model: nn.Module) -> int:
    """The number of parameters, a shared one counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_multiply_adds(model: nn.Module, size: Tuple[int, ...]) -> Dict[str, int]:
    """The multiply-adds of the convs and linear layers that a picture passes, by module. What banks generate, once for
    a whole batch, is not counted.

    Args:
        model (nn.Module): A classifier, or a detector, of which backbone and neck are counted: the rest depends on
            the number of proposals.
        size (tuple[int, ...]): Height and width of the picture, and before them its channels where these are not 3.

    Returns:
        dict[str, int]: The number for each module by its name, of all of them for the name ''.
    """
    picture = torch.zeros(1, *(3, *size)[-3:], device=next(model.parameters()).device)
    training = model.training
    model.eval()
    banks = [module for module in model.modules() if isinstance(module, Bank)]
    with torch.no_grad(), generate_once(banks):
        for bank in banks:
            bank()
        with FlopCounterMode(display=False) as counter:
            feature_maps(model, picture)
    model.train(training)
    # The counter knows the module that is called first by its class: the model, or a detector's backbone and neck.
    roots = {type(child).__name__: name for name, child in model.named_children()}
    roots.update({type(model).__name__: '', 'Global': ''})
    counts = {}
    for path, flops in counter.get_flop_counts().items():
        root, _, rest = path.partition('.')
        counts['.'.join(filter(None, (roots[root], rest)))] = sum(flops.values()) // 2
    return counts


def complexity(cfg: Config, size: Tuple[int, ...]) -> Dict[str, int]:
    """Parameters and multiply-adds of a config's model and of its plain twin."""
    shared, plain = build_empty(cfg), build_empty(cfg, build_plain)
    return dict(
        parameters=parameter_count(shared),
        plain_parameters=parameter_count(plain),
        macs=count_multiply_adds(shared, size)[''],
        plain_macs=count_multiply_adds(plain, size)[''])


def sharing_groups(model: nn.Module, size: Tuple[int, ...]) -> List[dict]:
    """Who shares what in a model, a row for each group.

    Args:
        model (nn.Module): A classifier or a detector.
        size (tuple[int, ...]): The size of the picture that multiply-adds are counted for.

    Returns:
        list[dict]: For each group its stage, pattern, bank, the convs by their names in the stage, the parameters
        that they share, that they have of their own and that they would have without sharing, and the multiply-adds
        of them all, shared and plain.
    """
    macs = count_multiply_adds(model, size)
    plain_macs = count_multiply_adds(fold_convs(copy.deepcopy(model)), size)
    names = {conv: name for name, conv in model.named_modules() if isinstance(conv, SharedConv2d)}
    rows = []
    for stage, banks in shared_stages(model).items():
        for pattern, bank in banks.items():
            shared, convs = parameter_count(bank), [names[conv] for conv in bank.convs]
            rows.append(dict(
                stage=stage,
                pattern=pattern,
                bank=type(bank).__name__,
                convs=[name[len(stage) + 1:] for name in convs],
                shared=shared,
                own=sum(parameter_count(conv) for conv in bank.convs) - shared,
                plain=sum(conv.dense()[0].numel() + (0 if conv.bias is None else conv.bias.numel())
                          for conv in bank.convs),
                macs=sum(macs[name] for name in convs),
                plain_macs=sum(plain_macs[name] for name in convs)))
    return rows
