"""RepeatNet's transforms of a small kernel (Chavan et al., ICIP 2021, https://github.com/transmuteAI/RepeatNet)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.registry import Registry
from torch import Tensor, nn

from .bank import SharingError

#: The registry of the transforms that ``RepeatedKernel(transform=dict(type=...))`` takes.
KERNEL_TRANSFORMS = Registry('kernel transform')


class KernelTransform(nn.Module):
    """Makes the kernel of a conv from a smaller one: tiles it and transforms the tiles.

    As many whole tiles as fit are laid along outputs and inputs, and transformed. The remaining output channels are a
    copy of the first rows of the result, then the remaining input channels are a copy of its first columns; each copy
    is transformed by its own learned values. A subclass overrides :meth:`transform` or :meth:`forward`.

    Args:
        small (Sequence[int]): Shape of the small kernel, (o, i, k, k).
        shape (Sequence[int]): Shape of the kernel to make, (O, I, k, k).

    Attributes:
        affine (bool): Whether each value of the kernel is an affine function of one value of the small kernel, which
            fitting to given kernels requires. Defaults to False.
    """

    affine = False

    def __init__(self, small: Sequence[int], shape: Sequence[int]):
        super().__init__()
        self.small, self.shape = tuple(small), tuple(shape)
        (self.r_out, self.e_out), (self.r_in, self.e_in) = (divmod(shape[axis], small[axis]) for axis in (0, 1))
        whole, all_rows = slice(shape[1] - self.e_in), slice(None)
        # The tiles, the rows that remain, the columns that remain: places in the kernel.
        self.regions = [
            (slice(shape[0] - self.e_out), whole),
            (slice(shape[0] - self.e_out, None), whole),
            (all_rows, slice(shape[1] - self.e_in, None)),
        ]

    def transform(self, part: Tensor, region: int) -> Tensor:
        """Transform the part of the kernel that goes to ``regions[region]``."""
        raise NotImplementedError

    def forward(self, kernel: Tensor) -> Tensor:
        o, i, *size = self.small
        tiles = kernel.reshape(1, o, 1, i, *size).expand(self.r_out, o, self.r_in, i, *size)
        kernel = self.transform(tiles.reshape(self.r_out * o, self.r_in * i, *size), 0)  # (r_out o, r_in i, k, k)
        if self.e_out:
            kernel = torch.cat([kernel, self.transform(kernel[: self.e_out], 1)])  # (O, r_in i, k, k)
        if self.e_in:
            kernel = torch.cat([kernel, self.transform(kernel[:, : self.e_in], 2)], 1)  # (O, I, k, k)
        return kernel

    def compute(self, apply: Callable[..., Tensor], x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        """Apply a layer with the kernel made from the small one to x; ``apply(x, weight, bias)`` computes a layer of
        its geometry."""
        return apply(x, self(kernel), bias)

    def extra_repr(self) -> str:
        tiles = f'{self.r_out} x {self.r_in} tiles, {self.e_out} rows and {self.e_in} columns more'
        return f'{self.small} to {self.shape}: {tiles}'


@KERNEL_TRANSFORMS.register_module('linear')
class Linear(KernelTransform):
    """All tiles are alike.

    Such a kernel acts on the sum of its input tiles, and its output repeats. Computing it that way is exact and costs
    the multiply-adds of the small kernel.
    """

    affine = True

    def transform(self, part: Tensor, region: int) -> Tensor:
        return part

    def compute(self, apply: Callable[..., Tensor], x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        axis = 1 - len(self.shape)  # of the channels: (N, C, H, W) or (..., C)
        y = self._add_tiles(x, axis)
        if self.r_out == 1 and not self.e_out:
            return apply(y, kernel, bias)
        y = apply(y, kernel, None)  # (N, o, H, W)
        y = torch.cat([y] * self.r_out + [y.narrow(axis, 0, self.e_out)] * bool(self.e_out), axis)  # (N, O, H, W)
        return y if bias is None else y.add_(bias.to(y.dtype).view(-1, *[1] * (-1 - axis)))

    def _add_tiles(self, x: Tensor, axis: int) -> Tensor:
        """The sum over the slices of the channels, one for each tile of a row, (N, i, H, W)."""
        if self.r_in == 1 and not self.e_in:
            return x
        i = self.small[1]
        if self.e_in:
            x = F.pad(x, (0, 0) * (-1 - axis) + (0, -x.shape[axis] % i))
        if x.dim() == 4 and axis == -3 and x.is_contiguous(memory_format=torch.channels_last):  # keep it
            return x.movedim(1, 3).unflatten(3, (-1, i)).sum(3, dtype=x.dtype).movedim(3, 1)
        return x.unflatten(axis, (-1, i)).sum(axis - 1, dtype=x.dtype)


@KERNEL_TRANSFORMS.register_module('swish')
class Swish(KernelTransform):
    r"""Tile W becomes :math:`\alpha W \sigma(-\beta W)`, with a pair of learned numbers for each tile, one for the
    remaining rows and one for the remaining columns."""

    alpha: nn.Parameter  # (r_out, r_in)
    beta: nn.Parameter
    rest_alpha: nn.Parameter
    rest_beta: nn.Parameter

    def __init__(self, small: Sequence[int], shape: Sequence[int]):
        super().__init__(small, shape)
        for name in ('alpha', 'beta'):
            values = nn.init.xavier_uniform_(torch.empty(1, self.r_out * self.r_in))
            self.register_parameter(name, nn.Parameter(values.view(self.r_out, self.r_in)))
            rest = torch.rand(bool(self.e_out) + bool(self.e_in))  # rows, columns
            self.register_parameter(f'rest_{name}', nn.Parameter(rest) if len(rest) else None)

    def transform(self, part: Tensor, region: int) -> Tensor:
        if region:
            index = region - 1 if self.e_out else 0
            return self.swish(part, self.rest_alpha[index], self.rest_beta[index])
        tiles = part.view(self.r_out, self.small[0], self.r_in, *self.small[1:])
        ones = [1] * len(self.small[1:])
        alpha, beta = (values.view(self.r_out, 1, self.r_in, *ones) for values in (self.alpha, self.beta))
        return self.swish(tiles, alpha, beta).view_as(part)

    @staticmethod
    def swish(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        return alpha * x * torch.sigmoid(-beta * x)


class StraightThroughSign(torch.autograd.Function):
    """The sign, with the gradient of clamping to [-1, 1]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sign()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * (x.abs() <= 1)


