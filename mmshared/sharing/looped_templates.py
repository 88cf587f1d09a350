"""The loops that a template bank folds into (Savarese and Maire, https://arxiv.org/abs/1902.09701)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from .bank import Bank, Layer, SharedLayer, SharingError, orthogonal_
from .least_squares import Metric, fit_templates, leading_directions, metrics, weighted_sum
from .template_bank import make_templates


class LoopedLayer(SharedLayer):
    """A conv that runs one of the kernels of its group.

    The first conv of a kernel runs it unchanged. Each later one is another pass of the loop and multiplies the kernel
    by its own ``scale``.
    """

    def __init__(self, layer: Layer, bank: LoopedTemplates, norm: nn.Module | None = None):
        super().__init__(layer, bank, norm)
        position = len(bank.layers) - 1
        self.kernel = bank.kernels[position]
        first = self.kernel not in bank.kernels[:position]
        self.scale = None if first else nn.Parameter(layer.weight.new_ones(()))

    def dense(self) -> tuple[Tensor, Tensor | None]:
        kernel = self.bank()[self.kernel]
        return kernel if self.scale is None else self.scale * kernel, self.bias


@MODELS.register_module()
class LoopedTemplates(Bank):
    r"""Kernels that the convs of a group run repeatedly: a template bank whose similar layers are merged.

    Conv i has the kernel :math:`W_i = s_i K_{g(i)}`, with :math:`s_i = 1` for the first conv of each kernel. The
    kernels are the templates themselves or, if there are more kernels than templates, linear combinations
    :math:`K_g = \sum_k \alpha_{gk} T_k`. Train scales and coefficients without weight decay, like those of
    :class:`TemplateBank`.

    Args:
        layers (Sequence[nn.Conv2d | nn.Linear]): The plain layers of the group.
        kernels (Sequence[int]): The number of each conv's kernel, from 0: ``[0, 1, 0, 1, 0, 1]`` is a loop over
            two convs that runs three times.
        num_templates (int): Number K of templates; never more are made than there are kernels.

    Raises:
        SharingError: If ``kernels`` does not have one number for each conv, if the numbers do not run from 0 without
            a gap, or if there would be less than one template.
    """

    layer_class = LoopedLayer

    def __init__(self, layers: Sequence[Layer], kernels: Sequence[int], num_templates: int):
        super().__init__()
        self.kernels = list(kernels) if isinstance(kernels, Sequence) else [kernels]
        count = len(set(self.kernels))
        if len(self.kernels) != len(layers) or set(self.kernels) != set(range(count)):
            raise SharingError(
                f'kernels={self.kernels} is not a list of kernels for a group of {len(layers)} convs: give '
                'each conv the number of its kernel, and number the kernels from 0.'
            )
        if not isinstance(num_templates, int) or num_templates < 1:
            raise SharingError(f'num_templates={num_templates} makes no kernel: give 1 or more.')
        self.shape = layers[0].weight.shape
        self.templates = make_templates(min(num_templates, count), layers[0].weight)
        self.coefficients = None
        if num_templates < count:
            coefficients = self.templates.new_empty(count, num_templates)  # (G, K)
            self.coefficients = nn.Parameter(orthogonal_(coefficients))

    def generate(self) -> tuple[Tensor, ...]:
        kernels: Tensor = self.templates
        if self.coefficients is not None:
            kernels = self.coefficients @ kernels.flatten(1)  # (G, O I k k)
        return kernels.view(-1, *self.shape).unbind()

    @torch.no_grad()
    def fit(self, kernels: Sequence[Tensor], moments: Sequence[Tensor] | None = None) -> None:
        """For all convs of one kernel, take the best rank-one fit to their weights: the leading right singular vector
        is the direction of the kernel, and the projections on it give its size and the scales. If there are more
        kernels than templates, fit the templates to the kernels as :meth:`TemplateBank.fit` does."""
        self.check_kernels(kernels)
        found = None if moments is None else metrics(self.layers, kernels, moments)
        commons, weights, sizes = [], [], []
        for index in range(max(self.kernels) + 1):
            members = [i for i, kernel in enumerate(self.kernels) if kernel == index]
            theirs = None if found is None else [found[i] for i in members]
            common, scales = scaled_copies([kernels[i] for i in members], theirs)
            commons.append(common)
            sizes.append(scales.norm())
            if theirs is not None:
                weights.append(weighted_sum(theirs, scales.square()))
            for i, scale in zip(members[1:], scales[1:]):
                self.layers[i].scale.copy_(scale)
        templates = fitted = torch.stack(commons).flatten(1)  # (G, O I k k)
        if self.coefficients is not None:
            if found is None:
                weighted = torch.stack(sizes)[:, None] * fitted  # a kernel counts as often as it runs
                templates = leading_directions(weighted, len(self.templates))
                coefficients = fitted @ templates.T
            else:
                templates, coefficients = fit_templates(commons, len(self.templates), weights)
            self.coefficients.copy_(coefficients)
        self.templates.copy_(templates.view_as(self.templates))


def scaled_copies(kernels: Sequence[Tensor], found: Sequence[Metric] | None) -> tuple[Tensor, Tensor]:
    """The best fit to kernels by copies of one at different scales: the kernel, and the scales, (N, ). The first scale
    is 1, unless the first kernel has almost no part in the fit."""
    if found is None:
        rows = torch.stack([kernel.flatten() for kernel in kernels])
        (direction,) = leading_directions(rows, 1)
        sizes = rows @ direction  # (N, )
    else:
        (direction,), sizes = fit_templates(kernels, 1, found)
        sizes = sizes[:, 0]
    least = 1e-6 * sizes.abs().max()
    unit = sizes[0] if sizes[0].abs() > least else least
    return unit * direction.view_as(kernels[0]), sizes / unit if unit else torch.zeros_like(sizes)
