"""Distillation as a hook: a trained network, most often the plain one, teaches the one that is trained."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from difflib import get_close_matches
from functools import partial
from unittest.mock import patch

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..engine.build import has_softmax, is_detector, load_model, tensors_in
from ..engine.config import load_config, plain_twin
from ..sharing import SharingError
from ..sharing.bank import in_float
from .loss_hook import LossHook

#: The tensors that modules return, in the order of their calls, by the modules' names.
Outputs = dict[str, list[Tensor]]


def logits_distance(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    r"""How far class probabilities are from the teacher's (Hinton et al., arXiv 1503.02531):

    .. math:: T^2 \, KL(softmax(t / T) \,\|\, softmax(s / T))

    Args:
        student (Tensor): Logits of a softmax, (N, classes, ...).
        teacher (Tensor): The teacher's, of the same shape.
        temperature (float): The temperature T.
    """
    s, t = (torch.log_softmax(each / temperature, dim=1) for each in (student, teacher))
    return temperature**2 * F.kl_div(s, t, reduction='none', log_target=True).sum(1).mean()


def features_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """One minus the correlation of a channel with the teacher's over batch and positions, averaged over the channels.

    It is half of the squared error of maps that are normalised for each channel (PKD: Cao et al., arXiv 2207.02039):
    the scale and the mean of a channel do not matter. Channels that are constant in the teacher are left out.

    Args:
        student (Tensor): Maps, (N, C, H, W), tokens, (N, L, C), or vectors, (N, C).
        teacher (Tensor): The teacher's, of the same shape.
    """
    s, t = (each.movedim(1 if each.dim() == 4 else -1, 0).flatten(1) for each in (student, teacher))  # (C, N H W)
    deviations = [each - each.mean(1, keepdim=True) for each in (s, t)]
    varies = deviations[1].norm(dim=1) > 1e-6 * t.norm(dim=1)
    distances = 1 - F.cosine_similarity(*deviations, dim=1)  # (C, )
    return (varies * distances).sum() / varies.sum().clamp(min=1)


def outputs_distance(student: Tensor, teacher: Tensor) -> Tensor:
    r"""The squared error in units of the teacher's variance, :math:`\|s - t\|^2 / \|t - \bar t\|^2`.

    It suits boxes, and logits of a sigmoid.

    Args:
        student (Tensor): Any values.
        teacher (Tensor): The teacher's, of the same shape.
    """
    variance = (teacher - teacher.mean()).square().mean()
    return (student - teacher).square().mean() / variance.clamp(min=torch.finfo(variance.dtype).eps)


DISTANCES = dict(logits=logits_distance, features=features_distance, outputs=outputs_distance)


def compared_modules(model: nn.Module) -> dict[str, str]:
    """The modules whose outputs are compared by default, each with one of :data:`DISTANCES`.

    They are the head of a classifier (logits, or outputs if it has no softmax); the neck of a detector, or its
    backbone if it has none (features), and its dense heads (outputs). RoI heads and the decoders of DETRs are left
    out: the teacher's look at other boxes.

    Raises:
        SharingError: If the model has none of these.
    """
    there = dict(model.named_children())
    if is_detector(model):
        from mmdet.models.dense_heads.base_dense_head import BaseDenseHead

        heads = {name: 'outputs' for name, child in there.items() if isinstance(child, BaseDenseHead)}
        return {'neck' if 'neck' in there else 'backbone': 'features', **heads}
    for name, kind in (
        ('head', 'logits' if has_softmax(model) else 'outputs'),
        ('neck', 'features'),
        ('backbone', 'features'),
    ):
        if name in there:
            return {name: kind}
    raise SharingError(
        f'DistillationHook has no default for a {type(model).__name__}, which has neither head nor neck nor backbone: '
        'say by modules=... what to compare.'
    )


def check_modules(modules: Iterable[str], network: nn.Module, owner: str) -> None:
    """Raise a :class:`SharingError` if a network, the ``owner``, lacks one of these modules."""
    there = dict(network.named_modules())
    for name in modules:
        if name not in there:
            near = get_close_matches(name, there) or dict(network.named_children())
            raise SharingError(
                f'DistillationHook is to compare {name!r}, and the {owner} has no such module: it has '
                f'{", ".join(near)}.'
            )


class Complete(Exception):
    """A network has returned all that is wanted of it."""


def copies_in(output: object) -> list[Tensor]:
    """Copies of the tensors in an output, which what follows may change in place."""
    return [each.clone() for each in tensors_in(output)]


def record(network: nn.Module, names: Iterable[str], seen: Outputs) -> list[RemovableHandle]:
    """Let modules of a network add the tensors that they return to ``seen``, as long as it has their names.

    Args:
        network (nn.Module): The network.
        names (Iterable[str]): The names of the modules.
        seen (dict): Where the tensors go.

    Returns:
        list: The handles of the hooks.
    """

    def recorder(name: str) -> Callable[[nn.Module, tuple, object], None]:
        def keep(module: nn.Module, args: tuple, output: object) -> None:
            if name in seen:
                seen[name] += copies_in(output)

        return keep

    return [network.get_submodule(name).register_forward_hook(recorder(name)) for name in names]


@torch.no_grad()
def teach(teacher: nn.Module, student: Outputs, args: tuple, kwargs: dict) -> Outputs:
    """The outputs of the teacher's modules for the student's batch.

    The teacher runs only until it has returned as much as the student: what follows the heads, such as the choice of
    boxes, would cost more than the network itself.

    Args:
        teacher (nn.Module): The teacher.
        student (dict): The outputs of the student's modules.
        args (tuple): The arguments of the student's forward.
        kwargs (dict): Its keyword arguments.
    """
    seen: Outputs = {name: [] for name in student}

    def recorded(name: str, forward: Callable) -> Callable:
        def run(*args: object, **kwargs: object) -> object:
            output = forward(*args, **kwargs)
            seen[name] += copies_in(output)
            if all(len(seen[each]) >= len(tensors) for each, tensors in student.items()):
                raise Complete
            return output

        return run

    with ExitStack() as stack:
        stack.enter_context(suppress(Complete))
        for name in student:
            module = teacher.get_submodule(name)
            # Not a hook: mmdet's one-stage detectors call the forward of their heads.
            stack.enter_context(patch.object(module, 'forward', recorded(name, module.forward)))
        teacher(*args, **dict(kwargs, mode='tensor'))
    return seen


def return_as_in_training(detector: nn.Module) -> None:
    """Let the dense heads of a detector in eval mode return what they return in training: other boxes than in eval
    mode in FCOS and VFNet, for example. Their norms stay in eval mode."""
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead

    for module in detector.modules():
        if isinstance(module, BaseDenseHead):
            module.training = True  # without its children


def agreeing(student: Outputs, teacher: Outputs) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """The pairs of tensors that can be compared, by module: where a module returns as many tensors in both networks,
    those that agree in shape.

    Raises:
        SharingError: If there are none at all.
    """
    pairs = {}
    for name, tensors in student.items():
        if len(tensors) == len(teacher[name]):
            found = [(s, t) for s, t in zip(tensors, teacher[name]) if s.shape == t.shape and s.is_floating_point()]
            pairs.update({name: found} if found else {})
    if not pairs:
        told = '; '.join(
            f'{name} returns {_shapes(tensors)} in the model and {_shapes(teacher[name])} in the teacher'
            for name, tensors in student.items()
        )
        raise SharingError(f'DistillationHook finds no outputs of the same shape: {told}. Name other modules.')
    return pairs


def learning(pairs: dict[str, list[tuple[Tensor, Tensor]]]) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """The pairs by which the student learns something, where anything can be learnt.

    Raises:
        SharingError: If there are none.
    """
    if not torch.is_grad_enabled():
        return pairs
    found = {name: each for name, each in pairs.items() if any(student.requires_grad for student, _ in each)}
    if not found:
        raise SharingError(
            f'By what DistillationHook compares nothing is learnt: {", ".join(pairs)} is frozen, or inside a block '
            'that is checkpointed (with_cp). Name other modules, or the whole block.'
        )
    return found


def _shapes(tensors: list[Tensor]) -> str:
    return ', '.join('x'.join(map(str, tensor.shape)) for tensor in tensors) or 'nothing'


@HOOKS.register_module()
class DistillationHook(LossHook):
    """Adds ``loss_distill`` to the losses of a model during training: how far the outputs of some of its modules are
    from those of the same modules of a teacher.

    The teacher sees the same batch, after data preprocessing, in eval mode and without gradients. It is no part of the
    model, so it is not saved, averaged or wrapped. The distances are averaged over the tensors of a module and summed
    over the modules, in float32 or better, also under autocast.

    Args:
        checkpoint (str): The checkpoint of the whole teacher.
        config (str, optional): The config of the teacher, by path or by name. Defaults to the run's own config without
            sharing.
        modules (dict[str, str], optional): How the outputs of modules are compared, by the modules' names:
            ``'logits'`` (:func:`logits_distance`), ``'features'`` (:func:`features_distance`) or ``'outputs'``
            (:func:`outputs_distance`). Defaults to :func:`compared_modules`.
        loss_weight (float): Factor of the loss. Defaults to 1.0.
        temperature (float): The temperature of logits. Defaults to 4.0.
    """

    name = 'loss_distill'

    def __init__(
        self,
        checkpoint: str,
        config: str | None = None,
        modules: dict[str, str] | None = None,
        loss_weight: float = 1.0,
        temperature: float = 4.0,
    ):
        super().__init__(loss_weight)
        if not temperature > 0:
            raise SharingError(f'DistillationHook has temperature={temperature}: give a number above 0.')
        if modules is not None and not (
            isinstance(modules, dict) and modules and all(kind in DISTANCES for kind in modules.values())
        ):
            raise SharingError(
                f'DistillationHook has modules={modules!r}: give the names of modules, each with '
                f"{', '.join(map(repr, DISTANCES))}, for example dict(neck='features')."
            )
        self.checkpoint, self.config, self.modules = checkpoint, config, modules
        self.distances = dict(DISTANCES, logits=partial(logits_distance, temperature=temperature))

    def before_train(self, runner) -> None:
        self._teacher = self.load_teacher(runner.cfg)
        super().before_train(runner)

    def after_train(self, runner) -> None:
        super().after_train(runner)
        del self._teacher

    def load_teacher(self, cfg: Config) -> nn.Module:
        """Load the teacher of a run with this config."""
        if self.config is not None:
            cfg = load_config(self.config)
        elif 'model' in cfg:
            cfg = Config(dict(model=plain_twin(cfg.model), default_scope=cfg.default_scope))
        else:
            raise SharingError('DistillationHook knows no teacher: this run has no config, so name one by config=....')
        try:
            with torch.random.fork_rng(devices=[]):  # with a teacher, the run draws the same numbers as without
                return load_model(cfg, self.checkpoint).requires_grad_(False)
        except SharingError as error:
            raise SharingError(f'DistillationHook cannot load its teacher: {error}') from None

    def forward_loss(self, model: nn.Module) -> Callable[[nn.Module, tuple, dict], Tensor]:
        modules = self.modules or compared_modules(model)
        teacher = self._teacher.to(next(model.parameters()).device)
        check_modules(modules, model, 'model')
        check_modules(modules, teacher, 'teacher')
        if is_detector(teacher):
            return_as_in_training(teacher)
        seen: Outputs = {}
        told = False

        def start(module: nn.Module, args: tuple, kwargs: dict) -> None:
            if kwargs.get('mode') == 'loss':
                seen.update({name: [] for name in modules})

        def loss(module: nn.Module, args: tuple, kwargs: dict) -> Tensor:
            nonlocal told
            student = dict(seen)
            seen.clear()  # nothing is recorded in validation, nor when a checkpointed block runs again
            pairs = learning(agreeing(student, teach(teacher, student, args, kwargs)))
            if not told:
                compared = ', '.join(f'{modules[name]} of {name} ({len(pairs[name])})' for name in pairs)
                left = ', '.join(name for name in modules if name not in pairs)
                but = f' (not {left}: other tensors in the teacher, or nothing that learns)' if left else ''
                print_log(f'{self.name} compares {compared}, weight {self.loss_weight:g}{but}', logger='current')
                told = True
            return sum(self.distance(modules[name], found) for name, found in pairs.items())

        self._handles += [*record(model, modules, seen), model.register_forward_pre_hook(start, with_kwargs=True)]
        return loss

    def distance(self, kind: str, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        """The mean distance of one kind over the pairs of tensors of a module."""
        return torch.stack([self.distances[kind](in_float(s), in_float(t)) for s, t in pairs]).mean()
