"""Losses added to those of a model as hooks, for any detector or classifier."""

from collections.abc import Callable
from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..sharing import SharingError


class LossHook(Hook):
    """Adds a loss to the losses of a model during training.

    It hooks the forward of the model itself, inside any wrapper, so that the wrapper reduces its gradients and
    mmengine sums, scales, accumulates and logs it like every other loss.

    Args:
        loss_weight (float): Factor of the loss.
    """

    #: Its name among the losses.
    name: str

    def __init__(self, loss_weight: float):
        if not loss_weight >= 0:
            raise SharingError(f'{type(self).__name__} has loss_weight={loss_weight}: give a factor of 0 or more.')
        self.loss_weight = loss_weight

    def forward_loss(self, model: nn.Module) -> Callable[[nn.Module, tuple, dict], Tensor]:
        """Prepare the loss of a model when training starts.

        Returns:
            Callable: The loss before weighting, from the model that ran forward (this one or a copy of it) and the
            arguments of its forward.

        Raises:
            SharingError: If the loss cannot be computed for this model.
        """
        raise NotImplementedError

    def before_train(self, runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self._handles: list[RemovableHandle] = []
        loss = self.forward_loss(model)

        def add_loss(module, args, kwargs, output):
            if kwargs.get('mode') == 'loss':
                output[self.name] = self.loss_weight * loss(module, args, kwargs)
            return output

        self._handles.append(model.register_forward_hook(add_loss, with_kwargs=True))

    def after_train(self, runner) -> None:
        for handle in self._handles:
            handle.remove()


class BankLossHook(LossHook):
    """Adds a loss on the banks to the losses of a model during training."""

    def find(self, model: nn.Module) -> Any:
        """Find what the loss needs in a model."""
        raise NotImplementedError

    def check(self, found: Any) -> str:
        """Raise a :class:`SharingError` if the loss cannot be computed from this. Returns a text for the log."""
        raise NotImplementedError

    def loss(self, found: Any) -> Tensor:
        """The loss before weighting."""
        raise NotImplementedError

    def forward_loss(self, model: nn.Module) -> Callable[[nn.Module, tuple, dict], Tensor]:
        found = self.find(model)
        print_log(f'{self.name} {self.check(found)}', logger='current')
        # A copy of the model has this hook too.
        return lambda module, args, kwargs: self.loss(found if module is model else self.find(module))
