"""The loops that a template bank folds into (Savarese and Maire, https://arxiv.org/abs/1902.09701)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from .bank import Bank, Layer, SharedLayer, SharingError
from .filter_basis import leading_directions
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
        self.kernels = list(kernels)
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
            self.coefficients = nn.Parameter(nn.init.orthogonal_(coefficients))

    def generate(self) -> tuple[Tensor, ...]:
        kernels: Tensor = self.templates
        if self.coefficients is not None:
            kernels = self.coefficients @ kernels.flatten(1)  # (G, O I k k)
        return kernels.view(-1, *self.shape).unbind()

    @torch.no_grad()
    def fit(self, kernels: Sequence[Tensor]) -> None:
        """For all convs of one kernel, take the best rank-one fit to their weights: the leading right singular vector
        is the direction of the kernel, and the projections on it give its size and the scales. If there are more
        kernels than templates, fit the templates to the kernels as :meth:`TemplateBank.fit` does."""
        commons = []
        for index in range(max(self.kernels) + 1):
            members = [i for i, kernel in enumerate(self.kernels) if kernel == index]
            common, scales = scaled_copies(torch.stack([kernels[i].flatten() for i in members]))
            commons.append(common)
            for i, scale in zip(members[1:], scales[1:]):
                self.layers[i].scale.copy_(scale)
        fitted = torch.stack(commons)  # (G, O I k k)
        if self.coefficients is None:
            templates = fitted
        else:
            templates = leading_directions(fitted, len(self.templates))
            self.coefficients.copy_(fitted @ templates.T)
        self.templates.copy_(templates.view_as(self.templates))


def scaled_copies(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The best rank-one fit to a matrix, (N, M): a row, (M, ), and the factors, (N, ), that scale it. The first factor
    is 1, unless the first row has almost no part in the fit."""
    (direction,) = leading_directions(rows, 1)  # (M, )
    sizes = rows @ direction  # (N, )
    least = 1e-6 * sizes.abs().max()
    unit = sizes[0] if sizes[0].abs() > least else least
    return unit * direction, sizes / unit if unit else torch.zeros_like(sizes)
