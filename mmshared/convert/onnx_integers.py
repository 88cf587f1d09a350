"""Weights of ONNX models as integers, which onnxruntime turns into floats on loading."""

from __future__ import annotations

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

from .integers import rounded, row_axes
from .onnx_shared import prepend

#: The opset that has 4-bit integers.
INT4_OPSET = 21
#: Smaller weights stay as they are, if this saves fewer bytes: the nodes need some too.
LEAST_SAVED = 256


def with_integers(model: ModelProto, bits: int) -> ModelProto:
    """Store the weights of a model as integers with a float scale for each filter or row, in a copy.

    Weights are the constants that convs and products multiply by or, in a model without input, all constants. They
    are computed by Cast and Mul: onnxruntime does not fold DequantizeLinear. Constants of int64, such as the indices
    of a detector, get the smallest type that holds them.

    Args:
        model (ModelProto): The model. It is not changed.
        bits (int): 8, or 4 for a model of :data:`INT4_OPSET`.
    """
    dtype = {8: np.dtype('int8'), 4: helper.tensor_dtype_to_np_dtype(TensorProto.INT4)}[bits]
    result = ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    axes_of = weight_axes(graph) if graph.input else {}
    nodes, scales = [], []
    for constant in graph.initializer:
        name, shape = constant.name, tuple(constant.dims)
        if constant.data_type == TensorProto.INT64 and constant.ByteSize() > LEAST_SAVED:
            values = numpy_helper.to_array(constant)
            narrow = values.astype(np.min_scalar_type(min(values.min(), -1 - values.max())))
            if values.nbytes - narrow.nbytes >= LEAST_SAVED:
                constant.CopyFrom(numpy_helper.from_array(narrow, f'{name}.integers'))
                nodes.append(helper.make_node('Cast', [f'{name}.integers'], [name], to=TensorProto.INT64))
            continue
        if constant.data_type != TensorProto.FLOAT or len(shape) < 2 or graph.input and name not in axes_of:
            continue
        axes = axes_of.get(name, row_axes(shape))
        rows = np.prod([size for axis, size in enumerate(shape) if axis not in axes])
        if (4 - bits / 8) * np.prod(shape) - 4 * rows < LEAST_SAVED:
            continue
        integers, scale = rounded(numpy_helper.to_array(constant), axes, bits)
        integers_name, scale_name, floats_name = (f'{name}.{part}' for part in ('integers', 'scale', 'floats'))
        constant.CopyFrom(numpy_helper.from_array(integers.astype(dtype), integers_name))
        scales.append(numpy_helper.from_array(scale, scale_name))
        nodes += [
            helper.make_node('Cast', [integers_name], [floats_name], to=TensorProto.FLOAT),
            helper.make_node('Mul', [floats_name, scale_name], [name]),
        ]
    graph.initializer.extend(scales)
    prepend(graph, nodes)
    return result


def weight_axes(graph: GraphProto) -> dict[str, tuple[int, ...]]:
    """The names of the weights of a graph, and the axes of each within a filter or row."""
    shapes = {constant.name: tuple(constant.dims) for constant in graph.initializer}
    whole = {name: name for name in shapes}  # the constants that values are, or are parts of
    axes = {}
    for node in graph.node:
        if node.op_type in ('Reshape', 'Split', 'Transpose') and node.input[0] in whole:
            whole.update(dict.fromkeys(node.output, whole[node.input[0]]))
        elif node.op_type in ('Conv', 'ConvTranspose', 'Gemm', 'MatMul') and node.input[1] in whole:
            name = whole[node.input[1]]
            turned = any(each.name == 'transB' and each.i for each in node.attribute)
            columns = name in node.input and (node.op_type == 'MatMul' or node.op_type == 'Gemm' and not turned)
            rank = len(shapes[name])
            if columns:
                axes[name] = (rank - 2,)
            elif node.op_type == 'MatMul':
                axes[name] = row_axes(shapes[name])
            else:
                axes[name] = tuple(range(1, rank))  # filters, of 1d convs too
    return axes
