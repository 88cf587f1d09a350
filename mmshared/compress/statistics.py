"""What the layers of a plain network get as inputs: one pass over some hundred images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce, get_rank, get_world_size
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm

from ..engine.build import evaluating, tensors_in
from ..engine.checkpoint import load_checkpoint_file, save_checkpoint
from ..sharing import SharedLayer, SharingError
from ..sharing.attention import is_packed, plain_attention
from ..sharing.bank import in_float
from ..sharing.layers import plain_layers
from .calibration import Batches, predict
from .files import digest_of

aten = torch.ops.aten

#: The number of values of patches that are in memory at one time.
CHUNK = 2**24
#: So many patches are enough for each value of a patch. If there are more, as many are drawn from each batch.
SAMPLES = 128
#: How often unfinished sums are saved, in seconds.
INTERVAL = 60.0


def shared_names(model: nn.Module) -> list[str]:
    """The full names of a model's shared layers: those of plain layers in its plain twin."""
    return [name for name, module in model.named_modules() if isinstance(module, SharedLayer)]


@torch.no_grad()
def collect_moments(
    model: nn.Module, batches: Batches, names: Sequence[str], cache: Path | None = None
) -> dict[str, Tensor]:
    r"""Sum up :math:`x x^T` over the input patches x of plain layers, as :meth:`Bank.fit` takes them.

    Every use of a layer's weight counts, wherever it is: a head's on each level of a neck, and those in which an
    attention does not call the layer. The patches of a conv include the padding. Of maps with far more patches than K,
    some are drawn. Products are in float32 for each batch (unless the model is in float64), sums in float64. In a
    distributed run, each process sums up its batches, and all get the whole sums.

    Args:
        model (nn.Module): The plain model. It is run in eval mode as :func:`predict` does, where it is.
        batches (Batches): Its batches: :func:`calibration_loader`.
        names (Sequence[str]): The names of layers in it, also of packed projections (``attn.in_proj``).
        cache (Path, optional): A folder for the sums. What is there of the same model, layers, first batch and number
            of batches is not computed again, also if it was interrupted; the sums that are returned are read from
            there when they are used.

    Returns:
        dict[str, Tensor]: By name, the sum for each layer that got inputs: (K, K) in float64, or (G, K, K) for G
        groups of a conv, and for the queries, keys and values of a packed projection (G = 3).

    Raises:
        SharingError: If there is no batch or no such layer.
    """
    if not len(batches):
        raise SharingError('This process has no image: take at least as many images as there are processes.')
    layers = _find(model, names)
    size = 8 * sum(math.prod(layer.shape) for layer in layers)
    print_log(f'The moments of {len(layers)} layers take {size / 1e9:.2f} GB.', logger='current')
    moments = {}
    for name, moment in _Pass(model, layers, cache).run(batches).items():
        if get_world_size() > 1:
            all_reduce(moment)
        if moment.any():
            moments[name] = (moment if len(moment) > 1 else moment[0]).cpu()
    missing = [layer.name for layer in layers if layer.name not in moments]
    if missing:
        print_log(f'No inputs came to {", ".join(missing)}.', logger='current')
    return moments


class _Layer(NamedTuple):
    """A plain layer: its name, its weight, and the number of groups of outputs that see inputs of their own."""

    name: str
    weight: Tensor
    groups: int

    @property
    def shape(self) -> tuple[int, int, int]:
        size = self.weight[0].numel()
        return self.groups, size, size


def _find(model: nn.Module, names: Sequence[str]) -> list[_Layer]:
    places = plain_layers(model)
    missing = [name for name in names if name not in places]
    if missing:
        raise SharingError(f'The network has no layer {missing[0]} that can share: give names of plain layers.')
    layers = []
    for name in dict.fromkeys(names):
        (parent, child), layer = places[name].parents[0], places[name].layer
        layers.append(_Layer(name, layer.weight, 3 if is_packed(parent, child) else getattr(layer, 'groups', 1)))
    return layers


