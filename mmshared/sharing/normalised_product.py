"""A batch norm and the product behind it, without a normalised copy of the maps."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def product(maps: Tensor, coefficients: Tensor, bias: Tensor | None) -> Tensor:
    """A 1x1 conv, without gradients. For contiguous maps on a CPU it is one matrix product per image: a conv would
    copy such maps into a format of its own and back."""
    if not as_matrices(maps):
        return F.conv2d(maps, coefficients, bias)
    rows = coefficients.flatten(1).expand(len(maps), -1, -1)  # (N, O, R)
    columns = maps.flatten(2)  # (N, R, H W)
    out = maps.new_empty(len(maps), len(coefficients), *maps.shape[2:])  # no view: others may work on it in place
    if bias is None:
        torch.bmm(rows, columns, out=out.flatten(2))
    else:
        torch.baddbmm(bias[:, None], rows, columns, out=out.flatten(2))
    return out


def gradients(grad: Tensor, maps: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of the coefficients (O, R) and of the bias (O, ) in :func:`product`."""
    if as_matrices(maps) and as_matrices(grad) and len(coefficients) <= maps[0, 0].numel():
        # All products together are no larger than the maps.
        return torch.bmm(grad.flatten(2), maps.flatten(2).mT).sum(0), grad.sum((0, 2, 3))
    _, grad_coefficients, grad_bias = torch.ops.aten.convolution_backward(
        grad, maps, coefficients, [len(coefficients)], [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [False, True, True]
    )
    return grad_coefficients.flatten(1), grad_bias


def as_matrices(maps: Tensor) -> bool:
    return maps.device.type == 'cpu' and maps.is_contiguous()


class NormalisedProduct(torch.autograd.Function):
    r"""A batch norm with the statistics of the batch and a 1x1 conv, as one 1x1 conv with scaled coefficients.

    For responses r with mean m and variance v in a channel, ``coefficients . (weight (r - m) / sqrt(v + eps) + bias)``
    is ``(coefficients scale) . r + coefficients . shift`` with ``scale = weight / sqrt(v + eps)`` and
    ``shift = bias - m scale``. So no normalised copy of the responses is made, and the gradients of scale and shift
    come from those of the 1x1 conv, without a pass over the maps.

    If m is large compared with sqrt(v), rounding ruins ``v = E[r^2] - m^2`` and the sum with ``shift``. So the mean
    of the middle rows is first subtracted from the responses, in place, and m and v are those of the remainder.
    """

    @staticmethod
    def forward(
        ctx: Any,
        responses: Tensor,
        weight: Tensor,
        norm_bias: Tensor,
        eps: float,
        coefficients: Tensor,
        bias: Tensor | None,
    ) -> tuple[Tensor, ...]:
        exact, count = weight.dtype, responses.numel() // len(weight)
        centre = responses[:, :, responses.shape[2] // 2].mean((0, 2), dtype=exact)  # (R, )
        responses.sub_(centre[:, None, None])
        mean = responses.mean((0, 2, 3), dtype=exact)  # (R, )
        square = torch.linalg.vector_norm(responses, dim=(2, 3), dtype=exact).square_().sum(0) / count
        variance = torch.addcmul(square, mean, mean, value=-1).clamp_(min=0)
        inverse = torch.rsqrt(variance + eps)
        scale = weight * inverse
        shift = torch.addcmul(norm_bias, mean, scale, value=-1)
        rows = coefficients.flatten(1).to(exact)  # (O, R)
        kernel = (rows * scale).view_as(coefficients).to(responses)
        constant = torch.mv(rows, shift) if bias is None else torch.addmv(bias.to(exact), rows, shift)  # (O, )
        ctx.mark_dirty(responses)
        ctx.save_for_backward(responses, kernel, rows, mean, inverse, scale, shift)
        ctx.set_materialize_grads(False)
        centre += mean
        ctx.mark_non_differentiable(centre, variance)
        return product(responses, kernel, constant.to(responses)), centre, variance, responses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        responses, kernel, rows, mean, inverse, scale, shift = ctx.saved_tensors
        count = responses.numel() // len(mean)
        grad_kernel, grad_sum = (each.to(rows) for each in gradients(grad, responses, kernel))  # (O, R), (O, )
        grad_shift = torch.mv(rows.T, grad_sum)  # (R, )
        grad_scale = (grad_kernel * rows).sum(0).addcmul_(mean, grad_shift, value=-1)
        # The gradient of the responses r through mean and variance is -(slope * r + offset).
        slope = grad_scale * scale * inverse.square() / count
        offset = torch.addcmul(scale * grad_shift / count, slope, mean, value=-1)
        grad_responses = product(grad, kernel.transpose(0, 1), -offset.to(grad))
        grad_responses.addcmul_(responses, slope[:, None, None], value=-1)
        grad_rows = (grad_kernel * scale).addr_(grad_sum, shift)
        grad_bias = grad_sum if ctx.needs_input_grad[5] else None
        return grad_responses, grad_scale * inverse, grad_shift, None, grad_rows[:, :, None, None], grad_bias


def normalised_product(responses: Tensor, norm: Any, coefficients: Tensor, bias: Tensor | None) -> Tensor:
    """Normalise responses and combine them: ``coefficients . norm(responses) + bias``, in training mode.

    Args:
        responses (Tensor): The responses, (N, R, H, W). Do not use them afterwards: they may be centred in place.
        norm (nn.Module): The norm in training mode. The running statistics of an ``nn.BatchNorm2d`` are updated as it
            would update them.
        coefficients (Tensor): The weight of a 1x1 conv, (O, R, 1, 1).
        bias (Tensor, optional): Its bias, (O, ).

    Returns:
        Tensor: The maps, (N, O, H, W).
    """
    if torch.compiler.is_compiling():
        return F.conv2d(norm(responses), coefficients, bias)  # the compiler fuses the norm by itself
    count = responses.numel() // responses.shape[1]
    if count < 2 or not _has_plain_statistics(norm):
        return F.conv2d(norm(responses), coefficients, bias)
    out, mean, variance, _ = NormalisedProduct.apply(responses, norm.weight, norm.bias, norm.eps, coefficients, bias)
    norm.num_batches_tracked += 1
    norm.running_mean.lerp_(mean, norm.momentum)
    norm.running_var.lerp_(variance * (count / (count - 1)), norm.momentum)
    return out


def _has_plain_statistics(norm: nn.Module) -> bool:
    """Whether a norm normalises by the batch and keeps running statistics, in float32 or better."""
    return (
        type(norm) is nn.BatchNorm2d
        and norm.training
        and norm.affine
        and norm.track_running_stats
        and norm.momentum is not None
        and norm.weight.dtype.itemsize >= 4
    )
