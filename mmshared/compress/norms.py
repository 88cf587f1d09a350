"""The statistics of batch norms in a network whose layers have become others."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce, get_world_size
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle
from tqdm import tqdm

from ..engine.build import evaluating
from ..sharing.filter_basis import BasisLayer
from .calibration import Batches, predict


@torch.no_grad()
def recalibrate_norms(model: nn.Module, plain: nn.Module, batches: Batches) -> None:
    """Change the running statistics of a shared model's batch norms by what sharing has changed in their inputs.

    Both models run on the same images, their norms with the statistics of each batch: then what follows a norm does
    not depend on its running statistics. The mean of a norm moves by the difference between the two models, and its
    variance changes by their ratio. So a norm that gets what it got in the plain model keeps its statistics, which
    are of far more images, and batches may be small. Frozen norms change too: their inputs have.

    The norms within the layers of a :class:`FilterBasis` get the statistics of their responses, with weights and
    biases that leave the layers as they are: trained with batch statistics, they start from what they compute in eval
    mode.

    Args:
        model (nn.Module): The shared model. It is changed in place.
        plain (nn.Module): The plain model that it was fitted to.
        batches (Batches): Batches of images.
    """
    shared, own = _Statistics(model), _Statistics(plain)
    with evaluating(model), evaluating(plain), shared, own:
        for batch in tqdm(batches, 'norms', unit='batch', leave=False, disable=None):
            predict(plain, batch)
            predict(model, batch)
    after, before = shared.means(), own.means()
    for name, module in model.named_modules():
        if isinstance(module, BasisLayer) and name in after:
            module.renormalise(*after[name])
        elif isinstance(module, _BatchNorm) and name in after and name in before:
            twin: Any = plain.get_submodule(name)
            norm: Any = module
            (mean, variance), (old_mean, old_variance) = after[name], before[name]
            norm.running_mean.copy_(twin.running_mean + mean - old_mean)
            # A channel that is almost constant in both keeps its variance.
            norm.running_var.copy_(twin.running_var * (variance + norm.eps) / (old_variance + norm.eps))


class _Statistics:
    """Within this context the batch norms of a model use the statistics of each batch, which are added up. Those of
    filter bases are left as they are, and the statistics of their responses are added up."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.sums: dict[str, Tensor] = {}  # means, variances and the number of batches, (3, C)
        self.handles: list[RemovableHandle] = []

    def __enter__(self) -> None:
        of_bases = set()
        for name, module in self.model.named_modules():
            if isinstance(module, BasisLayer) and module.with_norm:
                of_bases.add(module.norm)
                self._begin(name, module.norm)
                self.handles.append(module.register_forward_pre_hook(partial(self._add_responses, name)))
            elif isinstance(module, _BatchNorm) and module.running_mean is not None and module not in of_bases:
                self._begin(name, module)
                self.handles.append(module.register_forward_hook(partial(self._normalise, name)))

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _begin(self, name: str, norm: Any) -> None:
        self.sums[name] = torch.zeros(3, norm.num_features, dtype=torch.float64, device=norm.running_mean.device)

    def _add_responses(self, name: str, layer: BasisLayer, args: tuple) -> None:
        self._add(name, layer.responses(args[0]))

    def _normalise(self, name: str, norm: _BatchNorm, args: tuple, output: Tensor) -> Tensor | None:
        if not self._add(name, args[0]):
            return None
        return F.batch_norm(args[0], None, None, norm.weight, norm.bias, training=True, eps=norm.eps)

    def _add(self, name: str, maps: Tensor) -> bool:
        """Add the statistics of maps, (N, C, ...), unless they have only one value in each channel."""
        values = maps.transpose(0, 1).flatten(1).float()  # (C, N ...)
        if values.shape[1] < 2:
            return False
        variance, mean = torch.var_mean(values, 1)
        self.sums[name] += torch.stack([mean, variance, torch.ones_like(mean)])
        return True

    def means(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The mean and the variance of each norm's channels, (C, ) each, over the batches of all processes. Norms that
        got none are left out."""
        found = {}
        for name, sums in self.sums.items():
            if get_world_size() > 1:
                all_reduce(sums)
            mean, variance, count = sums
            if count.any():
                found[name] = (mean / count, variance / count)
        return found
