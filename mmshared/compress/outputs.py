"""The outputs of a network before any post-processing, and how much they differ from those of another one."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..engine.build import has_softmax, is_detector, tensors_in
from ..sharing import SharingError

# Of each kind of output for a batch, so many values are compared.
_VALUES = 2**18
# Of each image's proposals, so many are given to the second stage, the best first.
_PROPOSALS = 100


class Outputs(NamedTuple):
    """The outputs of a network for a batch.

    Attributes:
        kinds (list[Tensor]): The logits of a classifier's softmax, (N, classes). Of other networks, the values of each
            kind of output (scores, boxes, masks), (values, ).
        chosen (list): The proposals or queries that the network chose among its own outputs on the way.
    """

    kinds: list[Tensor]
    chosen: list[Any]


def check_outputs(model: Any) -> None:
    """Raise a :class:`SharingError` if the outputs of a network cannot be compared."""
    if _has_rpn(model) and type(model.rpn_head).forward is nn.Module.forward:
        raise SharingError(
            f'{type(model.rpn_head).__name__} proposes in several stages: the costs of sharing cannot be measured on '
            'the outputs of such a network.'
        )


@torch.no_grad()
def outputs_of(model: Any, batch: Any, chosen: list[Any] | None = None) -> Outputs:
    """The outputs of a network for a batch: those of mode ``'tensor'``, after those of the RPN if it has one.

    Args:
        model (BaseModel): The network, in eval mode.
        batch (dict | list | tuple): A batch as a data loader gives it.
        chosen (list, optional): The proposals or queries to use, those of an earlier call. By default, the network
            chooses them itself.
    """
    data = model.data_preprocessor(batch, False)
    inputs = data if isinstance(data, dict) else dict(zip(('inputs', 'data_samples'), data))
    choices = _Proposals(model.rpn_head, chosen) if _has_rpn(model) else _TopK(chosen)
    with choices:
        output = model(**inputs, mode='tensor')
    kinds = [*_kinds(choices.outputs), *_kinds(output)]
    is_logits = len(kinds) == 1 and [each.dim() for each in kinds[0]] == [2] and kinds[0][0].shape[1] > 1
    is_logits = is_logits and has_softmax(model) and not is_detector(model)
    return Outputs([kinds[0][0]] if is_logits else [_drawn(kind) for kind in kinds], choices.chosen)


def difference(found: Outputs, plain: Outputs) -> Tensor:
    """How much outputs differ from those of the plain network, for each kind as a fraction, (kinds, 2): the divergence
    KL(plain || found) summed over the images, and their number; or the squared error, and the squared deviation of the
    plain outputs from their mean. Fractions of several batches are added numerator to numerator."""
    return torch.stack([_fraction(*pair) for pair in zip(found.kinds, plain.kinds)])


def _fraction(found: Tensor, plain: Tensor) -> Tensor:
    found, plain = found.double(), plain.double()
    if plain.dim() == 2:
        logs = plain.log_softmax(1)
        return torch.stack([(logs.exp() * (logs - found.log_softmax(1))).sum(), logs.new_tensor(len(logs))])
    return torch.stack([(found - plain).square().sum(), (plain - plain.mean()).square().sum()])


def _kinds(output: Any) -> list[list[Tensor]]:
    """The tensors of each kind of output. (A dense head returns a list of scores, a list of boxes and so on, each with
    a tensor for every level.)"""
    while isinstance(output, (tuple, list)) and len(output) == 1:
        output = output[0]
    parts = output.values() if isinstance(output, dict) else output if isinstance(output, (tuple, list)) else [output]
    found = map(tensors_in, parts)
    return [[each for each in kind if each.is_floating_point()] for kind in found if kind]


def _drawn(tensors: list[Tensor]) -> Tensor:
    """Values of tensors, (values, ): all of them, or some at random, the same for the same sizes."""
    values = torch.cat([each.flatten() for each in tensors])
    if len(values) > _VALUES:
        drawn = torch.randint(len(values), (_VALUES,), generator=torch.Generator().manual_seed(0))
        values = values[drawn.to(values.device)]
    return values


def _has_rpn(model: nn.Module) -> bool:
    """Whether a model is a two-stage detector with a dense head as the first stage."""
    if not is_detector(model) or not getattr(model, 'with_rpn', False):
        return False
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead

    return isinstance(model.rpn_head, BaseDenseHead)


class _Proposals:
    """Within this context an RPN proposes what it is told, and its outputs are kept.

    Args:
        head (nn.Module): The RPN's head.
        given (list, optional): The proposals of each image. By default, its own best ones.

    Attributes:
        chosen (list): The proposals that it made.
        outputs (tuple): Its outputs.
    """

    def __init__(self, head: Any, given: list[Any] | None):
        self.head, self.given = head, given
        self.chosen: list[Any] = []
        self.outputs: Any = ()

    def __enter__(self) -> None:
        self.head.predict = self.predict

    def __exit__(self, *error: object) -> None:
        del self.head.predict  # that of the class is there again

    def predict(self, features: Any, *args: Any, **kwargs: Any) -> list[Any]:
        self.outputs = self.head(features)
        if self.given is None:
            proposals = type(self.head).predict(self.head, features, *args, **kwargs)
            self.chosen = [each[:_PROPOSALS] for each in proposals]
        else:
            self.chosen = self.given
        return self.chosen


class _TopK(TorchFunctionMode):
    """Within this context ``torch.topk`` selects what it is told, as DETRs do with their queries.

    Args:
        given (list[Tensor], optional): The indices for each call. By default, those of the largest values.

    Attributes:
        chosen (list[Tensor]): The indices of each call.
    """

    outputs = ()

    def __init__(self, given: list[Tensor] | None):
        super().__init__()
        self.given = given
        self.chosen: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        if func in (torch.topk, Tensor.topk):
            if self.given is not None:
                indices = self.given[len(self.chosen)]
                dim = kwargs.get('dim', args[2] if len(args) > 2 else -1)
                found = torch.return_types.topk((args[0].gather(dim, indices), indices))
            self.chosen.append(found.indices)
        return found
