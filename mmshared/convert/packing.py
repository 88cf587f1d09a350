"""Safetensors files of shared networks, in half precision or as integers, which numpy unpacks into plain networks."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch._decomp import core_aten_decompositions
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves

from ..engine.checkpoint import PLAIN, SCALE, as_stored, written_whole
from ..sharing import SharingError, banks, fold_layers
from ..sharing.bank import dense_weights
from ..sharing.deployment import relative_difference
from .fold import safetensors
from .integers import rounded, row_axes

#: The largest relative difference of the unpacked weights from the folded ones.
TOLERANCE = 1e-4
#: Smaller tensors are stored as they are.
SMALL = 256
#: Operations of PyTorch, and those of numpy with the same arguments.
SAME = dict(abs='absolute', add='add', bmm='matmul', clamp_min='maximum', div='divide', exp='exp', flip='flip')
SAME |= dict(ge='greater_equal', gt='greater', le='less_equal', linalg_qr='qr', lt='less', maximum='maximum')
SAME |= dict(minimum='minimum', mm='matmul', mul='multiply', neg='negative', permute='transpose', pow='power')
SAME |= dict(reciprocal='reciprocal', repeat='tile', sign='sign', sqrt='sqrt', sub='subtract', tanh='tanh')
SAME |= dict(where='where')
#: Operations that only give values another shape, or another type.
RESHAPED = {'view', 'reshape', '_unsafe_view', 'unsqueeze', 'squeeze'}
RESHAPED |= {'clone', 'alias', 'detach', '_to_copy', 'lift_fresh_copy'}


class Program(NamedTuple):
    """What computes the weights of shared layers.

    Attributes:
        steps (list): The name of a result, an operation of numpy and its arguments each; names stand for arrays.
        weights (list[str]): The names of the weights, in the order of the shared layers.
        constants (dict[str, Tensor]): What it needs beside the state dict.
    """

    steps: list[list]
    weights: list[str]
    constants: dict[str, Tensor]


class _Weights(nn.Module):
    """The weights of the shared layers of a network."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self) -> list[Tensor]:
        return list(dense_weights(self.network).values())


@torch.no_grad()
def program_of(network: nn.Module) -> Program:
    """Translate what the shared layers of a network compute their weights by.

    Raises:
        SharingError: If they take an operation that is not translated.
    """
    if not banks(network):
        return Program([], [], {})
    weights = _Weights(network)
    aliases = _aliases(network)
    state = {f'network.{key}': value for key, value in network.state_dict().items() if key not in aliases}

    def compute(*values: Tensor) -> Any:
        return torch.func.functional_call(weights, dict(zip(state, values)))

    traced = make_fx(compute, decomposition_table=core_aten_decompositions())(*state.values())
    traced.graph.eliminate_dead_code()
    names, steps, constants = iter(state), [], {}
    found: dict[fx.Node, Any] = {}
    for node in traced.graph.nodes:
        if node.op == 'placeholder':
            found[node] = next(names).removeprefix('network.')
        elif node.op == 'get_attr':
            found[node] = f'%{node.target}'
            constants[f'%{node.target}'] = getattr(traced, node.target)
        elif node.op == 'output':
            outputs = [found[each] for each in node.args[0]]
        else:
            found[node] = _translate(node, found, steps)
    return Program(steps, outputs, constants)


def _translate(node: fx.Node, found: dict[fx.Node, Any], steps: list[list]) -> str:
    """Add the steps that compute a node of a traced graph. Returns the name of the result."""

    def step(operation: str, *arguments: Any) -> str:
        steps.append([f'%{len(steps)}', operation, *arguments])
        return steps[-1][0]

    args = fx.map_arg(node.args, found.__getitem__)
    kind = getattr(node.target, 'overloadpacket', node.target).__name__
    value = node.meta['val']
    shape = list(value.shape) if isinstance(value, Tensor) else []
    if kind in RESHAPED:
        before = node.args[0].meta['val'].shape
        return args[0] if list(before) == shape else step('reshape', args[0], shape)
    if kind in SAME and not node.kwargs:
        return step(SAME[kind], *args)
    if kind == 'getitem':
        return step('item', *args)
    if kind == 'rsqrt':
        return step('reciprocal', step('sqrt', args[0]))
    if kind == 'sigmoid':
        return step('reciprocal', step('add', step('exp', step('negative', args[0])), 1))
    if kind == 'expand':
        return step('broadcast_to', args[0], shape)
    if kind == 'cat':
        return step('concatenate', args[0], args[1] if len(args) > 1 else 0)
    if kind == 'select':
        return step('take', args[0], args[2], args[1])
    if kind == 'slice':
        axis, start = [*args[1:3], 0, 0][:2]
        if len(args) < 5:  # without strides
            return step('take', args[0], step('arange', start, start + shape[axis]), axis)
    if kind == 'diagonal' and len(args) == 1:
        return step('diagonal', args[0])
    raise SharingError(
        f'The weights of a bank take {node.target}, which is not translated for numpy: write the folded network.'
    )


