"""Exports networks as ONNX."""

from __future__ import annotations

import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..analysis.speed import time_in_turn
from ..engine.build import is_detector, predicts_masks
from ..engine.checkpoint import written_whole
from ..engine.config import first_line, root_of
from ..sharing import SharingError
from ..sharing.deployment import relative_difference

#: The largest relative difference of the outputs from PyTorch's, and with weights as integers.
TOLERANCE, INTEGER_TOLERANCE = 1e-3, 0.5
#: The outputs of whole detectors.
OUTPUTS = ['boxes', 'scores', 'labels']


def export_onnx(
    shared: nn.Module, plain: nn.Module, out: Path, shape: Sequence[int], keep_shared: bool, bits: int | None
) -> Iterator[str]:
    """Write a network as ONNX, for images of any size if it takes them, and compare onnxruntime with PyTorch.

    Args:
        shared (nn.Module): The shared network. A detector is written as a whole: its input is one image, normalised,
            and its outputs are boxes in pixels of it, (N, 4), scores and labels, (N,). Of others, the batch is
            dynamic too.
        plain (nn.Module): The plain one that it equals.
        out (Path): The file.
        shape (Sequence[int]): Channels, height and width for the export and the comparison, which also uses a second
            size.
        keep_shared (bool): Whether to store each bank once, with the nodes that compute the weights of its layers,
            where that is smaller. onnxruntime computes them on loading, and runs the plain network.
        bits (int, optional): 8 or 4 to store weights as integers of so many bits.

    Yields:
        str: Lines to print.

    Raises:
        SharingError: If the outputs differ by more than a relative 1e-3, or 0.5 with integers; if more than one of 20
            detections differs, or three of four with integers; if a detector cannot be exported.
    """
    forms = onnx_forms(shared, plain, shape, keep_shared, bits)
    files = {name: form.SerializeToString() for name, form in forms.items()}
    yield from compare(files, plain, shape)
    name, content = list(files.items())[-1]
    with written_whole(out) as partial:
        partial.write_bytes(content)
    yield f'wrote {out} ({len(content) / 1e6:.2f} MB, {name})'


class Exported:
    """How a network is exported, and compared with what was: one whose outputs are tensors.

    Args:
        network (nn.Module): The plain network.
    """

    def __init__(self, network: nn.Module):
        self.network: Any = network

    def export(self, shape: Sequence[int], opset: int | None) -> Any:
        """Make the ONNX model, a ``ModelProto``, for images of a shape, (C, H, W), and others where that can be.

        Raises:
            SharingError: If ONNX cannot compute the network.
        """
        try:
            try:
                with torch.no_grad():
                    self.outputs(torch.randn(1, shape[0], shape[1] + 32, shape[2] + 64))
                model = self.model(shape, opset, True)
            except Exception:  # of many kinds: it takes one size
                model = self.model(shape, opset, False)
        except SharingError:
            raise
        except Exception as error:
            kind = type(self.network).__name__
            raise SharingError(f'{kind} cannot be exported to ONNX: {first_line(root_of(error))}') from error
        # The exporter may fix a size by itself.
        if any(side.HasField('dim_value') for side in model.graph.input[0].type.tensor_type.shape.dim[2:]):
            warnings.warn(f'The ONNX model is only for images of {"x".join(map(str, shape[1:]))}.')
        return model

    def model(self, shape: Sequence[int], opset: int | None, any_size: bool) -> Any:
        """Make the ONNX model for images of a shape, or of any size."""
        from .onnx_shared import to_onnx

        axes = {0: torch.export.Dim('batch')}
        if any_size:
            axes |= {2: torch.export.Dim('height'), 3: torch.export.Dim('width')}
        images = torch.randn(2, *shape)
        return to_onnx(self.network, (images,), input_names=['images'], dynamic_shapes=(axes,), opset_version=opset)

    def images(self, size: Sequence[int]) -> Tensor:
        """Make images of a size, (N, C, H, W), to compare outputs on."""
        return torch.randn(*size)

    def outputs(self, images: Tensor) -> Sequence[Tensor]:
        """The outputs that the ONNX model should have."""
        outputs = self.network(images)
        return outputs if isinstance(outputs, (tuple, list)) else (outputs,)

    def check(
        self, found: Sequence[Tensor], expected: Sequence[Tensor], images: Tensor, integers: bool
    ) -> tuple[str, bool]:
        """How outputs differ, in words, and whether that is little enough."""
        difference = relative_difference(found, expected)
        most = INTEGER_TOLERANCE if integers else TOLERANCE
        return f'relative difference {difference:.2g}', difference < most


