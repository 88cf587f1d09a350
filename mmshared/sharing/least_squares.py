r"""Fits banks to the outputs of layers: least squares in the metrics that the inputs of the layers define.

If a layer whose weight is W, as a matrix of filters (O, K), gets patches x with the second moment
:math:`S = E[x x^T]`, its outputs change by :math:`E|W x - W' x|^2 = tr((W - W') S (W - W')^T)` when its weight becomes
W'. A bank is fitted to the sum of these errors over its layers, each relative to the energy of the layer's outputs,
:math:`tr(W S W^T)`.

What a bank combines is called a vector here: a filter for a basis, a whole weight for templates. A vector has the
shape (G, M, K): M filters for each of the G groups of outputs that see different inputs (as in a grouped conv).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, reduce
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .bank import SharedLayer, SharingError

#: Each direction of the inputs counts at least as much as this share of the mean: what the images lack is fitted by
#: the weights.
DAMPING = 1e-4
#: How often a basis and its coefficients are fitted in turn, and the rounds of conjugate gradients for the basis.
ALTERNATIONS, ROUNDS = 5, 4


class Metric:
    """An inner product of filters: a matrix for each group, (G, K, K), or one for all, (1, K, K)."""

    def __init__(self, matrix: Tensor):
        self.matrix = matrix

    @cached_property
    def factor(self) -> Tensor:
        """The lower triangular L with ``matrix = L L'``."""
        return torch.linalg.cholesky(self.matrix)

    @cached_property
    def inverse(self) -> Tensor:
        return torch.cholesky_inverse(self.factor)

    @property
    def mean(self) -> Tensor:
        """The mean squared norm of a unit vector."""
        return self.matrix.diagonal(dim1=1, dim2=2).mean()

    def diagonal(self) -> Metric:
        """The metric without the products of different values."""
        return Metric(torch.diag_embed(self.matrix.diagonal(dim1=1, dim2=2)))

    def apply(self, vectors: Tensor) -> Tensor:
        """``vectors matrix``."""
        return times(vectors, self.matrix)

    def divide(self, vectors: Tensor) -> Tensor:
        """``vectors matrix^-1``."""
        return times(vectors, self.inverse)

    def leading_directions(self, vectors: Tensor, rank: int) -> Tensor:
        """The orthonormal vectors, (R, G, M, K), that keep the most of the energy of vectors, (P, G, M, K)."""
        leading = leading_directions(times(vectors, self.factor).flatten(1), rank).view(-1, *vectors.shape[1:])
        return times(leading, self.factor, _over)

    def of_weight(self, weight: Tensor) -> Tensor:
        """The filters of a weight times the matrix, in the shape of the weight."""
        rows = weight.to(self.matrix).reshape(1, len(self.matrix), -1, self.matrix.shape[-1])  # (1, G, O / G, K)
        return self.apply(rows).reshape(weight.shape)

    def energy(self, weight: Tensor) -> Tensor:
        """The energy of a layer's outputs, tr(W S W') for its weight W and the second moment S of its inputs."""
        return (self.of_weight(weight) * weight).sum()


def times(vectors: Tensor, matrices: Tensor, product: Callable[[Tensor, Tensor], Tensor] = torch.matmul) -> Tensor:
    """Vectors, (P, G, M, K), times a matrix for each group, (G, K, K), or one for all, (1, K, K)."""
    if len(matrices) == 1:
        return product(vectors.reshape(-1, vectors.shape[-1]), matrices[0]).view(vectors.shape)
    rows = vectors.transpose(0, 1).flatten(1, 2)  # (G, P M, K)
    return product(rows, matrices).view(vectors.transpose(0, 1).shape).transpose(0, 1)


def _over(rows: Tensor, lower: Tensor) -> Tensor:
    """Rows times the inverse of a lower triangular matrix."""
    return torch.linalg.solve_triangular(lower, rows, upper=False, left=False)


