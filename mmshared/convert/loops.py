"""Folds template banks into loops: finds layers that are alike, their patterns, and the network that runs them."""

import copy
import re
import tempfile
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.runner import Runner
from sklearn.cluster import AgglomerativeClustering
from torch import Tensor, nn

from ..engine.build import build_model
from ..engine.config import drop_hooks, in_work_dir
from ..hooks import layer_similarity
from ..sharing import Bank, LoopedTemplates, SharedLayer, SharingError, TemplateBank, banks
from ..sharing.bank import stage_in
from ..sharing.state_dict import Conversion, share_state_dict


def similar_layers(similarity: Tensor, threshold: float) -> list[int]:
    """Group layers by complete linkage: any two layers of a group are alike.

    Args:
        similarity (Tensor): The layer similarity matrix, (layers, layers).
        threshold (float): The similarity that any two layers of a group exceed, from 0 to below 1.

    Returns:
        list[int]: The number of each layer's group; groups are numbered in the order of their first layers.
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
        body (list): The items to run in order.
        times (int): How often to run them.
    """

    body: list[Hashable]
    times: int


def loop_program(sequence: Sequence[Hashable]) -> list[Loop]:
    """The shortest program of unnested loops that runs a sequence.

    The shortest program names the fewest items and, among those, has the fewest parts: a b a b a c is twice [a b],
    then a c.
    """
    sequence = list(sequence)
    best: list[tuple[int, int, list[Loop]]] = [(0, 0, [])]  # for each prefix: items named, parts, program
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


def stage_programs(model: nn.Module) -> dict[str, str]:
    """The program of each stage of a shared network as a line of text: layers by their names in the stage, and layers
    that run the same kernel by the name of the first."""
    programs = {}
    for stage in dict.fromkeys(_stage_of(model, bank) for bank in banks(model)):
        names: dict[tuple, str] = {}
        sequence = []
        for name, layer in model.get_submodule(stage).named_modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear, SharedLayer)):
                looped = isinstance(layer, SharedLayer) and isinstance(layer.bank, LoopedTemplates)
                kernel = (layer.bank, layer.kernel) if looped else (layer, 0)
                sequence.append(names.setdefault(kernel, name))
        programs[stage] = '; '.join(
            ' '.join(body) if times == 1 else f'loop {times} x [{" ".join(body)}]'
            for body, times in loop_program(sequence)
        )
    return programs


class FoldedLoops(NamedTuple):
    """A network whose similar layers run in loops.

    Attributes:
        config (Config): Its config, without hooks of mmshared.
        model (nn.Module): The model, in eval mode.
        conversions (list[Conversion]): The result for each folded group of kernels; empty if no layers are alike.
    """

    config: Config
    model: nn.Module
    conversions: list[Conversion]


@torch.no_grad()
def fold_loops(cfg: Config, model: nn.Module, threshold: float) -> FoldedLoops:
    """Make the similar layers of each template bank run one kernel.

    The kernel and the scales of its layers are the best rank-one fit to the layers' old kernels: it minimises the sum
    of the squared changes of all kernels. (This is the leading singular vector of the stacked coefficient vectors in
    the metric of the templates' Gram matrix.) A bank without two similar layers is not changed.

    Args:
        cfg (Config): The config of the model, which has a shared backbone.
        model (nn.Module): The model.
        threshold (float): See :func:`similar_layers`.

    Raises:
        SharingError: If the model has no template bank.
    """
    template_banks = [bank for bank in banks(model) if isinstance(bank, TemplateBank)]
    if not template_banks:
        raise SharingError('The network of this config has no TemplateBank whose layers could be folded into loops.')
    backbone: Any = getattr(model, 'backbone', None)
    if getattr(backbone, 'sharing', None) is None or not set(template_banks) <= set(banks(backbone)):
        raise SharingError(
            'Loops are written into the sharing of a backbone, and this network has a TemplateBank that is not made '
            'by one: give the backbone a sharing of its own.'
        )
    kernels = {bank: similar_layers(layer_similarity(bank), threshold) for bank in template_banks}
    kernels = {bank: numbers for bank, numbers in kernels.items() if len(set(numbers)) < len(numbers)}

    folded_cfg = drop_hooks(Config(copy.deepcopy(cfg.to_dict())))
    folded_cfg.model.backbone.sharing = [
        _sharing_of(bank, backbone.sharing, kernels.get(bank)) for bank in banks(backbone)
    ]
    keys = folded_cfg.get('optim_wrapper', {}).get('paramwise_cfg', {}).get('custom_keys', {})
    if 'coefficients' in keys:  # like coefficients, scales must not be decayed
        keys['.scale'] = keys['coefficients']

    state_dict = _with_plain_kernels(model, kernels)
    folded = build_model(folded_cfg)
    conversions = share_state_dict(folded, state_dict)
    folded.load_state_dict(state_dict, strict=True)
    return FoldedLoops(folded_cfg, folded.eval(), conversions)


