"""Implicitly recurrent CNNs (Savarese and Maire, ICLR 2019, https://arxiv.org/abs/1902.09701)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from .bank import Bank, Layer, SharedLayer, SharingError
from .least_squares import fit_templates, leading_directions, metrics


def make_templates(number: int, kernel: Tensor) -> nn.Parameter:
    """Templates for a kernel, (O, I / groups, k, k), with filters as rows: (K, O, I k k). Initialised like kernels.

    (Channels-last, which PyTorch applies to all parameters of four or five dimensions, does not change them.)
    """
    templates = nn.Parameter(kernel.new_empty(number, len(kernel), kernel[0].numel()))
    for template in templates:
        nn.init.kaiming_normal_(template)
    return templates


class TemplateLayer(SharedLayer):
    """A layer whose weight is a linear combination of the templates of its group."""

    def __init__(self, layer: Layer, bank: TemplateBank, norm: nn.Module | None = None):
        super().__init__(layer, bank, norm)
        self.position = len(bank.layers) - 1
        self.coefficients = nn.Parameter(bank.start[self.position].to(layer.weight, copy=True))  # (K, )

    def dense(self) -> tuple[Tensor, Tensor | None]:
        if self.bank.generates_once:
            return self.bank()[self.position], self.bias
        # Only its own kernel, for example when blocks are recomputed.
        kernel = self.coefficients @ self.bank.templates.flatten(1)  # (O I k k, )
        return kernel.view(self.bank.shape), self.bias


@MODELS.register_module()
class TemplateBank(Bank):
    r"""Templates whose linear combinations are the kernels of the convs.

    With the templates :math:`T_k`, conv i has the kernel :math:`W_i = \sum_k \alpha_{ik} T_k`. The coefficients are
    the rows of a matrix (convs, K) that is initialised orthogonally. Train them without weight decay:
    ``optim_wrapper.paramwise_cfg=dict(custom_keys={'coefficients': dict(decay_mult=0)})``. The templates are
    initialised like kernels, from a normal distribution (Kaiming, fan in).

    Args:
        layers (Sequence[nn.Conv2d | nn.Linear]): The plain layers of the group.
        num_templates (int): Number K of templates.

    Raises:
        SharingError: If there would be less than one template.
    """

    layer_class = TemplateLayer

    def __init__(self, layers: Sequence[Layer], num_templates: int):
        super().__init__()
        if not isinstance(num_templates, int) or num_templates < 1:
            raise SharingError(f'num_templates={num_templates} makes no kernel: give 1 or more.')
        self.shape = layers[0].weight.shape
        self.templates = make_templates(num_templates, layers[0].weight)
        self.start = nn.init.orthogonal_(torch.empty(len(layers), num_templates))  # (convs, K)

    def coefficients(self) -> Tensor:
        """The coefficients of all convs, (convs, K)."""
        return torch.stack([layer.coefficients for layer in self.layers])

    def generate(self) -> tuple[Tensor, ...]:
        # One product for all convs; unbound, so that the gradients of all kernels are stacked only once.
        kernels = self.coefficients() @ self.templates.flatten(1)  # (convs, O I k k)
        return kernels.view(-1, *self.shape).unbind()

    @torch.no_grad()
    def fit(self, kernels: Sequence[Tensor], moments: Sequence[Tensor] | None = None) -> None:
        """Take the leading right singular vectors of the kernels, a row each, as templates, and the projections on
        them as coefficients: the least squares fit among all linear combinations of K templates. With moments
        templates and coefficients are fitted in turn."""
        self.check_kernels(kernels)
        rows = torch.stack([kernel.flatten() for kernel in kernels])  # (convs, O I k k)
        number = min(len(self.templates), len(rows))
        if moments is None:
            templates = leading_directions(rows, number)
            coefficients = torch.stack([templates @ row for row in rows])
        else:
            templates, coefficients = fit_templates(kernels, number, metrics(self.layers, kernels, moments))
        self.templates[: len(templates)] = templates.view(-1, *self.templates.shape[1:])
        for layer, values in zip(self.layers, coefficients):
            layer.coefficients.zero_()
            layer.coefficients[: len(templates)] = values
