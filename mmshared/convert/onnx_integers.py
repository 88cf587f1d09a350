"""Weights of ONNX models as integers, which onnxruntime turns into floats on loading."""

from __future__ import annotations

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

from .onnx_shared import prepend

#: The largest value is rounded to the largest integer, or clipped to one of these parts of itself.
CLIPS = np.linspace(0.4, 1, 13)
#: The opset that has 4-bit integers.
INT4_OPSET = 21
#: Smaller weights stay as they are, if this saves fewer bytes: the nodes need some too.
LEAST_SAVED = 256


def with_integers(model: ModelProto, bits: int) -> ModelProto:
    """Store the weights of a model as integers with a float scale for each filter or row, in a copy.

    Weights are the constants that convs and products multiply by or, in a model without input, all constants. They
    are computed by Cast and Mul: onnxruntime does not fold DequantizeLinear.

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
            axes[name] = (len(shapes[name]) - 2,) if columns else row_axes(shapes[name])
    return axes


def row_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes within a filter, (O, I, k, k), or within a row of a matrix or of a stack of matrices."""
    return tuple(range(1, len(shape))) if len(shape) != 3 else (2,)


def rounded(values: np.ndarray, axes: tuple[int, ...], bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Round values to integers, with the scales of the least squared error.

    Args:
        values (np.ndarray): The values.
        axes (tuple[int, ...]): The axes within which a scale is common.
        bits (int): The bits of an integer, at most 8.

    Returns:
        tuple: The integers as int8, of the shape of the values, and the scales, of length 1 in these axes.
    """
    most = 2 ** (bits - 1) - 1
    peak = np.abs(values).max(axes, keepdims=True)
    peak[peak == 0] = 1
    best, scales, least = np.zeros(values.shape, np.int8), peak / most, np.full_like(peak, np.inf)
    for clip in CLIPS:
        scale = peak * np.float32(clip / most)
        integers = np.clip(np.rint(values / scale), -most, most)
        error = np.square(integers * scale - values).sum(axes, keepdims=True)
        better = error < least
        np.copyto(best, integers.astype(np.int8), where=better)
        np.copyto(scales, scale, where=better)
        np.copyto(least, error, where=better)
    return best, scales
