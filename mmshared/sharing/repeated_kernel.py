"""RepeatNet: learnable repetition of kernels (Chavan et al., ICIP 2021, https://github.com/transmuteAI/RepeatNet)."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from .bank import Bank, Layer, SharedLayer, SharingError
from .kernel_transforms import KERNEL_TRANSFORMS, KernelTransform, Linear
from .least_squares import Metric, conjugate_gradients, metrics


class RepeatedLayer(SharedLayer):
    """A layer whose weight is made from a smaller one.

    A conv always has a bias, even if the plain one has none, as in the authors' code. Biases start at zero. If the
    small kernel has the shape of the layer's, it is used without a transform.
    """

    kernel: nn.Parameter | None
    added_bias: nn.Parameter | None
    transform: KernelTransform

    def __init__(self, layer: Layer, bank: RepeatedKernel, norm: nn.Module | None = None):
        super().__init__(layer, bank, norm)
        like: dict[str, Any] = dict(device=layer.weight.device, dtype=layer.weight.dtype)
        own = bank.own_shape(layer)
        self.register_parameter('kernel', None)  # (o, i, k, k)
        if own is not None:
            self.kernel = nn.Parameter(nn.init.xavier_uniform_(torch.empty(own, **like)))
        self.register_parameter('added_bias', None)  # (O, )
        if self.bias is None and self.is_conv:
            self.added_bias = nn.Parameter(torch.zeros(self.out_channels, **like))
        elif self.bias is not None and (self is not bank.layers[0] or not bank.passes):
            self.bias = nn.Parameter(torch.zeros_like(self.bias), self.bias.requires_grad)
        small, shape = self.small_kernel().shape, self.shape
        if small[2:] != shape[2:] or small[0] > shape[0] or small[1] > shape[1]:
            raise SharingError(
                f'A kernel of the shape {tuple(small)} cannot be repeated to {tuple(shape)}: it has to '
                'have the same height and width, and no more channels.'
            )
        kind, arguments = (bank.kind, bank.arguments) if small != shape else (Linear, {})
        self.transform = kind(small, shape, **arguments).to(**like)

    def small_kernel(self) -> Tensor:
        """The kernel that is repeated: the own one, the bank's, or both side by side along the inputs."""
        kernels = [kernel for kernel in (self.kernel, self.bank()) if kernel is not None]
        return kernels[0] if len(kernels) == 1 else torch.cat(kernels, 1)

    def whole_bias(self) -> Tensor | None:
        return self.added_bias if self.bias is None else self.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.transform.compute(self.compute, x, self.small_kernel(), self.whole_bias())

    def dense(self) -> tuple[Tensor, Tensor | None]:
        return self.transform(self.small_kernel()), self.whole_bias()

    def forms(self) -> list[nn.Sequential]:
        if not isinstance(self.transform, Linear) or self.transform.small == self.transform.shape:
            return super().forms()
        return [*super().forms(), nn.Sequential(CopiedLayer(self))]


