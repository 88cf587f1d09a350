"""Hooks that log how the shared parameters of a model change during training."""

import math

import torch
import torch.nn.functional as F
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from ..sharing import SharingError, TemplateBank, banks, named_banks
from ..sharing.bank import bases_by_space
from .recurrence_loss_hook import layer_similarity, template_banks


class BankMonitorHook(Hook):
    """Writes figures about the banks of a model to the log and to the visualizer's scalars.

    Args:
        interval (int): Number of iterations between records.
    """

    #: The prefix of the scalars' names.
    title: str

    def __init__(self, interval: int):
        if interval < 1:
            raise SharingError(f'{type(self).__name__} has interval={interval}: give a number of iterations above 0.')
        self.interval = interval

    def before_train(self, runner) -> None:
        if isinstance(runner.model, FullyShardedDataParallel):
            raise SharingError(
                f'{type(self).__name__} cannot see the parameters that FSDP shards: take it out of custom_hooks.'
            )
        self.model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if not banks(self.model):
            raise SharingError(
                f'{type(self).__name__} found no bank in the model: give the backbone one by '
                'sharing=dict(...), or take the hook out of custom_hooks.'
            )

    def write(self, runner, figures: dict[str, dict[str, float]]) -> None:
        """Write the figures of one iteration.

        Args:
            runner (Runner): The runner.
            figures (dict): The figures by name, for each bank or stage by name.
        """
        scalars = {f'{self.title}/{name}/{key}': value for name, row in figures.items() for key, value in row.items()}
        runner.visualizer.add_scalars(scalars, step=runner.iter + 1)
        told = '; '.join(
            ' '.join([name, *(f'{key} {value:.3g}' for key, value in row.items())]) for name, row in figures.items()
        )
        runner.logger.info(f'{self.title} at iteration {runner.iter + 1}: {told}')


class IterationMonitorHook(BankMonitorHook):
    """Writes figures about what it finds in a model every ``interval`` iterations."""

    #: What a model lacks if nothing is found, for the error message.
    wanted: str

    def find(self, model: nn.Module) -> dict:
        """Find what to watch in a model, by name."""
        raise NotImplementedError

    def record(self, runner, found: dict) -> None:
        """Write the figures of this iteration."""
        raise NotImplementedError

    def before_train(self, runner) -> None:
        super().before_train(runner)
        if not self.find(self.model):
            raise SharingError(f'{type(self).__name__} found no {self.wanted}: take it out of custom_hooks.')

    @torch.no_grad()
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if self.every_n_train_iters(runner, self.interval):
            self.record(runner, self.find(self.model))


def basis_spaces(model: nn.Module) -> dict[str, Tensor]:
    """The filters that should be orthogonal to each other, by stage and groups: (N, ...) for each space."""
    spaces = {}
    for space in bases_by_space(named_banks(model)):
        first, *others = space
        name = '+'.join([first, *(space[other].group for other in others)])
        spaces[name] = torch.cat([bank.basis() for bank in space.values()]).detach()
    return spaces


@torch.no_grad()
def basis_health(filters: Tensor) -> dict[str, float]:
    """How far filters are from orthonormal: for orthonormal ones the first figure is 0 and the others are 1.

    Args:
        filters (Tensor): N filters of M values each, (N, ...).

    Returns:
        dict: ``cosine``, the largest absolute cosine of the angle between two filters; ``min_norm`` and
        ``max_norm``; ``condition``, the largest over the smallest of the min(N, M) singular values. All are NaN if a
        filter is not finite.
    """
    rows = filters.flatten(1).float()  # (N, M)
    if not rows.isfinite().all():
        return dict.fromkeys(('cosine', 'min_norm', 'max_norm', 'condition'), math.nan)
    directions = F.normalize(rows)
    cosines = directions @ directions.T
    norms, values = rows.norm(dim=1), torch.linalg.svdvals(rows)
    return dict(
        cosine=cosines.fill_diagonal_(0).abs().max().item(),
        min_norm=norms.min().item(),
        max_norm=norms.max().item(),
        condition=(values[0] / values[-1]).item(),
    )