def positive_mask(shape: Sequence[int]) -> nn.Parameter:
    """The parameter that learns signs; all of them start as plus."""
    return nn.Parameter(torch.rand(tuple(shape)) * 0.001)


@KERNEL_TRANSFORMS.register_module('bireal')
class BiReal(KernelTransform):
    """Each value of the tiled kernel has a learned sign: the sign of a parameter with a straight-through gradient."""

    affine = True

    def __init__(self, small: Sequence[int], shape: Sequence[int]):
        super().__init__(small, shape)
        self.mask = positive_mask(shape)  # (O, I, k, k)

    def transform(self, part: Tensor, region: int) -> Tensor:
        return part * StraightThroughSign.apply(self.mask[self.regions[region]])


@KERNEL_TRANSFORMS.register_module('static_drop')
class StaticDrop(KernelTransform):
    """Each value of the tiled kernel is kept or zeroed for good, as drawn at the start.

    Args:
        small (Sequence[int]): Shape of the small kernel.
        shape (Sequence[int]): Shape of the kernel to make.
        drop_rate (float): The probability of a zero. Defaults to 0.5. Kept values are not scaled up.
    """

    affine = True

    kept: Tensor

    def __init__(self, small: Sequence[int], shape: Sequence[int], drop_rate: float = 0.5):
        super().__init__(small, shape)
        if not (isinstance(drop_rate, (int, float)) and 0 <= drop_rate < 1):
            raise SharingError(
                f'drop_rate={drop_rate!r} is not a share of a kernel to drop: give one from 0 to below 1.'
            )
        self.register_buffer('kept', torch.rand(tuple(shape)) >= drop_rate)  # (O, I, k, k)

    def transform(self, part: Tensor, region: int) -> Tensor:
        return part * self.kept[self.regions[region]]


@KERNEL_TRANSFORMS.register_module('random_bireal')
class RandomBiReal(KernelTransform):
    """No tiles: the small kernel's filters, k x k each, then random ones, which stay as drawn, for the rest of the
    kernel. Each value has a learned sign, as in :class:`BiReal`."""

    affine = True
    random: Tensor

    def __init__(self, small: Sequence[int], shape: Sequence[int]):
        super().__init__(small, shape)
        self.mask = positive_mask(shape)  # (O, I, k, k)
        random = torch.empty(shape[0] * shape[1] - small[0] * small[1], 1, *shape[2:])
        self.register_buffer('random', nn.init.kaiming_uniform_(random, a=math.sqrt(5))[:, 0])  # (O I - o i, k, k)

    def forward(self, kernel: Tensor) -> Tensor:
        filters = torch.cat([kernel.flatten(0, 1), self.random.to(kernel.dtype)])  # (O I, k, k)
        return filters.view(self.shape) * StraightThroughSign.apply(self.mask)
