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

    The first conv of a kernel runs it as it is. Each later one is a further pass of the loop, with a factor of its own
    for the kernel, its ``scale``.
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
    r"""Kernels that the convs of a group run again and again: a template bank whose similar layers have become one.

    Conv i has the kernel :math:`W_i = s_i K_{g(i)}`, with :math:`s_i = 1` for the first conv of each kernel. The
    kernels are the templates themselves, or, where there are more of them than templates, linear combinations
    :math:`K_g = \sum_k \alpha_{gk} T_k`. Scales and coefficients are to be trained without weight decay, as those of
    :class:`TemplateBank`.

    Args:
        layers (Sequence[nn.Conv2d | nn.Linear]): The plain layers of the group.
        kernels (Sequence[int]): For each conv the number of its kernel, from 0: ``[0, 1, 0, 1, 0, 1]`` is a loop over
            two convs that is run three times.
        num_templates (int): Number K of templates, of which no more are made than there are kernels.

    Raises:
        SharingError: If the kernels are not as many as the convs or not numbered from 0 without a gap, or if there is
            to be less than one template.
    """

    layer_class = LoopedLayer

    def __init__(self, layers: Sequence[Layer], kernels: Sequence[int], num_templates: int):
        super().__init__()
        self.kernels = list(kernels)
        count = len(set(self.kernels))
        if len(self.kernels) != len(layers) or set(self.kernels) != set(range(count)):
            raise SharingError(
                f'kernels={self.kernels} is no list of kernels for a group of {len(layers)} convs: give '
                'each conv the number of its kernel, and number the kernels from 0.'
            )
        if num_templates < 1:
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
        """Take, for all convs of one kernel, the best fit of rank one to their own: its leading right singular vector
        is the direction of the kernel, their projections on it are its size and the scales. If there are more
        kernels than templates, fit the templates to these as :meth:`TemplateBank.fit` does."""
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
    """The row, (M, ), and the factors, (N, ), whose products are nearest to the rows of a matrix, (N, M): its best fit
    of rank one. The first factor is 1, except where the first row has next to nothing of the others."""
    (direction,) = leading_directions(rows, 1)  # (M, )
    sizes = rows @ direction  # (N, )
    least = 1e-6 * sizes.abs().max()
    unit = sizes[0] if sizes[0].abs() > least else least
    return unit * direction, sizes / unit if unit else torch.zeros_like(sizes)