@HOOKS.register_module()
class BasisHealthHook(IterationMonitorHook):
    """Writes how far the bases of each stage are from orthonormal: see :func:`basis_health`.

    Args:
        interval (int): Number of iterations between records. Defaults to 100.
    """

    title = 'basis'
    wanted = 'filter basis in the model that could be other than orthonormal'

    def __init__(self, interval: int = 100):
        super().__init__(interval)

    def find(self, model: nn.Module) -> dict[str, Tensor]:
        return basis_spaces(model)

    def record(self, runner, found: dict[str, Tensor]) -> None:
        self.write(runner, {name: basis_health(filters) for name, filters in found.items()})


@HOOKS.register_module()
class LayerSimilarityHook(IterationMonitorHook):
    """Writes how alike the layers of each template bank are: the ``mean`` and the ``max`` of their pairwise
    similarities, and the layer similarity matrix as an image, white where layers are the same. See
    :func:`layer_similarity`.

    Args:
        interval (int): Number of iterations between records. Defaults to 500.
    """

    title = 'similarity'
    wanted = 'TemplateBank in the model'

    def __init__(self, interval: int = 500):
        super().__init__(interval)

    def find(self, model: nn.Module) -> dict[str, TemplateBank]:
        return template_banks(model)

    def record(self, runner, found: dict[str, TemplateBank]) -> None:
        figures = {}
        for name, bank in found.items():
            matrix = layer_similarity(bank).clamp(0, 1).cpu()
            pairs = matrix[tuple(torch.triu_indices(*matrix.shape, 1))]
            figures[name] = dict(mean=pairs.mean().item(), max=pairs.max().item())
            # A grey square of 16x16 pixels for each pair; no slash in the name, because it becomes a file name.
            image = (255 * matrix).byte().repeat_interleave(16, 0).repeat_interleave(16, 1)
            image = image[..., None].expand(-1, -1, 3).numpy()  # (16 layers, 16 layers, 3)
            runner.visualizer.add_image(f'{self.title}_{name}', image, runner.iter + 1)
        self.write(runner, figures)


@HOOKS.register_module()
class GradientFlowHook(BankMonitorHook):
    """Writes the mean and the largest absolute gradient of each bank's parameters.

    The gradients are those of the optimizer's step: reduced over all processes, unscaled, accumulated, and clipped
    if the optimizer wrapper clips.

    Args:
        interval (int): Number of optimizer steps between records, counted from 0 again in a resumed run. Defaults to
            10, as in the paper's code (train_gradflow in train_cifar100.py).
    """

    title = 'grad'

    def __init__(self, interval: int = 10):
        super().__init__(interval)

    def before_train(self, runner) -> None:
        super().before_train(runner)
        if not hasattr(runner.optim_wrapper, 'optimizer'):
            raise SharingError(
                'GradientFlowHook watches one optimizer, and this config has several: take it out of custom_hooks.'
            )
        if not any(list(bank.parameters()) for bank in banks(self.model)):
            raise SharingError(
                'GradientFlowHook watches what layers have in common, and here each repeats a kernel of '
                'its own: take it out of custom_hooks.'
            )
        steps = 0

        def record(optimizer, *_):
            nonlocal steps
            steps += 1
            if steps % self.interval == 0:
                # A fused optimizer unscales the gradients itself.
                scale = getattr(optimizer, 'grad_scale', None)
                self.write(runner, self.figures(1 if scale is None else scale.item()))

        self._handle = runner.optim_wrapper.optimizer.register_step_pre_hook(record)

    def figures(self, scale: float) -> dict[str, dict[str, float]]:
        """``mean`` and ``max`` of the absolute gradients of each bank, divided by a scale, without frozen ones."""
        figures = {}
        for name, bank in named_banks(self.model).items():
            grads = [p.grad.abs().flatten() for p in bank.parameters() if p.grad is not None]
            grad = torch.cat(grads) / scale if grads else torch.empty(0)
            if grad.numel():
                figures[name] = dict(mean=grad.mean().item(), max=grad.max().item())
        return figures

    def after_train(self, runner) -> None:
        self._handle.remove()
