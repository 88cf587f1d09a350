"""Shared networks as plain ones: for the stock classes, for torchvision and as ONNX."""
import copy
import tempfile
from collections import Counter
from pathlib import Path
from typing import Dict, Iterable, Iterator, Sequence, Tuple

import torch
import torchvision
from mmdet.models.detectors import BaseDetector
from mmengine.config import Config
from mmengine.registry import HOOKS
from torch import Tensor, nn

from ..sharing import SharingError
from .models import build_model, plain_twin


def feature_maps(model: nn.Module, pictures: Tensor) -> Tuple[Tensor, ...]:
    """What a classifier or a detector makes of pictures, (N, 3, H, W), by convs alone: logits, or the maps of the
    neck.

    Raises:
        SharingError: If it takes no pictures of this size, or of so many channels.
    """
    try:
        maps = model.extract_feat(pictures) if isinstance(model, BaseDetector) else model(pictures)
    except RuntimeError as error:
        raise SharingError(f'The network cannot take pictures of {"x".join(map(str, pictures.shape[1:]))}: '
                           f'{str(error).splitlines()[0]}') from error
    return tuple(maps) if isinstance(maps, (tuple, list)) else (maps, )


def inner(model: nn.Module) -> nn.Module:
    """The backbone of a detector; a classifier as it is."""
    return model.backbone if isinstance(model, BaseDetector) else model


def relative_difference(found: Iterable[Tensor], expected: Iterable[Tensor]) -> float:
    """The largest difference of tensors, relative to the largest value of each; not a number if one holds such."""
    return torch.stack([(a - b).abs().max() / b.abs().max() for a, b in zip(found, expected)]).max().item()


def drop_hooks(cfg: Config) -> Config:
    """Take the hooks of mmshared out of a config, in place; returns it."""
    hooks = [hook for hook in cfg.pop('custom_hooks', None) or []
             if not (HOOKS.get(hook['type']) or object).__module__.startswith('mmshared')]
    if hooks:
        cfg.custom_hooks = hooks
    return cfg


def stock_config(cfg: Config) -> Config:
    """The config of the plain network: without sharing, without the hooks of mmshared, and without its import unless
    the plain network is one of its own."""
    stock = drop_hooks(Config(copy.deepcopy(cfg.to_dict())))
    stock.model = plain_twin(stock.model)
    imports = (stock.pop('custom_imports', None) or {}).get('imports', [])
    if any(type(module).__module__.startswith('mmshared') for module in build_model(stock).modules()):
        imports = ['mmshared']
    else:
        imports = [name for name in imports if name != 'mmshared']
    if imports:
        stock.custom_imports = dict(imports=imports, allow_failed_imports=False)
    return stock


def to_torchvision(model: nn.Module) -> Dict[str, Tensor]:
    """The state dict of a plain classifier of mmpretrain under the keys of the ResNet of torchvision that it is.

    Raises:
        SharingError: If torchvision has no such network.
    """
    state_dict = {key.replace('backbone.', '', 1).replace('head.fc.', 'fc.', 1): tensor
                  for key, tensor in model.state_dict().items()}
    shapes = {key: tensor.shape for key, tensor in state_dict.items()}
    classes = len(state_dict.get('fc.weight', ()))
    for name in torchvision.models.list_models(torchvision.models, include='*res*'):
        with torch.device('meta'):
            twin = torchvision.models.get_model(name, num_classes=classes)
        if {key: tensor.shape for key, tensor in twin.state_dict().items()} == shapes:
            break
    else:
        raise SharingError('--torchvision is for classifiers whose layers are those of a ResNet, ResNeXt or wide '
                           'ResNet of torchvision, and this is none.')
    twin.load_state_dict(state_dict, strict=True, assign=True)
    pictures = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        difference = relative_difference([twin.eval()(pictures)], [model(pictures)])
    if not difference < 1e-4:
        raise SharingError(f"torchvision's {name} with these weights differs by a relative {difference:.2g}.")
    return state_dict


def export_onnx(shared: nn.Module, plain: nn.Module, out: Path, shape: Sequence[int], keep_shared: bool
                ) -> Iterator[str]:
    """Write a network as ONNX with batch and size open, and run it by onnxruntime against PyTorch.

    Args:
        shared (nn.Module): The shared classifier or detector.
        plain (nn.Module): The plain one that it equals.
        out (Path): The file.
        shape (Sequence[int]): Channels, height and width to export and to compare at; also compared at another size.
        keep_shared (bool): Whether to write the form with shared filters instead, each stored once, if its file is
            the smaller one.

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
            pictures = torch.randn(size)
            with torch.no_grad():
                expected = inner(plain)(pictures)
            expected = expected if isinstance(expected, (tuple, list)) else (expected, )
            found = [torch.from_numpy(each) for each in session.run(None, {'pictures': pictures.numpy()})]
            difference = relative_difference(found, expected)
            yield f'ONNX against PyTorch, {"x".join(map(str, size))}: relative difference {difference:.2g}'
            if not difference < 1e-3:
                raise SharingError('The ONNX model differs from the network: it was not written.')
        out.write_bytes(files[name].read_bytes())
        yield f'wrote {out} ({out.stat().st_size / 1e6:.2f} MB)'


def _write_onnx(module: nn.Module, out: Path, shape: Sequence[int]) -> None:
    open_axes = {0: torch.export.Dim('batch'), 2: torch.export.Dim('height'), 3: torch.export.Dim('width')}
    module.eval()  # which returns nothing in mmdet
    torch.onnx.export(
        module, (torch.randn(2, *shape), ), str(out), input_names=['pictures'], dynamo=True,
        dynamic_shapes=(open_axes, ), external_data=False, verbose=False)
