"""The orthogonality loss as a hook, for any detector or classifier."""
from typing import Dict, List

import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from torch import Tensor, nn

from ..sharing import Bank, SharingError, shared_stages


def orthogonality_spaces(model: nn.Module) -> List[List[List[Bank]]]:
    """Sort the banks of a model by what the orthogonality loss treats together.

    Bases of one stage whose filters have the same shape are one space: their filters are to be orthogonal across
    the bases too. The spaces of all stages that begin with the same group, by its pattern, share one mean.

    Returns:
        list[list[list[Bank]]]: For each mean its spaces, for each space its banks.
    """
    means: Dict[str, List[List[Bank]]] = {}
    for banks in shared_stages(model).values():
        spaces: Dict[tuple, List[Bank]] = {}
        for pattern, bank in banks.items():
            if bank.basis() is None:
                continue
            shape = tuple(bank.basis().shape[1:])
            if shape not in spaces:
                spaces[shape] = []
                means.setdefault(pattern, []).append(spaces[shape])
            spaces[shape].append(bank)
    return list(means.values())


def gram_error(filters: Tensor) -> Tensor:
    r"""The squared distance of a Gram matrix from the identity, :math:`\|B B^T - I\|_F^2`.

    Args:
        filters (Tensor): N filters of M values each as the rows of B, (N, M). Where N > M the distance is computed
            from the smaller matrix: :math:`\|B B^T - I_N\|_F^2 = \|B^T B - I_M\|_F^2 + N - M`.
    """
    n, m = filters.shape
    rows = filters if n <= m else filters.T
    gram = rows @ rows.T  # (min(N, M), ) * 2
    return (gram - torch.eye(len(gram), device=gram.device, dtype=gram.dtype)).square().sum() + max(n - m, 0)


def orthogonality_loss(means: List[List[List[Bank]]]) -> Tensor:
    r"""How far the bases are from orthonormal, before weighting.

    .. math:: \sum_{means} \frac{\sum_k \|B_k B_k^T - I\|_F^2}{\sum_k N_k^2}

    with the :math:`N_k` flattened filters of space k as the rows of :math:`B_k`. It equals the ``avg_sim`` of
    https://github.com/ssregibility/Net_RL2 (train_ilsvrc.py) for its single, double and separate bases. Computed in
    float32 or better, also under autocast; frozen banks take no part.

    Args:
        means (list): What :func:`orthogonality_spaces` returns.
    """
    total = torch.zeros(())
    for spaces in means:
        error, count = 0., 0
        for banks in spaces:
            filters = [bank.basis().flatten(1) for bank in banks if bank.basis().requires_grad]
            if not filters:
                continue
            with torch.autocast(filters[0].device.type, enabled=False):
                rows = torch.cat([f.float() if f.dtype in (torch.half, torch.bfloat16) else f for f in filters])
                error = error + gram_error(rows)
            count += len(rows)**2
        if count:
            total = total.to(error) + error / count
    return total


@HOOKS.register_module()
class OrthogonalityLossHook(Hook):
    """Adds ``loss_orth`` to the losses of a model while it trains.

    It hooks the forward of the model itself, inside any wrapper, so that the model's wrapper reduces its gradients
    and mmengine sums, scales, accumulates and logs it like every other loss.

    Args:
        loss_weight (float): Factor of :func:`orthogonality_loss`. Defaults to 10.0, the value of all of the
            paper's experiments (lambdaR in its code).
    """

    def __init__(self, loss_weight: float = 10.0):
        self.loss_weight = loss_weight

    def before_train(self, runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        means = orthogonality_spaces(model)
        banks = [bank for spaces in means for space in spaces for bank in space]
        if not banks:
            raise SharingError('OrthogonalityLossHook found no filter basis in the model: give the backbone a bank '
                               'that has one (FilterBasis or TiedFilters), or take the hook out of custom_hooks.')
        frozen = sum(not bank.basis().requires_grad for bank in banks)
        print_log(f'loss_orth keeps {len(banks) - frozen} filter bases orthogonal, weight {self.loss_weight:g}'
                  + (f' ({frozen} frozen ones are left out)' if frozen else ''), logger='current')

        def add_loss(module, args, kwargs, output):
            if kwargs.get('mode') == 'loss':
                # A copy of the model has this hook too.
                own = means if module is model else orthogonality_spaces(module)
                output['loss_orth'] = self.loss_weight * orthogonality_loss(own)
            return output

        self._handle = model.register_forward_hook(add_loss, with_kwargs=True)

    def after_train(self, runner) -> None:
        self._handle.remove()