class Target(NamedTuple):
    """Vectors of a layer, (P, G, M, K), and the metric of their errors."""

    vectors: Tensor
    metric: Metric

    def coefficients(self, basis: Tensor) -> Tensor:
        """The combinations of a basis, (R, G, M, K), that are nearest to the vectors, (P, R)."""
        applied = self.metric.apply(basis).flatten(1)  # (R, G M K)
        gram = applied @ basis.flatten(1).T  # (R, R)
        return self.vectors.flatten(1) @ applied.T @ torch.linalg.pinv(gram, hermitian=True)

    def without(self, fitted: Tensor) -> Target:
        """What other vectors leave of these."""
        return Target(self.vectors - fitted, self.metric)

    def energy(self) -> Tensor:
        """The sum of the squared norms of the vectors."""
        return (self.metric.apply(self.vectors) * self.vectors).sum()


def metrics(layers: Sequence[SharedLayer], kernels: Sequence[Tensor], moments: Sequence[Tensor]) -> list[Metric]:
    """The metric of each layer's filters, in which its weight has the norm 1.

    Args:
        layers (Sequence[SharedLayer]): The layers.
        kernels (Sequence[Tensor]): Their weights.
        moments (Sequence[Tensor]): The second moments of their inputs: see :meth:`Bank.fit`.

    Raises:
        SharingError: If the moments do not fit the layers.
    """
    if len(moments) != len(layers):
        raise SharingError(f'There are {len(moments)} moments for {len(layers)} layers: give one for each.')
    found = []
    for layer, kernel, moment in zip(layers, kernels, moments):
        matrix = as_blocks(moment, kernel, getattr(layer, 'groups', 1)).clone()
        diagonal = matrix.diagonal(dim1=1, dim2=2)
        mean = diagonal.mean().item()
        diagonal += DAMPING * mean if mean > 0 else 1.0  # a layer that got no inputs is fitted by its weight
        energy = Metric(matrix).energy(kernel).item()
        if energy > 0:
            matrix /= energy
        found.append(Metric(matrix))
    return found


def as_blocks(moment: Tensor, kernel: Tensor, groups: int = 1) -> Tensor:
    """The moment of a layer's inputs in float64, (G, K, K), or (1, K, K) if all outputs see the same inputs.

    Raises:
        SharingError: If it does not fit the layer's weight.
    """
    outputs, size = kernel.flatten(1).shape
    blocks = len(moment) if moment.dim() == 3 else 1
    if moment.shape not in ((size, size), (blocks, size, size)) or outputs % blocks or groups not in (1, blocks):
        raise SharingError(
            f'The moments of a layer with a weight of the shape {tuple(kernel.shape)} have the shape '
            f'{tuple(moment.shape)}: give {(groups, size, size) if groups > 1 else (size, size)}.'
        )
    if not moment.isfinite().all():
        raise SharingError('The moments of a layer hold numbers that are not finite: collect them again.')
    return moment.to('cpu', torch.float64).view(-1, size, size)


def output_error(
    layers: Sequence[SharedLayer], kernels: Sequence[Tensor], rests: Sequence[Tensor], moments: Sequence[Tensor]
) -> float:
    """The relative error of the outputs of layers, the root mean square over the layers.

    Args:
        layers (Sequence[SharedLayer]): The layers.
        kernels (Sequence[Tensor]): Their weights.
        rests (Sequence[Tensor]): What other weights leave of them.
        moments (Sequence[Tensor]): The second moments of their inputs: see :meth:`Bank.fit`.
    """
    shares = []
    for layer, kernel, rest, moment in zip(layers, kernels, rests, moments):
        metric = Metric(as_blocks(moment, kernel, getattr(layer, 'groups', 1)))
        energy = metric.energy(kernel).item()
        shares.append(metric.energy(rest).item() / energy if energy > 0 else 0.0)
    return max(sum(shares) / len(shares), 0.0) ** 0.5


def whole_weights(kernels: Sequence[Tensor], metrics: Sequence[Metric]) -> list[Target]:
    """The weight of each layer as one vector, (1, G, O / G, K)."""
    groups = max(len(metric.matrix) for metric in metrics)
    return [
        Target(kernel.double().reshape(1, groups, -1, kernel[0].numel()), metric)
        for kernel, metric in zip(kernels, metrics)
    ]


def filters(kernel: Tensor, metric: Metric) -> list[Target]:
    """The filters of a layer as vectors, (O / G, 1, 1, K): a target for each group of outputs."""
    blocks = kernel.double().reshape(len(metric.matrix), -1, 1, 1, kernel[0].numel())
    if len(blocks) == 1:
        return [Target(blocks[0], metric)]
    return [Target(block, Metric(matrix[None])) for block, matrix in zip(blocks, metric.matrix)]


