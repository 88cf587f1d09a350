"""Relaxed recursive networks (Bae et al., ICLR 2025, https://arxiv.org/abs/2410.20672)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from .bank import Bank, Layer, SharedLayer, SharingError


class RelaxedLayer(SharedLayer):
    """A layer whose weight is that of its group and a low-rank one of its own, 0 at the start."""

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
    r"""One weight that all layers of the group use, each with a low-rank weight of its own beside it.

    Layer i has the weight :math:`W_i = W + A_i B_i`, with :math:`A_i` of R columns, as in the paper's equation of a
    relaxed recursive layer. W is initialised as weights are (Kaiming, fan in), the product as 0.

    Args:
        layers (Sequence[nn.Conv2d | nn.Linear]): The plain layers of the group.
        rank (int): Rank R of the weights of their own, of at most the smaller side of a weight as a matrix
            (O, I k k).

    Raises:
        SharingError: If there is no weight of this rank.
    """

    layer_class = RelaxedLayer

    def __init__(self, layers: Sequence[Layer], rank: int):
        super().__init__()
        weight = layers[0].weight
        most = min(weight.flatten(1).shape)
        if not isinstance(rank, int) or not 0 < rank <= most:
            raise SharingError(
                f'rank={rank!r} is the rank of no weight of the shape {tuple(weight.shape)}: give one '
                f'from 1 to {most}.'
            )
        self.rank = rank
        self.shared = nn.Parameter(nn.init.kaiming_normal_(weight.new_empty(weight.shape)))  # (O, I / groups, k, k)

    def generate(self) -> Tensor:
        return self.shared

    @torch.no_grad()
    def fit(self, kernels: Sequence[Tensor]) -> None:
        """Take the mean of the weights as the shared one, and of what it leaves of each the truncated singular value
        decomposition, its singular values halved between the two factors."""
        mean = torch.stack(list(kernels)).mean(0)
        self.shared.copy_(mean)
        for layer, kernel in zip(self.layers, kernels):
            u, s, vh = torch.linalg.svd((kernel - mean).flatten(1), full_matrices=False)
            root = s[: self.rank].sqrt()
            layer.up.copy_(u[:, : self.rank] * root)
            layer.down.copy_(root[:, None] * vh[: self.rank])