class CopiedLayer(nn.Module):
    """A :class:`RepeatedLayer` of plain copies for inference: in its fast form, without a bank."""

    def __init__(self, layer: RepeatedLayer):
        super().__init__()
        self.transform = layer.transform
        self.kernel = nn.Parameter(layer.small_kernel().detach().clone())  # (o, i, k, k)
        bias = layer.whole_bias()
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())  # (O, )
        self.compute = (
            partial(F.conv2d, stride=layer.stride, padding=layer.padding, dilation=layer.dilation)
            if layer.is_conv
            else F.linear
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.transform.compute(self.compute, x, self.kernel, self.bias)


def _kind_of(transform: dict) -> tuple[type[KernelTransform], dict]:
    """The class of a transform and its arguments, from its config."""
    if not isinstance(transform, dict) or 'type' not in transform:
        raise SharingError(
            f"transform={transform!r} is not a config of a transform: write for example transform=dict(type='swish')."
        )
    arguments = dict(transform)
    name = arguments.pop('type')
    kind = KERNEL_TRANSFORMS.get(name) if isinstance(name, str) else name
    if not (inspect.isclass(kind) and issubclass(kind, KernelTransform)):
        raise SharingError(
            f'There is no kernel transform {name!r}: there are {", ".join(KERNEL_TRANSFORMS.module_dict)}.'
        )
    try:
        inspect.signature(kind).bind(None, None, **arguments)  # small, shape
    except TypeError as error:
        raise SharingError(f'The arguments of transform={transform!r} do not fit {kind.__name__}: {error}.') from None
    return kind, arguments


@MODELS.register_module()
class RepeatedKernel(Bank):
    """Small kernels, repeated to the size of their conv, each copy transformed by learned values.

    Repetition is within a layer or between layers:

    - ``'intra'``: each conv repeats a small kernel of its own, that of a network ``width`` times narrower.
    - ``'inter'``: the convs after the first repeat the kernel of the first.
    - ``'hybrid'``: they repeat it and, beside it along the inputs, a kernel of their own, of its shape or narrower if
      two do not fit.

    The convs of a group may differ in shape. A conv's own small kernel is initialised from Xavier's uniform
    distribution; the kernel of the first conv that others repeat keeps its initial values.

    Args:
        layers (Sequence[nn.Conv2d | nn.Linear]): The plain layers of the group.
        transform (dict): ``type``, the name of a transform in ``KERNEL_TRANSFORMS``: linear, swish, bireal,
            static_drop, random_bireal or one that you register, or its class. The other keys are its arguments.
        mode (str): See above. Defaults to ``'intra'``.
        width (float, optional): For ``'intra'``, how many times wider each conv is than its small kernel; channels are
            rounded down.
        input_channels (int, optional): For ``'intra'``, the number of channels that come into the repeated layers from
            the image or the stem, which are not widened: convs with this number of input channels repeat only along
            the outputs. A number that no conv of the group has changes nothing, as in stages after the first.

    Raises:
        SharingError: If the convs are grouped, if a kernel does not fit into a conv, or if the arguments do not suit
            the mode.
    """

    layer_class = RepeatedLayer
    same_shape = False
    kernel: nn.Parameter | None

    def __init__(
        self,
        layers: Sequence[Layer],
        transform: dict,
        mode: str = 'intra',
        width: float | None = None,
        input_channels: int | None = None,
    ):
        super().__init__()
        if any(getattr(layer, 'groups', 1) > 1 for layer in layers):
            raise SharingError(
                'RepeatedKernel repeats only ungrouped convs: leave grouped and depthwise convs out of groups.'
            )
        if mode not in ('intra', 'inter', 'hybrid'):
            raise SharingError(f"mode={mode!r} is not one of 'intra', 'inter' and 'hybrid'.")
        self.kind, self.arguments = _kind_of(transform)
        self.passes = mode != 'intra'
        if self.passes != (width is None) or self.passes and input_channels is not None:
            raise SharingError(
                "mode='intra' needs a width, and the other modes have neither width nor "
                'input_channels: their kernel is that of the first conv of the group.'
            )
        if not isinstance(input_channels, (int, type(None))):
            raise SharingError(f'input_channels={input_channels!r} is not a number of channels.')
        if width is not None and not (isinstance(width, (int, float)) and math.isfinite(width)):
            raise SharingError(f'width={width!r} is not a finite number: give 1 or more.')
        if width is not None and width < 1:
            raise SharingError(f'width={width} makes kernels larger than their layers: give 1 or more.')
        if self.passes and len(layers) < 2:
            raise SharingError(
                f'mode={mode!r} is repetition between layers, and a group has only one layer: name two '
                'or more by one pattern.'
            )
        self.mode, self.width, self.input_channels = mode, width, input_channels
        self.register_parameter('kernel', None)
        if self.passes:
            self.kernel = nn.Parameter(layers[0].weight.detach().clone())  # (o, i, k, k)

    def own_shape(self, layer: Layer) -> tuple[int, ...] | None:
        """The shape of a layer's own kernel, if it has one; called while the layer is made."""
        all_outputs, all_inputs, *size = layer.weight.shape
        if self.width is not None:
            fixed = all_inputs == self.input_channels
            # Round down, but not a quotient that is only a rounding error below a whole number: 33 / 1.1 is 29.999....
            inputs = all_inputs if fixed else int(all_inputs / self.width + 1e-9)
            outputs = int(all_outputs / self.width + 1e-9)
            if not inputs or not outputs:
                raise SharingError(
                    f'width={self.width} leaves nothing of a conv from {all_inputs} to '
                    f'{all_outputs} channels: give a smaller one, or input_channels='
                    f'{all_inputs} if that is the number of channels of the image.'
                )
            return outputs, inputs, *size
        outputs, inputs = self.kernel.shape[:2]  # type: ignore[union-attr]
        inputs = min(inputs, all_inputs - inputs)
        return (outputs, inputs, *size) if self.mode == 'hybrid' and len(self.layers) > 1 and inputs > 0 else None

    def generate(self) -> Tensor | None:
        return self.kernel

    @torch.no_grad()
    def fit(self, kernels: Sequence[Tensor], moments: Sequence[Tensor] | None = None) -> None:
        """Take the least squares fit of the small kernels, with signs and masks unchanged. Without a transform this
        is the mean of the tiles. With moments it is the start of conjugate gradients."""
        if not all(layer.transform.affine for layer in self.layers):
            return super().fit(kernels, moments)
        self.check_kernels(kernels)
        found = None if moments is None else metrics(self.layers, kernels, moments)
        for bias in (layer.added_bias for layer in self.layers):
            if bias is not None:
                bias.zero_()
        small = [kernel for kernel in (self.kernel, *(layer.kernel for layer in self.layers)) if kernel is not None]
        trained = [values.requires_grad for values in small]
        # The whole kernels are A s + b, with the values s of the small ones. Each row of A has one nonzero value, so
        # A'A is diagonal, its diagonal is A'A 1, and the fit to kernels w is s = A'(w - b) / A'A 1.
        whole, goal = WholeKernels(self.layers, small), _joined(kernels)
        count = sum(values.numel() for values in small)
        offset = whole(goal.new_zeros(count))  # b
        ones = whole(goal.new_ones(count)) - offset  # A 1
        fitted = whole.transposed(goal - offset) / positive(whole.transposed(ones))
        if found is not None:
            sizes = positive(whole.transposed(weighed(ones, kernels, [metric.diagonal() for metric in found])))
            rest = whole.transposed(weighed(goal - whole(fitted), kernels, found))
            fitted = fitted + conjugate_gradients(
                lambda values: whole.transposed(weighed(whole(values) - offset, kernels, found)),
                rest,
                lambda values: values / sizes,
                rounds=50,
            )
        whole(fitted)
        for values, train in zip(small, trained):
            values.requires_grad_(train)


class WholeKernels:
    """The whole kernels of layers as an affine function of the values of their small ones, A s + b."""

    def __init__(self, layers: Sequence[RepeatedLayer], small: Sequence[nn.Parameter]):
        self.layers, self.small = layers, [values.requires_grad_() for values in small]

    def kernels(self) -> Tensor:
        return _joined([layer.dense()[0] for layer in self.layers])

    @torch.no_grad()
    def __call__(self, values: Tensor) -> Tensor:
        """Give the small kernels their values, and return the whole ones."""
        for kernel, part in zip(self.small, values.split([kernel.numel() for kernel in self.small])):
            kernel.copy_(part.view_as(kernel))
        return self.kernels()

    @torch.enable_grad()
    def transposed(self, rows: Tensor) -> Tensor:
        """A' rows."""
        return _joined(torch.autograd.grad(self.kernels(), self.small, rows))


def weighed(rows: Tensor, kernels: Sequence[Tensor], metrics: Sequence[Metric]) -> Tensor:
    """The values of kernels times metrics."""
    parts = rows.split([kernel.numel() for kernel in kernels])
    return _joined([metric.of_weight(part.view(k.shape)).to(rows) for part, k, metric in zip(parts, kernels, metrics)])


def positive(diagonal: Tensor) -> Tensor:
    """A diagonal to divide by: 1 where it is 0."""
    return diagonal.where(diagonal > 0, torch.ones_like(diagonal))


def _joined(kernels: Sequence[Tensor]) -> Tensor:
    """The values of all kernels as one vector."""
    return torch.cat([kernel.flatten() for kernel in kernels])