def total(terms: Iterable[Tensor]) -> Tensor:
    return reduce(torch.add, terms)


def combine(coefficients: Tensor, basis: Tensor) -> Tensor:
    """Combinations, (P, R), of vectors, (R, G, M, K): (P, G, M, K)."""
    return torch.tensordot(coefficients, basis, 1)


def leading_directions(rows: Tensor, rank: int) -> Tensor:
    """The first ``rank`` right singular vectors of a matrix: the orthonormal rows that keep the most of its energy."""
    whole = rows.double()
    if len(whole) > whole.shape[1]:
        whole = torch.linalg.qr(whole, mode='r').R
    # The left singular vectors, several times faster than by torch.linalg.svd.
    left = torch.linalg.eigh(whole @ whole.T).eigenvectors.flip(1)[:, :rank]  # (N, R)
    leading = nn.functional.pad(left.T @ whole, (0, 0, 0, rank - left.shape[1]))
    return orthonormal(leading).to(rows)


def orthonormal(rows: Tensor) -> Tensor:
    """Orthonormal rows, of which the first n span what the first n rows of a matrix span."""
    return torch.linalg.qr(rows.T).Q.T


def conjugate_gradients(
    apply: Callable[[Tensor], Tensor], right: Tensor, precondition: Callable[[Tensor], Tensor], rounds: int = ROUNDS
) -> Tensor:
    """Solve ``apply(x) = right`` for a positive semidefinite operator, from 0, in a few rounds.

    Args:
        apply (Callable): The operator.
        right (Tensor): The right-hand side.
        precondition (Callable): An approximate inverse of the operator.
        rounds (int): The number of rounds.
    """
    x, rest = torch.zeros_like(right), right
    step = precondition(rest)
    size = first = (rest * step).sum()
    for _ in range(rounds):
        if size <= 1e-24 * first:
            break
        image = apply(step)
        length = size / (step * image).sum()
        x, rest = x + length * step, rest - length * image
        ahead = precondition(rest)
        before, size = size, (rest * ahead).sum()
        step = ahead + size / before * step
    return x


def weighted_sum(metrics: Sequence[Metric], weights: Sequence[float] | Tensor) -> Metric:
    """The sum of metrics, each times a weight."""
    return Metric(total(metric.matrix * float(weight) for metric, weight in zip(metrics, weights)))


def mean_metric(targets: Sequence[Target]) -> Metric:
    first, *others = [each.metric for each in targets]
    return weighted_sum([first, *others], [1 / len(targets)] * len(targets)) if others else first


def improved(targets: Sequence[Target], coefficients: Sequence[Tensor], basis: Tensor, mean: Metric) -> Tensor:
    """Bring vectors, (R, G, M, K), nearer to those whose combinations by given coefficients, (P, R) for each target,
    are nearest to the targets. With one coefficient or one metric for all this is exact."""
    grams = [each.T @ each for each in coefficients]  # (R, R)
    inverse = torch.linalg.pinv(
        total(gram * each.metric.mean for gram, each in zip(grams, targets)) / mean.mean, hermitian=True
    )
    right = total(
        each.metric.apply(combine(factors.T, each.vectors - combine(factors, basis)))
        for each, factors in zip(targets, coefficients)
    )
    return basis + conjugate_gradients(
        lambda x: total(combine(gram, each.metric.apply(x)) for gram, each in zip(grams, targets)),
        right,
        lambda x: combine(inverse, mean.divide(x)),
    )


class Combination(NamedTuple):
    """How a layer combines a basis and vectors of its own, (U, G, M, K): the coefficients of its targets, (P, U + R)
    each, and what is left of them."""

    own: Tensor
    coefficients: list[Tensor]
    rests: list[Target]


def combination(layer: Sequence[Target], basis: Tensor, own_rank: int = 0) -> Combination:
    """The best combination of a basis, (R, G, M, K), for the targets of a layer."""
    own = basis[:0]
    if own_rank:
        own = shared_basis([combination(layer, basis).rests], own_rank, alternations=1)
    vectors = torch.cat([own, basis])
    coefficients = [each.coefficients(vectors) for each in layer]
    rests = [each.without(combine(factors, vectors)) for each, factors in zip(layer, coefficients)]
    return Combination(own, coefficients, rests)


