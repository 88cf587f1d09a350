"""Tied filters (Kang and Kim, NeurIPS 2021, https://arxiv.org/abs/2006.05066)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from .bank import Bank, Layer, SharedLayer, orthogonal_
from .least_squares import mean_weight, metrics


class TiedLayer(SharedLayer):
    """A layer whose weight is the weight of its group."""

    def dense(self) -> tuple[Tensor, Tensor | None]:
        return self.bank(), self.bias


@MODELS.register_module()
class TiedFilters(Bank):
    """One weight that all layers of the group use as it is.

    The paper shares its ResNet-50, ResNet-101 and MobileNetV2 this way: the unshared convs before and after take the
    role of the coefficients. The weight is initialised orthogonally.

    Args:
        layers (Sequence[nn.Conv2d | nn.Linear]): The plain layers of the group.
    """

    layer_class = TiedLayer
    orthogonal_start = True

    def __init__(self, layers: Sequence[Layer]):
        super().__init__()
        self.filters = nn.Parameter(layers[0].weight.new_empty(layers[0].weight.shape))  # (O, I / groups, k, k)
        orthogonal_(self.filters)

    def generate(self) -> Tensor:
        return self.filters

    @torch.no_grad()
    def fit(self, kernels: Sequence[Tensor], moments: Sequence[Tensor] | None = None) -> None:
        """Take the mean of the weights, or with moments the weight that solves their normal equations."""
        self.check_kernels(kernels)
        self.filters.copy_(mean_weight(kernels, None if moments is None else metrics(self.layers, kernels, moments)))

    def basis(self) -> Tensor:
        return self.filters
