"""The packed input projection of ``nn.MultiheadAttention``, three weights in one bare parameter, as a layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .bank import SharedLayer

PROJECTION = 'in_proj'


class SharedMultiheadAttention(nn.MultiheadAttention):
    """An ``nn.MultiheadAttention`` whose packed input projection, without bias, is the shared layer ``in_proj``."""

    in_proj: SharedLayer

    @property
    def in_proj_weight(self) -> Tensor:  # type: ignore[override]
        return self.in_proj.weight


def packed_projection(attention: nn.MultiheadAttention) -> nn.Linear:
    """The packed input projection of an attention as a linear without bias. Both use the same weight."""
    outputs, inputs = attention.in_proj_weight.shape
    linear = nn.Linear(inputs, outputs, bias=False, device='meta')
    linear.weight = attention.in_proj_weight
    return linear.train(attention.training)


def is_packed(parent: nn.Module, name: str) -> bool:
    return name == PROJECTION and isinstance(parent, nn.MultiheadAttention)


def put(parent: Any, name: str, layer: nn.Module) -> None:
    """Replace the child ``name`` of a module by a layer, shared or plain."""
    if not is_packed(parent, name):
        setattr(parent, name, layer)
    elif isinstance(layer, SharedLayer):
        parent.in_proj_weight = None  # keeps its place among the parameters
        parent.__class__ = SharedMultiheadAttention
        parent.in_proj = layer
    else:
        del parent.in_proj
        parent.__class__ = nn.MultiheadAttention
        parent.in_proj_weight = layer.weight


@contextmanager
def plain_attention() -> Iterator[None]:
    """Within this context ``nn.MultiheadAttention`` computes by ordinary products."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
