"""Deeply shared filter bases (Kang and Kim, NeurIPS 2021, https://arxiv.org/abs/2006.05066)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .bank import Bank, Layer, SharedLayer, SharingError, in_float, orthogonal_
from .least_squares import fit_basis, leading_directions, metrics
from .normalised_product import normalised_product


class BasisLayer(SharedLayer):
    """A layer that combines the responses to its own filters and to the shared ones.

    Let B be its U own filters stacked on the S shared ones. A conv computes ``coefficients . BN(B * x)``: a
    convolution, a batch norm of its own and a 1x1 convolution, with no non-linearity between. In eval mode, with the
    batch norm as ``r -> scale r + shift``, this is the conv with kernel ``(coefficients scale) . B`` and bias
    ``coefficients . shift``. A linear has no batch norm.
    """

    norm: Any  # _BatchNorm, or the identity

    def __init__(self, layer: Layer, bank: FilterBasis, norm: nn.Module | None = None):
        super().__init__(layer, bank, norm)
        like: dict[str, Any] = dict(device=layer.weight.device, dtype=layer.weight.dtype)
        rank = bank.unique_rank + bank.shared_rank
        self.unique = nn.Parameter(torch.empty(bank.unique_rank, *self.shape[1:], **like))  # (U, I, k, k)
        # The kind of norm that the network itself uses here, SyncBN for example, frozen if that one is frozen.
        self.with_norm = bank.with_norm and self.is_conv
        if not self.with_norm:
            self.norm = nn.Identity()
        elif isinstance(norm, _BatchNorm):
            exact = (norm.weight if norm.affine else layer.weight).dtype  # float32 beside half weights, for example
            self.norm = type(norm)(rank, norm.eps, norm.momentum).to(like['device'], exact)
            self.norm.requires_grad_(all(p.requires_grad for p in norm.parameters()))
        else:
            self.norm = nn.BatchNorm2d(rank, **like)
        size = [1] * len(self.shape[2:])
        self.coefficients = nn.Parameter(torch.empty(self.shape[0], rank, *size, **like))  # (O, U + S, 1, 1)
        for filters in (self.unique, self.coefficients):
            if filters.numel():
                nn.init.kaiming_normal_(filters, mode='fan_out', nonlinearity='relu')

    def filters(self) -> Tensor:
        """The own filters stacked on the shared ones, (U + S, I, k, k)."""
        return torch.cat([self.unique, self.bank()])

    def responses(self, x: Tensor) -> Tensor:
        """The responses to all filters, (N, U + S, H, W) or (..., U + S)."""
        sets = self.unique, self.bank()
        if self.is_conv and self.training and all(map(len, sets)) and x[:, 0].numel() < sets[0][0].numel():
            # The responses are smaller than the filters: concatenate the responses.
            return torch.cat([self.compute(x, filters) for filters in sets], 1)
        return self.compute(x, torch.cat(sets))

    def forward(self, x: Tensor) -> Tensor:
        if self.with_norm and self.norm.training:
            return normalised_product(self.responses(x), self.norm, self.coefficients, self.bias)
        if self.plain_is_cheaper(x):
            return self.compute(x, *self.dense())
        apply = F.conv2d if self.is_conv else F.linear
        return apply(self.responses(x), *self.combination())  # (N, O, H, W) or (..., O)

    def plain_is_cheaper(self, x: Tensor) -> bool:
        """Whether it takes fewer multiply-adds to make the plain layer's weight and apply it than to apply the filters
        and then the coefficients."""
        outputs, inputs, rank = self.shape[0], self.shape[1:].numel(), self.coefficients.shape[1]
        if rank * (inputs + outputs) <= outputs * inputs:
            return False
        if torch.compiler.is_exporting():
            return True  # on large maps; a comparison of sizes would be a condition on the inputs
        positions = (x[:, 0].numel() // math.prod(self.stride)) if self.is_conv else x[..., 0].numel()
        return outputs * inputs * (rank + positions) < positions * rank * (inputs + outputs)

    def combination(self) -> tuple[Tensor, Tensor | None]:
        """What follows the filters in eval mode, with the batch norm fused: weight (O, U + S, 1, 1) or (O, U + S),
        and bias."""
        norm, bias = self.norm, self.bias
        coefficients: Tensor = self.coefficients
        if self.with_norm:
            scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)  # (U + S, ), in the norm's precision
            rows = coefficients.flatten(1).to(scale)
            shift = rows @ (norm.bias - norm.running_mean * scale)  # (O, )
            bias = (shift if bias is None else shift + bias).to(coefficients)
            coefficients = (rows * scale).view_as(coefficients).to(coefficients)
        return coefficients, bias

    @torch.no_grad()
    def renormalise(self, mean: Tensor, variance: Tensor) -> None:
        """Give the batch norm other running statistics, (U + S, ) each, with a weight and a bias by which the layer
        computes what it did."""
        norm = self.norm
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        shift = norm.bias - norm.running_mean * scale
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.weight.copy_(scale * (norm.running_var + norm.eps).sqrt())
        norm.bias.copy_(shift + norm.running_mean * scale)

    def forms(self) -> list[nn.Sequential]:
        weight, bias = self.combination()
        rank = weight.shape[1]
        if self.is_conv:
            first = nn.utils.skip_init(
                nn.Conv2d,
                self.in_channels,
                rank,
                self.kernel_size,
                self.stride,
                self.padding,
                self.dilation,
                bias=False,
            )
            second = nn.utils.skip_init(nn.Conv2d, rank, self.out_channels, 1)
        else:
            first = nn.utils.skip_init(nn.Linear, self.in_features, rank, bias=False)
            second = nn.utils.skip_init(nn.Linear, rank, self.out_features)
        first.weight = nn.Parameter(self.filters().detach())
        second.weight = nn.Parameter(weight.detach())
        second.bias = None if bias is None else nn.Parameter(bias.detach())
        return [*super().forms(), nn.Sequential(first, second)]

    def dense(self) -> tuple[Tensor, Tensor | None]:
        coefficients, bias = self.combination()
        weight = coefficients.flatten(1) @ self.filters().flatten(1)  # (O, I k k)
        return weight.view(self.shape), bias


@MODELS.register_module()
class FilterBasis(Bank):
    """A basis of filters; each conv of the group is a linear combination of it and of a few filters of its own.

    The ranks are those in the paper's names: S32U1 is ``shared_rank=32, unique_rank=1``. They are given at 64 channels
    and grow with the width of the stage. The basis is initialised orthogonally.

    Args:
        layers (Sequence[nn.Conv2d | nn.Linear]): The plain layers of the group.
        shared_rank (int): Number S of shared filters at ``base_channels`` input channels.
        unique_rank (int): Number U of each conv's own filters at ``base_channels`` input channels.
        base_channels (int): The width at which the ranks are given: 64, and 16 for the CIFAR-10 networks.
        with_norm (bool): Whether each conv has a batch norm of its own between filters and coefficients. Defaults to
            True. Without it a training step may take the multiply-adds of the plain convs, if they are fewer: the
            choice for trained networks. (False is also an ablation of the paper, whose code then removes the batch
            norm between the two convs of a block too.)

    Raises:
        SharingError: If a rank is not a whole number of filters at the width of the group, if there are more filters
            than their space has dimensions, or if the convs are grouped.
    """

    layer_class = BasisLayer
    orthogonal_start = True
    stored_as = 'filters'

    shared_rank: int
    unique_rank: int
    filters: nn.Parameter

    def __init__(
        self,
        layers: Sequence[Layer],
        shared_rank: int,
        unique_rank: int,
        base_channels: int = 64,
        with_norm: bool = True,
    ):
        super().__init__()
        self.with_norm = with_norm
        weight = layers[0].weight
        groups, width, dims = getattr(layers[0], 'groups', 1), weight.shape[1], weight[0].numel()
        if groups > 1:
            raise SharingError(
                f'FilterBasis shares only ungrouped convs, and these have groups={groups}: use TiedFilters for them.'
            )
        if not isinstance(base_channels, int) or base_channels < 1:
            raise SharingError(f'base_channels={base_channels!r} is not a number of channels: give 1 or more.')
        for name, given in dict(shared_rank=shared_rank, unique_rank=unique_rank).items():
            if not isinstance(given, int):
                raise SharingError(f'{name}={given!r} is not a number of filters: give a whole number.')
            if given < 0 or given * width % base_channels:
                raise SharingError(
                    f'{name}={given} at {base_channels} channels is {given * width / base_channels:g} '
                    f'filters at the {width} channels of a stage: give a rank that is a whole number '
                    'there.'
                )
            setattr(self, name, given * width // base_channels)
        rank = self.shared_rank + self.unique_rank
        if not 0 < rank <= dims:
            raise SharingError(
                f'shared_rank={shared_rank} and unique_rank={unique_rank} make {rank} filters at {width} '
                f'channels, where filters have {dims} dimensions: give ranks that make at least one filter and no '
                'more than that.'
            )
        filters = nn.Parameter(weight.new_empty(self.shared_rank, *weight.shape[1:]))  # (S, I, k, k)
        orthogonal_(filters)
        self.register_parameter(self.stored_as, filters)

    def generate(self) -> Tensor:
        return self.filters

    @torch.no_grad()
    def fit(self, kernels: Sequence[Tensor], moments: Sequence[Tensor] | None = None) -> None:
        """Take the leading right singular vectors of all kernels as the basis, and those of each kernel's residual
        as that conv's own filters: the best orthonormal filters for the group, then for each conv. With moments the
        basis is the best one for all convs together with their own filters, fitted in turn with the coefficients; the
        filters of a conv are orthonormal too.

        In eval mode the batch norm between filters and coefficients starts as the identity. So a network that keeps
        its batch norms in eval mode (``norm_eval=True``, the rule in mmdet) starts from these kernels; one that
        trains them starts from the same filters with their responses normalised.
        """
        self.check_kernels(kernels)
        if moments is None:
            shared, own = self._fit_weights([kernel.flatten(1) for kernel in kernels])
        else:
            found = metrics(self.layers, kernels, moments)
            shared, own = fit_basis(kernels, found, self.shared_rank, self.unique_rank)
        (parameter,) = self.parameters()
        parameter.copy_(shared.view_as(parameter))
        for layer, (unique, coefficients) in zip(self.layers, own):
            layer.unique.copy_(unique.view_as(layer.unique))
            if layer.with_norm:
                layer.norm.reset_running_stats()
                nn.init.ones_(layer.norm.weight)
                nn.init.zeros_(layer.norm.bias)
                coefficients *= (1 + layer.norm.eps) ** 0.5  # a fresh batch norm divides by it in eval mode
            layer.coefficients.copy_(coefficients.view_as(layer.coefficients))

    def _fit_weights(self, rows: list[Tensor]) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """The basis for weights, (O, I k k) each; for each its own filters, and the coefficients."""
        shared = leading_directions(torch.cat(rows), self.shared_rank)  # (S, I k k)
        own = []
        for row in rows:
            on_shared = row @ shared.T  # (O, S)
            rest = row - on_shared @ shared
            unique = leading_directions(rest, self.unique_rank)  # (U, I k k)
            own.append((unique, torch.cat([rest @ unique.T, on_shared], 1)))  # (O, U + S)
        return shared, own

    def basis(self) -> Tensor | None:
        return self.filters if self.shared_rank else None

    def own_filters(self) -> Tensor:
        return torch.stack([layer.unique for layer in self.layers])


@MODELS.register_module()
class OrthonormalFilterBasis(FilterBasis):
    """A filter basis that is orthonormal by construction: a hard constraint in place of the orthogonality loss.

    The convs get the Gram-Schmidt orthonormalisation of the parameters, by a QR decomposition. It does not depend on
    the length of the parameters: weight decay raises the step size, as before a batch norm, and does no other harm.
    (It does harm torch's own ``parametrizations.orthogonal``, whose Householder form keeps signs in the parameter and
    truncates them to whole numbers: a 1 that has decayed to 0.9999 counts as 0.) Each basis is orthonormal in itself;
    two bases of a stage need not be orthogonal to each other. It takes no part in the orthogonality loss.

    It takes the arguments of :class:`FilterBasis`.
    """

    stored_as = 'directions'  # a checkpoint of a basis that is not orthonormal must not load into this one
    directions: nn.Parameter

    def generate(self) -> Tensor:
        rows = self.directions.flatten(1)  # (S, I k k)
        q, r = torch.linalg.qr(in_float(rows).T)
        return (q * r.diagonal().sign()).T.reshape(self.directions.shape).to(rows)  # (S, I, k, k)

    def basis(self) -> None:
        return None