def _signs(program: Program) -> set[str]:
    """The tensors of which only the signs are taken."""
    sources, signs, values = {}, set(), set()
    for name, operation, *arguments in program.steps:
        read = {sources.get(each, each) for each in tree_leaves(arguments) if isinstance(each, str)}
        if operation in ('take', 'reshape'):
            sources[name] = sources.get(arguments[0], arguments[0])
        elif operation == 'sign':
            signs |= read
        else:
            values |= read
    return signs - values - {sources.get(name, name) for name in program.weights}


def _aliases(network: nn.Module) -> dict[str, str]:
    """The further names of tensors that have several, each with the first one."""
    first: dict[int, str] = {}
    state = network.state_dict(keep_vars=True)
    return {key: name for key, each in state.items() if (name := first.setdefault(id(each), key)) != key}


def _stored(key: str, tensor: Tensor, form: str | None) -> dict[str, Tensor]:
    """What a file holds of a tensor."""
    if form is None or not tensor.is_floating_point() or tensor.dim() < 2 or tensor.numel() < SMALL:
        return {key: tensor}
    if form == 'half':
        if not tensor.half().isfinite().all():
            raise SharingError(f'{key} has values that are too large for half precision: store integers.')
        return {key: tensor.half()}
    integers, scale = rounded(tensor.float().numpy(), row_axes(tuple(tensor.shape)), 8)
    return {key: torch.from_numpy(integers), f'{key}{SCALE}': torch.from_numpy(scale)}


@torch.no_grad()
def pack(network: nn.Module, out: Path, form: str | None = None) -> nn.Module:
    """Write a network as safetensors, with what :func:`~mmshared.convert.unpack.unpack` makes the plain one of.

    The tensors have the names of the network's state dict, and load into it with strict=True by
    :func:`~mmshared.engine.checkpoint.load_checkpoint_file`.

    Args:
        network (nn.Module): The network, shared or plain, in eval mode. It is not changed.
        out (Path): The file.
        form (str, optional): How to store tensors of two or more dimensions: ``'half'``, or ``'int8'`` for integers
            with a scale for each filter or row. None for as they are.

    Returns:
        nn.Module: The plain network, as the file gives it.

    Raises:
        SharingError: If numpy cannot compute the weights of a bank, or if the file cannot be written.
    """
    from .unpack import unpack

    network = copy.deepcopy(network)
    program = program_of(network)
    signs, aliases, stored = _signs(program), _aliases(network) if banks(network) else {}, {}
    for key, tensor in network.state_dict().items():
        if key not in aliases:
            stored |= {key: tensor.sign().to(torch.int8)} if key in signs and form else _stored(key, tensor, form)
    network.load_state_dict(as_stored(stored, aliases), strict=True)
    plain = fold_layers(copy.deepcopy(network))
    state, folded = network.state_dict(), plain.state_dict()
    weights = list(zip(program.weights, dense_weights(network).values()))
    steps, dropped = program.steps, [key for key in stored if key.removesuffix(SCALE) not in folded]
    for key, tensor in folded.items():
        made = [name for name, weight in weights if weight.shape == tensor.shape and weight.equal(tensor)]
        if made:
            steps.append([key, 'reshape', made[0], list(tensor.shape)])
        elif key in aliases and state[key].equal(tensor):
            steps.append([key, 'reshape', aliases[key], list(tensor.shape)])
        elif key not in state or not state[key].equal(tensor):
            stored[PLAIN + key] = tensor  # a bias that moved into a batch norm, for example
            dropped += [key] * (key in state)
    stored |= program.constants
    program_text = json.dumps(dict(steps=steps, dropped=dropped), separators=(',', ':'))
    content = safetensors(stored, plain=program_text, aliases=json.dumps(aliases))
    with written_whole(out) as partial:
        partial.write_bytes(content)
        found = {key: torch.tensor(each) for key, each in unpack(partial).items()}
        if found.keys() != folded.keys():
            raise SharingError(f'{out.name} does not unpack into the plain network: it was not written.')
        floats = [key for key, tensor in folded.items() if tensor.is_floating_point() and tensor.numel()]
        if not relative_difference([found[key] for key in floats], [folded[key] for key in floats]) < TOLERANCE:
            raise SharingError(f'The weights that {out.name} unpacks into are others: it was not written.')
    return plain
