"""Training only some parameters of a model, by config."""

from collections.abc import Sequence

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS

from ..sharing import SharingError


@HOOKS.register_module()
class TrainOnlyHook(Hook):
    """Freezes all except some parameters of a model when training starts. Batch norms still update their statistics.

    With several processes the config must have ``find_unused_parameters=True``.

    Args:
        keys (Sequence[str]): Parts of names, as in ``custom_keys`` of ``paramwise_cfg``: the parameters whose names
            contain one of them are trained.
    """

    def __init__(self, keys: Sequence[str]):
        if isinstance(keys, str) or not keys:
            raise SharingError(
                f'keys={keys!r} is not a list of parts of names: write for example keys=[{keys or "bn"!r}].'
            )
        self.keys = keys

    def before_train(self, runner) -> None:
        if is_model_wrapper(runner.model) and not getattr(runner.model, 'find_unused_parameters', False):
            raise SharingError(
                'TrainOnlyHook freezes parameters that the processes expect gradients of: set '
                'find_unused_parameters=True in the config.'
            )
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        names = [name for name, _ in model.named_parameters()]
        for key in self.keys:
            if not any(key in name for name in names):
                raise SharingError(
                    f'TrainOnlyHook is to train {key!r}, and no parameter of the model has that in its '
                    f'name: names are like {names[0]}.'
                )
        trained = 0
        for name, parameter in model.named_parameters():
            if any(key in name for key in self.keys):
                trained += parameter.numel() * parameter.requires_grad
            else:
                parameter.requires_grad_(False)
        total = sum(parameter.numel() for parameter in model.parameters())
        print_log(f'{trained:,} of {total:,} parameters are trained', logger='current')
