"""The orthogonality loss as a hook, for any detector or classifier."""
import math

import torch
from mmengine.registry import HOOKS
from torch import Tensor, nn

from ..sharing import Bank, SharingError, named_banks
from ..sharing.bank import bases_by_space
from .loss_hook import BankLossHook


def orthogonality_spaces(model: nn.Module) -> list[list[list[Bank]]]:
    """Sort the banks of a model by what the orthogonality loss treats together.

    Bases of one stage whose filters have the same shape are one space: their filters are to be orthogonal across
    the bases too. The spaces of all stages that begin with the same group, by its pattern, share one mean.

    Returns:
        list[list[list[Bank]]]: For each mean its spaces, for each space its banks.
    """
    means: dict[str, list[list[Bank]]] = {}
    for space in bases_by_space(named_banks(model)):
        banks = list(space.values())
        means.setdefault(banks[0].group, []).append(banks)
    return list(means.values())


def gram_error(filters: Tensor) -> Tensor:
    r"""The squared distances of Gram matrices from the identity, :math:`\|B B^T - I\|_F^2`, summed.

    Args:
        filters (Tensor): N filters of M values each as the rows of B, (..., N, M). Where N > M the distance is
            computed from the smaller matrix: :math:`\|B B^T - I_N\|_F^2 = \|B^T B - I_M\|_F^2 + N - M`.
    """
    *batch, n, m = filters.shape
    rows = filters if n <= m else filters.mT
    # Both sides of the product have the same gradient: it is computed for one of them, and counted twice.
    gram = rows @ rows.detach().mT  # (..., min(N, M), min(N, M))
    error = (gram - torch.eye(min(n, m), device=gram.device, dtype=gram.dtype)).square().sum()
    return 2 * error - error.detach() + max(n - m, 0) * math.prod(batch)


def orthogonality_loss(means: list[list[list[Bank]]], include_unique: bool = False) -> Tensor:
    r"""How far the bases are from orthonormal, before weighting.

    .. math:: \sum_{means} \frac{\sum_k \|B_k B_k^T - I\|_F^2}{\sum_k N_k^2}

    with the :math:`N_k` flattened filters of space k as the rows of :math:`B_k`. It equals the ``avg_sim`` of
    https://github.com/ssregibility/Net_RL2 (train_ilsvrc.py) for its single, double and separate bases. Computed in
    float32 or better, also under autocast; frozen banks take no part.

    With the own filters :math:`U_i` of conv i, and all of them stacked as :math:`U`, ``include_unique`` adds for each
    space (train_cifar10.py)

    .. math:: \|B_k U^T\|_F^2 + \sum_i \|U_i U_i^T - I\|_F^2

    to the numerator and the numbers of their terms to the denominator. Own filters of different convs may be alike.

    Args:
        means (list): What :func:`orthogonality_spaces` returns.
        include_unique (bool): Whether the filters that convs have of their own take part.
    """
    total = torch.zeros(())
    for spaces in means:
        error, count = 0., 0
        for banks in spaces:
            banks = [bank for bank in banks if bank.basis().requires_grad]
            if not banks:
                continue
            basis = _in_float([bank.basis().flatten(1) for bank in banks])  # (N, M)
            own = [bank.own_filters() for bank in banks] if include_unique else []
            with torch.autocast(basis.device.type, enabled=False):
                error = error + gram_error(basis)
                count += len(basis)**2
                if own:
                    unique = _in_float([filters.flatten(2) for filters in own])  # (convs, U, M)
                    error = error + (basis @ unique.flatten(0, 1).T).square().sum() + gram_error(unique)
                    count += len(basis) * unique.shape[0] * unique.shape[1] + unique.shape[0] * unique.shape[1]**2
        if count:
            total = total.to(error) + error / count
    return total


def _in_float(tensors: list[Tensor]) -> Tensor:
    """The tensors stacked, in float32 where they are of half precision."""
    joined = torch.cat(tensors)
    return joined.float() if joined.dtype in (torch.half, torch.bfloat16) else joined


@HOOKS.register_module()
class OrthogonalityLossHook(BankLossHook):
    """Adds ``loss_orth`` to the losses of a model while it trains: see :func:`orthogonality_loss`.

    Args:
        loss_weight (float): Factor of the loss. Defaults to 10.0, the value of all of the paper's experiments (lambdaR
            in its code).
        include_unique (bool): Whether the filters that convs have of their own take part, as in the paper's
            experiments on CIFAR-10. Defaults to False, as in all of its others.
    """

    name = 'loss_orth'

    def __init__(self, loss_weight: float = 10.0, include_unique: bool = False):
        super().__init__(loss_weight)
        self.include_unique = include_unique

    def find(self, model: nn.Module) -> list[list[list[Bank]]]:
        return orthogonality_spaces(model)

    def check(self, found: list[list[list[Bank]]]) -> str:
        banks = [bank for spaces in found for space in spaces for bank in space]
        if not banks:
            raise SharingError('OrthogonalityLossHook found no filter basis in the model to keep orthogonal: give the '
                               'backbone a bank that has one (FilterBasis with shared_rank above 0, or TiedFilters), '
                               'or take the hook out of custom_hooks.')
        if self.include_unique and any(bank.own_filters() is None for bank in banks):
            raise SharingError('OrthogonalityLossHook has include_unique=True, and a bank of the model gives its '
                               'convs no filters of their own: leave include_unique out.')
        frozen = sum(not bank.basis().requires_grad for bank in banks)
        return (f'keeps {len(banks) - frozen} filter bases orthogonal, weight {self.loss_weight:g}'
                + (f' ({frozen} frozen ones are left out)' if frozen else ''))

    def loss(self, found: list[list[list[Bank]]]) -> Tensor:
        return orthogonality_loss(found, self.include_unique)