def exported(network: nn.Module) -> Exported:
    if not is_detector(network):
        return Exported(network)
    if predicts_masks(network):
        raise SharingError(
            f'ONNX models of detectors have boxes, scores and labels, and {type(network).__name__} predicts masks '
            'too: export only a PyTorch checkpoint.'
        )
    from .onnx_detector import ExportedDetector

    return ExportedDetector(network)


def onnx_forms(
    shared: nn.Module, plain: nn.Module, shape: Sequence[int], keep_shared: bool, bits: int | None
) -> dict[str, Any]:
    """Make ONNX models of a network, as :func:`export_onnx` does.

    Args:
        shared (nn.Module): The shared network, which takes images.
        plain (nn.Module): The plain one that it equals.
        shape (Sequence[int]): Channels, height and width for the export.
        keep_shared (bool): Whether to make the form that computes weights from banks.
        bits (int, optional): 8 or 4 to make the forms with weights as integers of so many bits too.

    Returns:
        dict[str, ModelProto]: The models by name: ``'plain'`` and, of what is asked for, ``'plain int8'``,
            ``'shared'`` and ``'shared int8'``.

    Raises:
        SharingError: If no weight of the plain network is one of the shared, or if ONNX cannot compute it.
    """
    from .onnx_integers import INT4_OPSET, with_integers
    from .onnx_shared import put_shared, shared_weights

    model = exported(plain).export(shape, INT4_OPSET if bits == 4 else None)
    forms = {'plain': model}
    if bits:
        forms[f'plain int{bits}'] = with_integers(model, bits)
    if keep_shared:
        weights = shared_weights(model, shared)
        forms['shared'] = put_shared(model, weights)
        if bits:
            forms[f'shared int{bits}'] = put_shared(forms[f'plain int{bits}'], with_integers(weights, bits))
    return forms


def compare(files: dict[str, bytes], plain: nn.Module, shape: Sequence[int]) -> Iterator[str]:
    """Compare ONNX models of a network with it and with the first of them.

    Args:
        files (dict[str, bytes]): The models by name.
        plain (nn.Module): The plain network.
        shape (Sequence[int]): Channels, height and width of the images.

    Yields:
        str: Lines to print.

    Raises:
        SharingError: If the outputs differ too much.
    """
    network = exported(plain)
    channels, height, width = shape
    sessions = {name: open_session(content) for name, content in files.items()}
    for size in ((1, *shape), (3, channels, height + 32, width + 64)):
        taken = next(iter(sessions.values())).get_inputs()[0].shape
        size = [each if isinstance(each, int) else wanted for each, wanted in zip(taken, size)]
        with torch.no_grad():
            images = network.images(size)
            expected = network.outputs(images)
        for name, session in sessions.items():
            found = [torch.from_numpy(each) for each in session.run(None, {'images': images.numpy()})]
            words, near = network.check(found, expected, images, ' int' in name)
            yield f'ONNX against PyTorch, {name}, {"x".join(map(str, size))}: {words}'
            if not near:
                raise SharingError('The ONNX model differs from the network: it was not written.')
    nodes = {name: nodes_that_run(content) for name, content in files.items()}
    feed = {'images': torch.randn(1, *shape).numpy()}
    cpu = torch.device('cpu')
    loads = time_in_turn({name: lambda c=content: open_session(c) for name, content in files.items()}, 3, cpu)
    runs = time_in_turn({name: lambda s=session: s.run(None, feed) for name, session in sessions.items()}, 10, cpu)
    for name, content in files.items():
        added = nodes[name] - nodes['plain']
        yield (
            f'ONNX, {name}: {len(content) / 1e6:.2f} MB, {counts(nodes[name])}; loads in {loads[name].seconds:.2g} s '
            f'({loads[name].ratio:.3g} of the first), runs in {runs[name].ratio:.3g} of the time'
        )
        if added:
            yield f'onnxruntime computes weights in each run: {counts(added)}'


def open_session(content: bytes, optimized: Path | None = None) -> Any:
    """Load an ONNX model into onnxruntime, which may write its optimised graph to a file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # that the optimised graph is of this machine is known
    if optimized:
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(content, options, providers=['CPUExecutionProvider'])


def nodes_that_run(content: bytes) -> Counter[str]:
    """Count the operators of a model in the graph that onnxruntime makes of it on loading."""
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'optimized.onnx'
        open_session(content, path)
        return Counter(node.op_type for node in onnx.load(path).graph.node)


def counts(nodes: Counter[str], most: int = 6) -> str:
    named = [f'{count} {kind}' for kind, count in nodes.most_common(most)]
    others = nodes.total() - sum(count for _, count in nodes.most_common(most))
    return ', '.join(named + [f'{others} others'] * bool(others))