def _with_plain_kernels(model: nn.Module, folded: dict[Bank, list[int]]) -> dict[str, Tensor]:
    """The state dict of a model with plain kernels for the layers of some banks. Looped banks are fitted to it like to
    any plain checkpoint."""
    state_dict = model.state_dict()
    for name, layer in model.named_modules():
        if isinstance(layer, SharedLayer) and layer.bank in folded:
            for key in set(layer.state_dict()) - {'bias'}:
                del state_dict[f'{name}.{key}']
            state_dict[f'{name}.weight'] = layer.dense()[0]
    return state_dict


def _sharing_of(bank: Bank, sharing: dict | Sequence[dict], kernels: list[int] | None) -> dict:
    """The entry of a config's ``sharing`` for one bank: as a loop if ``kernels`` is given, otherwise unchanged."""
    entry = next(each for each in ([sharing] if isinstance(sharing, dict) else sharing) if _makes(each, bank))
    kind = _group_key(bank)
    if kernels is not None:
        config = dict(type='LoopedTemplates', kernels=kernels, num_templates=len(bank.templates))
    elif isinstance(entry['bank'], dict):
        config = dict(entry['bank'])
    else:
        config = dict(entry['bank'][_patterns(entry, kind).index(bank.group)])
    place = {} if bank.stage is None else dict(stages=re.escape(bank.stage))
    own = {'own_blocks': entry['own_blocks']} if 'own_blocks' in entry else {}
    return {**place, kind: [bank.group], **own, 'bank': config}


def _makes(entry: dict, bank: Bank) -> bool:
    """Whether an entry of a config's ``sharing`` is the one that made a bank."""
    in_stage = bank.stage is None or re.fullmatch(entry.get('stages') or '.*', bank.stage)
    return bank.group in _patterns(entry, _group_key(bank)) and bool(in_stage)


def _group_key(bank: Bank) -> str:
    """The key of a bank's group in the config: by names within the blocks of a stage, or by full names."""
    return 'layers' if bank.stage is None else 'groups'


def _patterns(entry: dict, key: str) -> list[str]:
    patterns = entry.get(key) or []
    return [patterns] if isinstance(patterns, str) else list(patterns)


def evaluate(cfg: Config, model: nn.Module) -> dict[str, Any]:
    """The metrics of a model on the test set of its config."""
    with tempfile.TemporaryDirectory() as work_dir:
        return _runner(cfg, model, work_dir).test()


def recalibrate(cfg: Config, model: nn.Module, batches: int) -> nn.Module:
    """A copy of a model whose batch norms have the mean statistics of several batches of the training set."""
    from mmpretrain.engine.hooks.precise_bn_hook import update_bn_stats

    with tempfile.TemporaryDirectory() as work_dir:
        runner = _runner(cfg, model, work_dir)
        loader = Runner.build_dataloader(copy.deepcopy(cfg.train_dataloader), seed=runner.seed)
        runner.model.train()
        update_bn_stats(runner.model, loader, batches * loader.batch_size)
        return runner.model.cpu().eval()


def _runner(cfg: Config, model: nn.Module, work_dir: str) -> Runner:
    """A runner for a config with the weights of a model and only the default hooks."""
    cfg = in_work_dir(cfg, Path(work_dir))
    cfg.merge_from_dict(dict(log_level='ERROR', load_from=None, resume=False, custom_hooks=[]))
    cfg.setdefault('randomness', dict(seed=0))
    runner = Runner.from_cfg(cfg)
    runner.model.load_state_dict(model.state_dict(), strict=True)
    return runner


def _stage_of(model: nn.Module, bank: Bank) -> str:
    """The name of a bank's stage in a model, or of the parent of its first layer."""
    name = next(name for name, module in model.named_modules() if module is bank.layers[0])
    stage = stage_in(bank, name)
    return name.rpartition('.')[0] if stage is None else stage
