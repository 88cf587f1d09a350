"""ONNX models that store banks and compute the weights of their layers from them, as onnxruntime does on loading.

The graph stays that of the plain network. Where it has a weight, a shared one has the nodes that compute it from
constants, as :meth:`SharedLayer.dense` says, so that a bank needs no code of its own for ONNX.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx.compose
import onnx_ir.passes.common as passes
import torch
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper
from onnxscript import optimizer
from torch import Tensor, nn
from torch.export import ExportedProgram

from ..engine.config import first_line, root_of
from ..sharing import SharedLayer, SharingError, banks
from ..sharing.bank import dense_weights

#: How much the weights of the exported plain network may differ from the computed ones, relative to the largest.
TOLERANCE = 1e-5
#: Results of at most so many values, shapes for example, are stored and not computed.
SMALL = 8
PREFIX = 'shared.'


class Weight(NamedTuple):
    """How a weight of an ONNX model comes from a shared layer.

    Attributes:
        layer (SharedLayer): The layer.
        scale (Tensor): The factor of each output channel, as a batch norm that was fused gives it, (O, 1, ...).
        transposed (bool): Whether the model holds the transpose.
    """

    layer: SharedLayer
    scale: Tensor
    transposed: bool


class Weights(nn.Module):
    """A network without input, whose outputs are weights of shared layers.

    Args:
        network (nn.Module): The shared network. Its banks store what they make, where that is no larger.
        weights (Sequence[Weight]): The weights.
    """

    def __init__(self, network: nn.Module, weights: Sequence[Weight]):
        super().__init__()
        self.network = network  # the banks and layers, for the exporter
        self.weights = weights
        for position, weight in enumerate(weights):
            scale = None if (weight.scale - 1).abs().max() < TOLERANCE else weight.scale
            self.register_buffer(f'scale{position}', scale)
        for bank in banks(network):
            # An orthonormal basis, for example, and not the parameters that it is computed from.
            made: Any = bank()
            if isinstance(made, Tensor) and made.numel() <= sum(p.numel() for p in bank.parameters()):
                bank.register_buffer('made', made.detach().clone())
                bank.generate = lambda bank=bank: bank.made  # type: ignore[method-assign]

    def forward(self) -> tuple[Tensor, ...]:
        outputs = []
        for position, (layer, _, transposed) in enumerate(self.weights):
            weight, scale = layer.dense()[0], getattr(self, f'scale{position}')
            weight = weight.clone() if scale is None else weight * scale  # layers that are tied have an output each
            outputs.append(weight.T if transposed else weight)
        return tuple(outputs)


def to_onnx(module: nn.Module | ExportedProgram, args: tuple[Tensor, ...], **options: Any) -> ModelProto:
    """Export a module, or what was traced of it, by ``torch.onnx.export``, without the exporter's notes on where each
    node comes from."""
    if isinstance(module, nn.Module):
        module.eval()  # a line of its own: it returns None in mmdet
    program = torch.onnx.export(module, args, dynamo=True, verbose=False, **options)
    if not options.get('optimize', True):
        # Only what makes the file no larger: a node whose result is smaller than the constants that only it takes.
        # A Cast makes them larger, and a Reshape moves the rows that an integer form has scales for.
        optimizer.fold_constants(
            program.model,
            input_size_limit=2**40,
            output_size_limit=SMALL,
            should_fold=lambda node: False if node.op_type in ('Cast', 'Reshape') else None,
        )
        optimizer.remove_unused_nodes(program.model)
    passes.DeduplicateInitializersPass()(program.model)
    passes.ClearMetadataAndDocStringPass()(program.model)
    model = program.model_proto
    model.graph.ClearField('value_info')  # shapes, which onnxruntime finds itself
    return model


@torch.no_grad()
def find_weights(graph: GraphProto, network: nn.Module) -> dict[str, Weight]:
    """Find the constants of a graph that are weights of shared layers, by their values: names depend on the exporter.

    Args:
        graph (GraphProto): The graph of the plain network.
        network (nn.Module): The shared network, in eval mode.

    Returns:
        dict[str, Weight]: The weights by the names of the constants.
    """
    dense, found = dense_weights(network), {}
    for constant in graph.initializer:
        if constant.data_type != TensorProto.FLOAT or len(constant.dims) < 2:
            continue
        values = torch.from_numpy(numpy_helper.to_array(constant).copy())
        for transposed, wanted in ((False, values), (True, values.T if values.dim() == 2 else None)):
            for layer, weight in dense.items():
                if constant.name in found or wanted is None or weight.shape != wanted.shape:
                    continue
                scale = row_scale(wanted, weight.to(wanted))
                if scale is not None:
                    found[constant.name] = Weight(layer, scale, transposed)
    return found


def row_scale(wanted: Tensor, weight: Tensor) -> Tensor | None:
    """The factors, (O, 1, ...), that make one weight of another, or None if there are none."""
    rows, others = wanted.flatten(1), weight.flatten(1)
    for some in (slice(1), slice(None)):  # most differ in the first row already
        squares = others[some].square().sum(1, keepdim=True)
        scale = (rows[some] * others[some]).sum(1, keepdim=True) / squares.where(squares > 0, torch.ones(()))
        if not (rows[some] - scale * others[some]).abs().max() <= TOLERANCE * rows.abs().max():
            return None
    return scale.view(-1, *[1] * (wanted.dim() - 1))


def shared_weights(model: ModelProto, network: nn.Module) -> ModelProto:
    """The model without input that computes the shared weights of a plain one; its outputs have their names.

    Args:
        model (ModelProto): The plain network, whatever exported it. It is not changed.
        network (nn.Module): The shared network that it equals.

    Raises:
        SharingError: If no weight is found, or if ONNX has no operators for a bank.
    """
    network = copy.deepcopy(network)
    network.eval()
    found = find_weights(model.graph, network)
    if not found:
        raise SharingError('None of the weights of the ONNX model is one of a shared layer.')
    (opset,) = (each.version for each in model.opset_import if not each.domain)
    try:
        weights = to_onnx(
            Weights(network, list(found.values())),
            (),
            optimize=False,
            opset_version=opset,
            output_names=list(found),
        )
    except torch.onnx.errors.OnnxExporterError as error:
        raise SharingError(
            f'The weights of a bank cannot be computed in ONNX, only stored: {first_line(root_of(error))}'
        ) from error
    weights = onnx.compose.add_prefix(weights, PREFIX, rename_outputs=False)
    store_integers(weights.graph)
    return weights


def store_integers(graph: GraphProto) -> None:
    """Store float constants whose values are small whole numbers, such as signs, as int8."""
    casts = []
    for constant in graph.initializer:
        values = numpy_helper.to_array(constant)
        if (
            values.dtype == np.float32
            and values.size > 64
            and (np.abs(values) < 128).all()
            and (values % 1 == 0).all()
        ):
            name = f'{constant.name}.integers'
            casts.append(onnx.helper.make_node('Cast', [name], [constant.name], to=TensorProto.FLOAT))
            constant.CopyFrom(numpy_helper.from_array(values.astype(np.int8), name))
    prepend(graph, casts)


def put_shared(model: ModelProto, weights: ModelProto) -> ModelProto:
    """Put the computed weights in place of the stored ones, bank by bank where that is smaller.

    Args:
        model (ModelProto): The plain network. It is not changed.
        weights (ModelProto): What :func:`shared_weights` made for it. It is not changed.

    Returns:
        ModelProto: The plain network with computed weights.
    """
    result = ModelProto()
    result.CopyFrom(model)
    names = [
        name
        for group in independent_outputs(weights.graph)
        if size_of(weights.graph, group) < size_of(model.graph, group)
        for name in group
    ]
    for items, old in zip((result.graph.node, result.graph.initializer), sources(result.graph, names)):
        for each in old:
            items.remove(each)
    nodes, constants = sources(weights.graph, names)
    prepend(result.graph, nodes)
    result.graph.initializer.extend(constants)
    return result


def sources(graph: GraphProto, names: Iterable[str]) -> tuple[list[NodeProto], list[TensorProto]]:
    """The nodes and the constants that values of a graph are computed from."""
    producers = {output: node for node in graph.node for output in node.output}
    wanted: set[str] = set()
    open_names = list(names)
    while open_names:
        name = open_names.pop()
        if name not in wanted:
            wanted.add(name)
            open_names += producers[name].input if name in producers else []
    nodes = [node for node in graph.node if wanted.intersection(node.output)]
    return nodes, [constant for constant in graph.initializer if constant.name in wanted]


def size_of(graph: GraphProto, names: Iterable[str]) -> int:
    """The bytes that some values of a graph take in the file."""
    nodes, constants = sources(graph, names)
    return sum(each.ByteSize() for each in (*nodes, *constants))


def independent_outputs(graph: GraphProto) -> list[list[str]]:
    """The outputs of a graph, sorted into groups that have no constants in common."""
    groups: list[tuple[list[str], set[str]]] = []
    for output in graph.output:
        names = [output.name]
        constants = {each.name for each in sources(graph, names)[1] if np.prod(each.dims) > SMALL}
        apart = []
        for group in groups:
            if group[1] & constants:
                names, constants = group[0] + names, group[1] | constants
            else:
                apart.append(group)
        groups = [*apart, (names, constants)]
    return [names for names, _ in groups]


def prepend(graph: GraphProto, nodes: Sequence[NodeProto]) -> None:
    """Put nodes before the others of a graph, whose inputs they make."""
    together = [*nodes, *graph.node]
    graph.ClearField('node')
    graph.node.extend(together)