def shared_basis(
    layers: Sequence[Sequence[Target]], rank: int, own_rank: int = 0, alternations: int = ALTERNATIONS
) -> Tensor:
    """The vectors whose combinations are nearest to the targets of all layers, if each layer adds to them ``own_rank``
    vectors of its own.

    It starts from the closed form for the mean metric, or from that for the weights alone if it is nearer. Then
    coefficients and vectors are fitted in turn.

    Args:
        layers (Sequence[Sequence[Target]]): The targets of each layer.
        rank (int): Number R of vectors.
        own_rank (int): Number of vectors of each layer's own.
        alternations (int): How often they are fitted in turn. A single target needs none.

    Returns:
        Tensor: The vectors, (R, G, M, K).
    """
    targets = [each for layer in layers for each in layer]
    mean = mean_metric(targets)
    scaled = torch.cat([each.vectors * (each.metric.mean / mean.mean).sqrt() for each in targets])
    basis = mean.leading_directions(scaled, rank)
    if len(targets) == 1:
        return basis  # there is none better

    def left(basis: Tensor) -> Tensor:
        return total(each.energy() for layer in layers for each in combination(layer, basis, own_rank).rests)

    vectors = torch.cat([each.vectors for each in targets])
    by_weights = leading_directions(vectors.flatten(1), rank).view_as(basis)
    basis = min(basis, by_weights, key=left)
    for _ in range(alternations):
        found = [combination(layer, basis, own_rank) for layer in layers]
        rests, coefficients = [], []
        for each in found:
            for rest, factors in zip(each.rests, each.coefficients):
                shared = factors[:, len(each.own) :]
                rests.append(Target(rest.vectors + combine(shared, basis), rest.metric))
                coefficients.append(shared)
        basis = improved(rests, coefficients, basis, mean)
    return basis


def fit_basis(
    kernels: Sequence[Tensor], metrics: Sequence[Metric], rank: int, own_rank: int
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """The best basis of filters for layers that add filters of their own.

    Returns:
        tuple: The basis, (S, K), orthonormal. For each layer its own filters, (U, K), orthonormal and orthogonal to
        the basis, and the coefficients of its own filters and the basis, (O, U + S).
    """
    layers = [filters(kernel, metric) for kernel, metric in zip(kernels, metrics)]
    basis = shared_basis(layers, rank, own_rank)
    shared = orthonormal(basis.flatten(1))  # (S, K)
    fitted = []
    for layer in layers:
        own = combination(layer, basis, own_rank).own.flatten(1)
        own = orthonormal(torch.cat([shared, own]))[rank:]  # (U, K)
        vectors = torch.cat([own, shared]).view(-1, *basis.shape[1:])
        fitted.append((own, torch.cat([each.coefficients(vectors) for each in layer])))
    return shared, fitted


def fit_templates(kernels: Sequence[Tensor], rank: int, metrics: Sequence[Metric]) -> tuple[Tensor, Tensor]:
    """The best templates, orthonormal rows (K, O I k k), for weights, and the coefficients of each weight, (N, K)."""
    targets = whole_weights(kernels, metrics)
    basis = shared_basis([[each] for each in targets], rank)
    basis = orthonormal(basis.flatten(1)).view_as(basis)
    return basis.flatten(1), torch.cat([each.coefficients(basis) for each in targets])


def mean_weight(kernels: Sequence[Tensor], metrics: Sequence[Metric] | None = None) -> Tensor:
    """The weight that is nearest to all weights."""
    mean = torch.stack(list(kernels)).mean(0)
    if metrics is None:
        return mean
    targets = whole_weights(kernels, metrics)
    start = mean.double().view_as(targets[0].vectors)
    ones = [start.new_ones(1, 1)] * len(targets)
    return improved(targets, ones, start, mean_metric(targets)).view_as(mean)


def low_rank(kernel: Tensor, metric: Metric, rank: int) -> Tensor:
    """The weight of a rank, as a matrix of filters, that is nearest to a weight."""
    layer = filters(kernel, metric)
    basis = shared_basis([layer], rank, alternations=1)
    return torch.cat([combine(each.coefficients(basis), basis) for each in layer]).view(kernel.shape)