class _Sums(TorchDispatchMode):
    """Adds up the products of the patches that meet the weights of layers, wherever these are used."""

    def __init__(self, layers: Iterable[_Layer], sums: dict[str, Tensor], batches: int):
        super().__init__()
        self.layers = {layer.weight.untyped_storage().data_ptr(): layer for layer in layers}
        self.sums = sums
        self.most = SAMPLES / max(batches, 1)  # patches of a batch for each value of a patch

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func is aten.convolution.default:
            layer = self._layer_of(args[1])
            if layer is not None:
                size = layer.shape[1]
                share = self.most * size * output.shape[1] / output.numel()
                for part in patches(args[0], layer.weight.shape[2:], *args[3:6]):  # (N, C k k, L)
                    rows = drawn(part, share).transpose(0, 1).reshape(layer.groups, size, -1)
                    self.sums[layer.name] += (rows @ rows.mT).double()
        elif func in (aten.mm.default, aten.addmm.default, aten.bmm.default):
            x, weight = args[-2:]
            layer = self._layer_of(weight)
            if layer is not None and x.shape[-1] == layer.shape[1]:
                columns = in_float(x).reshape(-1, x.shape[-1]).T  # (K, n)
                rows = drawn(columns, self.most * x.shape[-1] ** 2 / max(x.numel(), 1))
                self.sums[layer.name][self._groups_in(layer, weight)] += (rows @ rows.T).double()
        return output

    def _layer_of(self, weight: Tensor) -> _Layer | None:
        return self.layers.get(weight.untyped_storage().data_ptr())

    @staticmethod
    def _groups_in(layer: _Layer, weight: Tensor) -> slice:
        """The groups of outputs in a part of a linear's weight, (..., K, rows)."""
        each = len(layer.weight) // layer.groups
        first = (weight.storage_offset() - layer.weight.storage_offset()) // layer.shape[1]
        return slice(first // each, -(-(first + weight.shape[-1]) // each))


def drawn(patches: Tensor, share: float) -> Tensor:
    """A share of patches, (..., K, L), always the same, scaled so that the sum of their products is about the same."""
    count = patches.shape[-1]
    kept = math.ceil(share * count)
    if kept >= count:
        return patches
    places = torch.randperm(count, generator=torch.Generator().manual_seed(count))[:kept]
    return patches[..., places.to(patches.device)] * math.sqrt(count / kept)


def patches(
    x: Tensor, size: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Iterator[Tensor]:
    """The patches of maps, (N, C, H, W), that a conv sees, (N, C k k, L), some rows of its output at a time."""
    x = F.pad(in_float(x), (padding[1], padding[1], padding[0], padding[0]))
    reach = [step * (side - 1) + 1 for step, side in zip(dilation, size)]
    height, width = ((side - far) // step + 1 for side, far, step in zip(x.shape[2:], reach, stride))
    count = max(1, CHUNK // (len(x) * x.shape[1] * size[0] * size[1] * width))
    for first in range(0, height, count):
        last = min(first + count, height) - 1
        rows = x[:, :, first * stride[0] : last * stride[0] + reach[0]]
        yield F.unfold(rows, tuple(size), tuple(dilation), stride=tuple(stride))


class _Pass:
    """One pass over the batches for some layers, whose sums are saved while it runs."""

    def __init__(self, model: nn.Module, layers: Sequence[_Layer], folder: Path | None):
        self.model, self.layers, self.path = model, layers, None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self.path = folder / f'moments_rank{get_rank()}_of_{get_world_size()}.pth'

    def run(self, batches: Batches) -> dict[str, Tensor]:
        """The sums of the layers."""
        key = self._key(batches) if self.path else ''
        done, sums = self._saved(key)
        if done < len(batches):
            device = next(self.model.parameters()).device
            sums = {name: moment.to(device) for name, moment in sums.items()} or {
                layer.name: torch.zeros(layer.shape, dtype=torch.float64, device=device) for layer in self.layers
            }
            saved, pause = monotonic(), INTERVAL
            bar = tqdm(batches, 'moments', unit='batch', leave=False, disable=None)
            with evaluating(self.model), plain_attention(), _Sums(self.layers, sums, len(batches)):
                for number, batch in enumerate(bar, 1):
                    if number > done:
                        predict(self.model, batch)
                        if self.path and (number == len(batches) or monotonic() - saved > pause):
                            start = monotonic()
                            save_checkpoint(dict(key=key, done=number, sums=sums), self.path)
                            saved = monotonic()
                            pause = INTERVAL * max(1, (saved - start) / 3)  # at most a twentieth of the time
            if self.path:
                sums = self._saved(key)[1]
        return sums

    def _key(self, batches: Batches) -> str:
        """A fingerprint of what the sums depend on."""
        first, weights = next(iter(batches), None), self.model.state_dict()
        layers = [(layer.name, layer.shape) for layer in self.layers]
        return digest_of([len(batches), layers, list(weights), *weights.values(), *tensors_in(first)])

    def _saved(self, key: str) -> tuple[int, dict[str, Tensor]]:
        """The number of batches that are done, and their sums."""
        if self.path is None or not self.path.is_file():
            return 0, {}
        saved = load_checkpoint_file(str(self.path), mmap=True)
        return (saved['done'], saved['sums']) if saved['key'] == key else (0, {})
