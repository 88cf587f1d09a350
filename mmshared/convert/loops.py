"""Template banks as loops: layers that are alike, the patterns they repeat, the network that runs them."""

import copy
import re
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from mmengine.config import Config
from sklearn.cluster import AgglomerativeClustering
from torch import Tensor, nn

from ..engine.build import build_model
from ..engine.config import drop_hooks
from ..hooks import layer_similarity
from ..sharing import Bank, LoopedTemplates, SharedLayer, SharingError, TemplateBank, banks
from ..sharing.state_dict import Conversion, share_state_dict


def similar_layers(similarity: Tensor, threshold: float) -> list[int]:
    """Group layers by complete linkage: in a group every two are alike.

    Args:
        similarity (Tensor): The layer similarity matrix, (layers, layers).
        threshold (float): The similarity that every two layers of a group exceed, from 0 up to below 1.

    Returns:
        list[int]: For each layer the number of its group; groups are numbered in the order of their first layers.
    """
    if not similarity.isfinite().all():
        raise SharingError('The coefficients of a bank hold numbers that are not finite: take another checkpoint.')
    clustering = AgglomerativeClustering(
        n_clusters=None, metric='precomputed', linkage='complete', distance_threshold=1 - threshold
    )
    labels = clustering.fit_predict(1 - similarity.detach().cpu().double().numpy()).tolist()
    first = list(dict.fromkeys(labels))
    return [first.index(label) for label in labels]


class Loop(NamedTuple):
    """A part of a program.

    Attributes:
        body (list): What is run in turn.
        times (int): How often.
    """

    body: list[Hashable]
    times: int


def loop_program(sequence: Sequence[Hashable]) -> list[Loop]:
    """The shortest program of loops, not nested, that runs a sequence.

    Shortest is what names the fewest items, and of such programs one of the fewest parts: a b a b a c is twice [a b],
    then a c. :func:`expand_program` is the inverse.
    """
    sequence = list(sequence)
    best: list[tuple[int, int, list[Loop]]] = [(0, 0, [])]  # for each prefix: items named, parts, the program
    for end in range(1, len(sequence) + 1):
        programs = []
        for start in range(end):
            part = sequence[start:end]
            for times in range(1, len(part) + 1):
                body = part[: len(part) // times]
                if body * times == part:
                    items, parts, program = best[start]
                    programs.append((items + len(body), parts + 1, [*program, Loop(body, times)]))
        best.append(min(programs, key=lambda program: program[:2]))
    return best[-1][2]


def expand_program(program: Sequence[Loop]) -> list:
    """What a program runs, in order."""
    return [item for loop in program for item in loop.body * loop.times]


def stage_programs(model: nn.Module) -> dict[str, str]:
    """What each stage of a network that shares runs, as a line of text: convs by their names in the stage, those that
    run one kernel by the name of the first of them."""
    programs = {}
    for stage in dict.fromkeys(_stage_of(model, bank) for bank in banks(model)):
        names: dict[tuple, str] = {}
        sequence = []
        for name, conv in model.get_submodule(stage).named_modules():
            if isinstance(conv, (nn.Conv2d, SharedLayer)):
                looped = isinstance(conv, SharedLayer) and isinstance(conv.bank, LoopedTemplates)
                kernel = (conv.bank, conv.kernel) if looped else (conv, 0)
                sequence.append(names.setdefault(kernel, name))
        programs[stage] = '; '.join(
            ' '.join(body) if times == 1 else f'loop {times} x [{" ".join(body)}]'
            for body, times in loop_program(sequence)
        )
    return programs


@torch.no_grad()
def fold_loops(cfg: Config, model: nn.Module, threshold: float) -> tuple[Config, nn.Module, list[Conversion]]:
    """Let those layers of each template bank that are alike run one kernel.

    The kernel and the scales of its layers are the best fit of rank one to the kernels that they had: the sum of the
    squared changes of all kernels is the least there can be. (This is the leading singular vector of the stacked
    coefficient vectors in the metric of the templates' Gram matrix.) A bank without two layers that are alike stays.

    Args:
        cfg (Config): The config of the model, whose backbone shares.
        model (nn.Module): The model.
        threshold (float): See :func:`similar_layers`.

    Returns:
        tuple: The config of the folded model, without hooks of mmshared, the model, and for each group of kernels
        that was folded what became of it. Where no layers are alike, the list is empty.

    Raises:
        SharingError: If the model has no template bank.
    """
    template_banks = [bank for bank in banks(model) if isinstance(bank, TemplateBank)]
    if not template_banks:
        raise SharingError('The network of this config has no TemplateBank whose layers could be folded into loops.')
    kernels = {bank: similar_layers(layer_similarity(bank), threshold) for bank in template_banks}
    kernels = {bank: numbers for bank, numbers in kernels.items() if len(set(numbers)) < len(numbers)}

    folded_cfg = drop_hooks(Config(copy.deepcopy(cfg.to_dict())))
    folded_cfg.model.backbone.sharing = _folded_sharing(model.backbone, kernels)

    keys = folded_cfg.get('optim_wrapper', {}).get('paramwise_cfg', {}).get('custom_keys', {})
    if 'coefficients' in keys:  # the factors of the convs are as little to be decayed as coefficients
        keys['.scale'] = keys['coefficients']

    # The plain kernels of what is folded: the looped banks are fitted to them as to any plain checkpoint.
    state_dict = model.state_dict()
    for name, conv in model.named_modules():
        if isinstance(conv, SharedLayer) and conv.bank in kernels:
            for key in conv.state_dict():
                if key != 'bias':
                    del state_dict[f'{name}.{key}']
            state_dict[f'{name}.weight'] = conv.dense()[0]
    folded = build_model(folded_cfg)
    conversions = share_state_dict(folded, state_dict)
    folded.load_state_dict(state_dict, strict=True)
    return folded_cfg, folded.eval(), conversions


def _folded_sharing(network: nn.Module, kernels: dict[Bank, list[int]]) -> list[dict]:
    """The sharing of a network with loops in place of those banks that have numbers of kernels: an entry for each
    group of each stage."""
    sharings = network.sharing if isinstance(network.sharing, (list, tuple)) else [network.sharing]
    folded = []
    for bank in banks(network):
        key = 'groups' if bank.stage is not None else 'layers'
        sharing = next(
            each
            for each in sharings
            if bank.group in _patterns(each, key) and re.fullmatch(each.get('stages') or '.*', bank.stage or '')
        )
        config = sharing['bank']
        if isinstance(config, (list, tuple)):
            config = config[_patterns(sharing, key).index(bank.group)]
        if bank in kernels:
            config = dict(type='LoopedTemplates', kernels=kernels[bank], num_templates=len(bank.templates))
        place = {} if bank.stage is None else dict(stages=re.escape(bank.stage))
        own = {name: sharing[name] for name in ('own_blocks',) if name in sharing}
        folded.append({**place, key: [bank.group], **own, 'bank': dict(config)})
    return folded


def _patterns(sharing: dict, key: str) -> list[str]:
    patterns = sharing.get(key) or []
    return [patterns] if isinstance(patterns, str) else list(patterns)


def _stage_of(model: nn.Module, bank: Bank) -> str:
    """The name of a bank's stage in a model, or of the parent of its first layer."""
    name = next(name for name, module in model.named_modules() if module is bank.layers[0])
    if bank.stage is None:
        return name.rpartition('.')[0]
    return (name.removesuffix(bank.names[0]) + bank.stage).rstrip('.')
