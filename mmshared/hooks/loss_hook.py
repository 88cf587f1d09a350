"""Losses on the banks of a model as hooks, for any detector or classifier."""

from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from torch import Tensor, nn

from ..sharing.bank import SharingError, check_units


class BankLossHook(Hook):
    """Adds a loss on the banks to the losses of a model during training.

    It hooks the forward of the model itself, inside any wrapper, so that the wrapper reduces its gradients and
    mmengine sums, scales, accumulates and logs it like every other loss.

    Args:
        loss_weight (float): Factor of :meth:`loss`.
    """

    #: Its name among the losses.
    name: str

    def __init__(self, loss_weight: float):
        if not loss_weight >= 0:
            raise SharingError(f'{type(self).__name__} has loss_weight={loss_weight}: give a factor of 0 or more.')
        self.loss_weight = loss_weight

    def find(self, model: nn.Module) -> Any:
        """Find what the loss needs in a model."""
        raise NotImplementedError

    def check(self, found: Any) -> str:
        """Raise a :class:`SharingError` if the loss cannot be computed from this. Returns a text for the log."""
        raise NotImplementedError

    def loss(self, found: Any) -> Tensor:
        """The loss before weighting."""
        raise NotImplementedError

    def before_train(self, runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        check_units(model)
        found = self.find(model)
        print_log(f'{self.name} {self.check(found)}', logger='current')

        def add_loss(module, args, kwargs, output):
            if kwargs.get('mode') == 'loss':
                # A copy of the model has this hook too.
                output[self.name] = self.loss_weight * self.loss(found if module is model else self.find(module))
            return output

        self._handle = model.register_forward_hook(add_loss, with_kwargs=True)

    def after_train(self, runner) -> None:
        self._handle.remove()
