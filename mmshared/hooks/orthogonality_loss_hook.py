"""The orthogonality loss as a hook, for any detector or classifier."""

import math
from typing import NamedTuple

import torch
from mmengine.registry import HOOKS
from torch import Tensor, nn

from ..sharing import Bank, SharingError, named_banks
from ..sharing.bank import bases_by_space, in_float
from .loss_hook import BankLossHook


class Space(NamedTuple):
    """Banks of one stage whose filters have the same shape: all of them should be orthogonal to each other.

    Attributes:
        group (str): The pattern of the first bank. Spaces of one group, in all stages, share one mean of the loss.
        banks (list[Bank]): The banks.
    """

    group: str
    banks: list[Bank]


def orthogonality_spaces(model: nn.Module) -> list[Space]:
    """Group the banks of a model that have a basis into the spaces that the orthogonality loss treats together."""
    spaces = [list(space.values()) for space in bases_by_space(named_banks(model))]
    return [Space(banks[0].group, banks) for banks in spaces]


def gram_error(filters: Tensor) -> Tensor:
    r"""The squared distances of Gram matrices from the identity, :math:`\|B B^T - I\|_F^2`, summed.

    Args:
        filters (Tensor): N filters of M values each as the rows of B, (..., N, M). If N > M, the distance is
            computed from the smaller matrix: :math:`\|B B^T - I_N\|_F^2 = \|B^T B - I_M\|_F^2 + N - M`.
    """
    *batch, n, m = filters.shape
    rows = filters if n <= m else filters.mT
    # Both factors of the product have the same gradient: it is computed for one of them and counted twice.
    gram = rows @ rows.detach().mT  # (..., min(N, M), min(N, M))
    error = (gram - torch.eye(min(n, m), device=gram.device, dtype=gram.dtype)).square().sum()
    return 2 * error - error.detach() + max(n - m, 0) * math.prod(batch)


def orthogonality_loss(spaces: list[Space], include_unique: bool = False) -> Tensor:
    r"""How far the bases are from orthonormal, before weighting.

    .. math:: \sum_{groups} \frac{\sum_k \|B_k B_k^T - I\|_F^2}{\sum_k N_k^2}

    with the :math:`N_k` flattened filters of space k as the rows of :math:`B_k`. It equals the ``avg_sim`` of
    https://github.com/ssregibility/Net_RL2 (train_ilsvrc.py) for its single, double and separate bases. Computed in
    float32 or better, also under autocast; frozen banks take no part.

    Let :math:`U_i` be the own filters of conv i, and :math:`U` all of them stacked. For each space ``include_unique``
    adds (train_cifar10.py)

    .. math:: \|B_k U^T\|_F^2 + \sum_i \|U_i U_i^T - I\|_F^2

    to the numerator, and the numbers of their terms to the denominator. Own filters of different convs may be alike.

    Args:
        spaces (list[Space]): What :func:`orthogonality_spaces` returns.
        include_unique (bool): Whether the convs' own filters take part.
    """
    errors, counts = {}, {}
    for group, banks in spaces:
        trained = [bank for bank in banks if bank.basis().requires_grad]
        if trained:
            error, count = _error_of(trained, include_unique)
            errors[group] = errors.get(group, 0) + error
            counts[group] = counts.get(group, 0) + count
    total = torch.zeros(())
    for group, error in errors.items():
        total = total.to(error) + error / counts[group]
    return total


def _error_of(banks: list[Bank], include_unique: bool) -> tuple[Tensor, int]:
    """The part of a space's banks in the numerator and the denominator of their mean."""
    basis = in_float(torch.cat([bank.basis().flatten(1) for bank in banks]))  # (N, M)
    with torch.autocast(basis.device.type, enabled=False):
        error, count = gram_error(basis), len(basis) ** 2
        if include_unique:
            for bank in banks:
                own = in_float(bank.own_filters().flatten(2))  # (convs, U, M)
                error = error + (basis @ own.flatten(0, 1).T).square().sum() + gram_error(own)
                count += len(basis) * own.shape[0] * own.shape[1] + own.shape[0] * own.shape[1] ** 2
    return error, count


@HOOKS.register_module()
class OrthogonalityLossHook(BankLossHook):
    """Adds ``loss_orth`` to the losses of a model during training: see :func:`orthogonality_loss`.

    Args:
        loss_weight (float): Factor of the loss. Defaults to 10.0, the value in all of the paper's experiments (lambdaR
            in its code).
        include_unique (bool): Whether the convs' own filters take part, as in the paper's experiments on CIFAR-10.
            Defaults to False, as in all its other experiments.
    """

    name = 'loss_orth'

    def __init__(self, loss_weight: float = 10.0, include_unique: bool = False):
        super().__init__(loss_weight)
        self.include_unique = include_unique

    def find(self, model: nn.Module) -> list[Space]:
        return orthogonality_spaces(model)

    def check(self, found: list[Space]) -> str:
        banks = [bank for space in found for bank in space.banks]
        if not banks:
            raise SharingError(
                'OrthogonalityLossHook found no filter basis in the model to keep orthogonal: give the '
                'backbone a bank that has one (FilterBasis with shared_rank above 0, or TiedFilters), '
                'or take the hook out of custom_hooks.'
            )
        if self.include_unique and any(bank.own_filters() is None for bank in banks):
            raise SharingError(
                'OrthogonalityLossHook has include_unique=True, and a bank of the model gives its '
                'convs no filters of their own: leave include_unique out.'
            )
        frozen = sum(not bank.basis().requires_grad for bank in banks)
        return f'keeps {len(banks) - frozen} filter bases orthogonal, weight {self.loss_weight:g}' + (
            f' ({frozen} frozen ones are left out)' if frozen else ''
        )

    def loss(self, found: list[Space]) -> Tensor:
        return orthogonality_loss(found, self.include_unique)
