"""How alike the layers of template banks are, and the loss that rewards it."""

import torch
import torch.nn.functional as F
from mmengine.registry import HOOKS
from torch import Tensor, nn

from ..sharing import SharingError, TemplateBank, named_banks
from ..sharing.bank import in_float
from .loss_hook import BankLossHook


def template_banks(model: nn.Module) -> dict[str, TemplateBank]:
    """The template banks of a model, by stage and group."""
    return {name: bank for name, bank in named_banks(model).items() if isinstance(bank, TemplateBank)}


def layer_similarity(bank: TemplateBank) -> Tensor:
    r"""The layer similarity matrix: the absolute cosines of the coefficient vectors of a bank's convs.

    .. math:: S_{ij} = \frac{|\langle \alpha_i, \alpha_j \rangle|}{\|\alpha_i\| \|\alpha_j\|}

    and 0 if all coefficients of a conv are 0. Computed in float32 or better, also under autocast.

    Returns:
        Tensor: The matrix, (convs, convs).
    """
    coefficients = in_float(bank.coefficients())  # (convs, K)
    return F.cosine_similarity(coefficients[:, None], coefficients, dim=2).abs()


def recurrence_loss(banks: dict[str, TemplateBank]) -> Tensor:
    r"""How far the layers of each bank are from being the same, before weighting.

    .. math:: \sum_{banks} \sum_{i < j} (1 - S_{ij})

    with the layer similarity matrix S. Up to a constant, which makes it 0 if all layers are alike, this is the
    negative of the sum of similarities that the paper rewards. Frozen banks take no part.
    """
    total = torch.zeros(())
    for bank in banks.values():
        if any(layer.coefficients.requires_grad for layer in bank.layers):
            dissimilarity = 1 - layer_similarity(bank)
            total = total.to(dissimilarity) + dissimilarity.triu(1).sum()
    return total


@HOOKS.register_module()
class RecurrenceLossHook(BankLossHook):
    """Adds ``loss_recurrence`` to the losses of a model during training: see :func:`recurrence_loss`.

    It pulls the coefficients of a bank's layers toward one direction, so that more of the layers fold into loops.

    Args:
        loss_weight (float): Factor of the loss.
    """

    name = 'loss_recurrence'

    def find(self, model: nn.Module) -> dict[str, TemplateBank]:
        return template_banks(model)

    def check(self, found: dict[str, TemplateBank]) -> str:
        if not found:
            raise SharingError(
                'RecurrenceLossHook found no TemplateBank in the model whose layers could become '
                "alike: give the backbone bank=dict(type='TemplateBank', ...), or take the hook out of "
                'custom_hooks.'
            )
        return f'pulls the layers of {len(found)} template banks together, weight {self.loss_weight:g}'

    def loss(self, found: dict[str, TemplateBank]) -> Tensor:
        return recurrence_loss(found)
