"""Relaxed recursive networks (Bae et al., ICLR 2025, https://arxiv.org/abs/2410.20672)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from .bank import Bank, Layer, SharedLayer, SharingError
from .least_squares import ALTERNATIONS, low_rank, mean_weight, metrics


class RelaxedLayer(SharedLayer):
    """A layer whose weight is the group's plus a low-rank one of its own, which starts at 0."""

    def __init__(self, layer: Layer, bank: RelaxedTie, norm: nn.Module | None = None):
        super().__init__(layer, bank, norm)
        like: dict[str, Any] = dict(device=layer.weight.device, dtype=layer.weight.dtype)
        self.up = nn.Parameter(torch.zeros(self.shape[0], bank.rank, **like))  # (O, R)
        self.down = nn.Parameter(torch.empty(bank.rank, self.shape[1:].numel(), **like))  # (R, I k k)
        nn.init.kaiming_normal_(self.down)

    def dense(self) -> tuple[Tensor, Tensor | None]:
        return self.bank() + (self.up @ self.down).view(self.shape), self.bias


@MODELS.register_module()
class RelaxedTie(Bank):
    r"""One weight for all layers of the group, to which each adds a low-rank weight of its own.

    Layer i has the weight :math:`W_i = W + A_i B_i`, where :math:`A_i` has R columns, as in the paper's equation of a
    relaxed recursive layer. W is initialised like a weight (Kaiming, fan in), the product as 0.

    Args:
        layers (Sequence[nn.Conv2d | nn.Linear]): The plain layers of the group.
        rank (int): Rank R of the layers' own weights, at most the smaller side of a weight as a matrix (O, I k k).

    Raises:
        SharingError: If no weight can have this rank.
    """

    layer_class = RelaxedLayer

    def __init__(self, layers: Sequence[Layer], rank: int):
        super().__init__()
        weight = layers[0].weight
        most = min(weight.flatten(1).shape)
        if not isinstance(rank, int) or not 0 < rank <= most:
            raise SharingError(
                f'rank={rank!r} is not a rank of weights of the shape {tuple(weight.shape)}: give one '
                f'from 1 to {most}.'
            )
        self.rank = rank
        self.shared = nn.Parameter(nn.init.kaiming_normal_(weight.new_empty(weight.shape)))  # (O, I / groups, k, k)

    def generate(self) -> Tensor:
        return self.shared

    @torch.no_grad()
    def fit(self, kernels: Sequence[Tensor], moments: Sequence[Tensor] | None = None) -> None:
        """Take the mean of the weights as the shared one, and the truncated singular value decomposition of each
        residual as the layer's own, with the square roots of the singular values in both factors. With moments both
        are weighted and fitted in turn."""
        self.check_kernels(kernels)
        shared = mean_weight(kernels)
        own = [kernel - shared for kernel in kernels]
        if moments is not None:
            found = metrics(self.layers, kernels, moments)
            for _ in range(ALTERNATIONS):
                own = [low_rank(kernel - shared, metric, self.rank) for kernel, metric in zip(kernels, found)]
                shared = mean_weight([kernel - each for kernel, each in zip(kernels, own)], found)
            own = [low_rank(kernel - shared, metric, self.rank) for kernel, metric in zip(kernels, found)]
        self.shared.copy_(shared)
        for layer, weight in zip(self.layers, own):
            u, s, vh = torch.linalg.svd(weight.flatten(1), full_matrices=False)
            root = s[: self.rank].sqrt()
            layer.up.copy_(u[:, : self.rank] * root)
            layer.down.copy_(root[:, None] * vh[: self.rank])
