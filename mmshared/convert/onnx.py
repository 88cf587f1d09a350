"""Exports networks as ONNX."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from ..engine.build import inner, relative_difference
from ..sharing import SharingError


def export_onnx(
    shared: nn.Module, plain: nn.Module, out: Path, shape: Sequence[int], keep_shared: bool
) -> Iterator[str]:
    """Write a network as ONNX with dynamic batch and image size, and compare onnxruntime with PyTorch.

    Args:
        shared (nn.Module): The shared classifier or detector.
        plain (nn.Module): The plain one that it equals.
        out (Path): The file.
        shape (Sequence[int]): Channels, height and width for the export and the comparison, which also uses a second
            size.
        keep_shared (bool): Whether to write the form with shared filters instead, each stored once, if its file is
            smaller.

    Yields:
        str: Lines to print.

    Raises:
        SharingError: If the outputs differ by more than a relative 1e-3.
    """
    import onnx
    import onnxruntime

    channels, height, width = shape
    with tempfile.TemporaryDirectory() as folder:
        files = {'plain': Path(folder) / 'plain.onnx'}
        _write_onnx(inner(plain), files['plain'], shape)
        if keep_shared:
            files['shared'] = Path(folder) / 'shared.onnx'
            _write_onnx(inner(shared), files['shared'], shape)
            yield 'ONNX: ' + ', '.join(f'{path.stat().st_size / 1e6:.2f} MB {name}' for name, path in files.items())
        name = min(files, key=lambda name: files[name].stat().st_size)
        nodes = Counter(node.op_type for node in onnx.load(files[name]).graph.node)
        yield f'ONNX nodes, {name}: ' + ', '.join(f'{count} {kind}' for kind, count in nodes.most_common())
        session = onnxruntime.InferenceSession(files[name], providers=['CPUExecutionProvider'])
        for size in ((1, *shape), (3, channels, height + 32, width + 64)):
            images = torch.randn(size)
            with torch.no_grad():
                expected = inner(plain)(images)
            expected = expected if isinstance(expected, (tuple, list)) else (expected,)
            found = [torch.from_numpy(each) for each in session.run(None, {'images': images.numpy()})]
            difference = relative_difference(found, expected)
            yield f'ONNX against PyTorch, {"x".join(map(str, size))}: relative difference {difference:.2g}'
            if not difference < 1e-3:
                raise SharingError('The ONNX model differs from the network: it was not written.')
        out.write_bytes(files[name].read_bytes())
        yield f'wrote {out} ({out.stat().st_size / 1e6:.2f} MB)'


def _write_onnx(module: nn.Module, out: Path, shape: Sequence[int]) -> None:
    open_axes = {0: torch.export.Dim('batch'), 2: torch.export.Dim('height'), 3: torch.export.Dim('width')}
    module.eval()  # a line of its own: it returns None in mmdet
    torch.onnx.export(
        module,
        (torch.randn(2, *shape),),
        str(out),
        input_names=['images'],
        dynamo=True,
        dynamic_shapes=(open_axes,),
        external_data=False,
        verbose=False,
    )
