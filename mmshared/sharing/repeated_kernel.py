"""RepeatNet: learnable repetition of kernels (Chavan et al., ICIP 2021, https://github.com/transmuteAI/RepeatNet)."""
import inspect
import math
from typing import List, Optional, Sequence, Tuple, Type

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS, Registry
from torch import Tensor, nn

from .base import Bank, SharedConv2d, SharingError

KERNEL_TRANSFORMS = Registry('kernel transform')


class KernelTransform(nn.Module):
    """Makes the kernel of a conv of a smaller one: tiles it, and transforms the tiles.

    As many whole tiles as there is room for are laid along outputs and inputs, and transformed. Output channels that
    remain are a copy of the first ones of that, then input channels that remain are one of the first columns; each
    copy is transformed by learned values of its own. A subclass overrides :meth:`transform`, or :meth:`forward`.

    Args:
        small (Sequence[int]): Shape of the small kernel, (o, i, k, k).
        shape (Sequence[int]): Shape of the kernel to make, (O, I, k, k).

    Attributes:
        affine (bool): Whether the kernel is an affine function of the small one, each of its values of one of them:
            what fitting to given kernels takes. False unless a subclass says so.
    """

    affine = False

    def __init__(self, small: Sequence[int], shape: Sequence[int]):
        super().__init__()
        self.small, self.shape = tuple(small), tuple(shape)
        (self.r_out, self.e_out), (self.r_in, self.e_in) = (divmod(shape[axis], small[axis]) for axis in (0, 1))
        whole, all_rows = slice(shape[1] - self.e_in), slice(None)
        # The tiles, the rows that remain, the columns that remain: places in the kernel.
        self.regions = [(slice(shape[0] - self.e_out), whole), (slice(shape[0] - self.e_out, None), whole),
                        (all_rows, slice(shape[1] - self.e_in, None))]

    def transform(self, part: Tensor, region: int) -> Tensor:
        """Transform the part of the kernel that comes to ``regions[region]``."""
        raise NotImplementedError

    def forward(self, kernel: Tensor) -> Tensor:
        o, i, *size = self.small
        tiles = kernel.view(1, o, 1, i, *size).expand(self.r_out, -1, self.r_in, -1, -1, -1)
        kernel = self.transform(tiles.reshape(self.r_out * o, self.r_in * i, *size), 0)  # (r_out o, r_in i, k, k)
        if self.e_out:
            kernel = torch.cat([kernel, self.transform(kernel[:self.e_out], 1)])  # (O, r_in i, k, k)
        if self.e_in:
            kernel = torch.cat([kernel, self.transform(kernel[:, :self.e_in], 2)], 1)  # (O, I, k, k)
        return kernel

    def conv2d(self, x: Tensor, kernel: Tensor, bias: Tensor, *geometry) -> Tensor:
        """Convolve with the kernel that the small one makes."""
        return F.conv2d(x, self(kernel), bias, *geometry)

    def extra_repr(self) -> str:
        return f'{self.r_out} x {self.r_in} tiles, {self.e_out} rows and {self.e_in} columns more'


@KERNEL_TRANSFORMS.register_module('linear')
class Linear(KernelTransform):
    """All tiles are alike.

    Such a kernel acts on the sum of its input tiles, and its output repeats: it is computed so, exactly, with the
    multiply-adds of the small kernel.
    """

    affine = True

    def transform(self, part: Tensor, region: int) -> Tensor:
        return part

    def conv2d(self, x: Tensor, kernel: Tensor, bias: Tensor, *geometry) -> Tensor:
        o, i = self.small[:2]
        if self.r_in > 1 or self.e_in:
            x = F.pad(x, (0, 0, 0, 0, 0, -x.shape[-3] % i)) if self.e_in else x
            if x.is_contiguous(memory_format=torch.channels_last):  # and stays so
                x = x.movedim(1, 3).unflatten(3, (-1, i)).sum(3, dtype=x.dtype).movedim(3, 1)  # (N, i, H, W)
            else:
                x = x.unflatten(-3, (-1, i)).sum(-4, dtype=x.dtype)  # (N, i, H, W)
        if self.r_out == 1 and not self.e_out:
            return F.conv2d(x, kernel, bias, *geometry)
        y = F.conv2d(x, kernel, None, *geometry)  # (N, o, H, W)
        y = torch.cat([y] * self.r_out + [y.narrow(-3, 0, self.e_out)] * bool(self.e_out), -3)  # (N, O, H, W)
        return y.add_(bias.to(y.dtype).view(-1, 1, 1))


@KERNEL_TRANSFORMS.register_module('swish')
class Swish(KernelTransform):
    r"""Tile W becomes :math:`\alpha W \sigma(-\beta W)`, with a pair of learned numbers for each tile, one for the
    rows and one for the columns that remain."""

    def __init__(self, small: Sequence[int], shape: Sequence[int]):
        super().__init__(small, shape)
        for name in ('alpha', 'beta'):
            values = nn.init.xavier_uniform_(torch.empty(1, self.r_out * self.r_in))
            self.register_parameter(name, nn.Parameter(values.view(self.r_out, self.r_in)))
            rest = torch.rand(bool(self.e_out) + bool(self.e_in))  # rows, columns
            self.register_parameter(f'rest_{name}', nn.Parameter(rest) if len(rest) else None)

    def transform(self, part: Tensor, region: int) -> Tensor:
        if region:
            index = region - 1 if self.e_out else 0
            return self.swish(part, self.rest_alpha[index], self.rest_beta[index])
        tiles = part.view(self.r_out, self.small[0], self.r_in, *self.small[1:])
        alpha, beta = (values.view(self.r_out, 1, self.r_in, 1, 1, 1) for values in (self.alpha, self.beta))
        return self.swish(tiles, alpha, beta).view_as(part)

    @staticmethod
    def swish(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        return alpha * x * torch.sigmoid(-beta * x)


class StraightThroughSign(torch.autograd.Function):
    """The sign, with the gradient of clamping to [-1, 1]."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sign()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        x, = ctx.saved_tensors
        return grad * (x.abs() <= 1)


def positive_mask(shape: Sequence[int]) -> nn.Parameter:
    """What signs are learned by, all of them plus at the start."""
    return nn.Parameter(torch.rand(tuple(shape)) * 0.001)


@KERNEL_TRANSFORMS.register_module('bireal')
class BiReal(KernelTransform):
    """Each value of the tiled kernel has a learned sign, that of a parameter with a straight-through gradient."""

    affine = True

    def __init__(self, small: Sequence[int], shape: Sequence[int]):
        super().__init__(small, shape)
        self.mask = positive_mask(shape)  # (O, I, k, k)

    def transform(self, part: Tensor, region: int) -> Tensor:
        return part * StraightThroughSign.apply(self.mask[self.regions[region]])


@KERNEL_TRANSFORMS.register_module('static_drop')
class StaticDrop(KernelTransform):
    """Each value of the tiled kernel is kept or zero for good, as drawn at the start.

    Args:
        small (Sequence[int]): Shape of the small kernel.
        shape (Sequence[int]): Shape of the kernel to make.
        drop_rate (float): The probability of a zero. Defaults to 0.5. What is kept is not scaled up.
    """

    affine = True

    def __init__(self, small: Sequence[int], shape: Sequence[int], drop_rate: float = 0.5):
        super().__init__(small, shape)
        if not (isinstance(drop_rate, (int, float)) and 0 <= drop_rate < 1):
            raise SharingError(f'drop_rate={drop_rate!r} is no share of a kernel to drop: give one from 0 to below 1.')
        self.register_buffer('kept', torch.rand(tuple(shape)) >= drop_rate)  # (O, I, k, k)

    def transform(self, part: Tensor, region: int) -> Tensor:
        return part * self.kept[self.regions[region]]


@KERNEL_TRANSFORMS.register_module('random_bireal')
class RandomBiReal(KernelTransform):
    """No tiles: the small kernel's filters, k x k each, then as many random ones as there is room for, which stay as
    they are drawn. Each value has a learned sign, as in :class:`BiReal`."""

    affine = True

    def __init__(self, small: Sequence[int], shape: Sequence[int]):
        super().__init__(small, shape)
        self.mask = positive_mask(shape)  # (O, I, k, k)
        random = torch.empty(shape[0] * shape[1] - small[0] * small[1], *shape[2:])
        self.register_buffer('random', nn.init.kaiming_uniform_(random, a=math.sqrt(5)))  # (O I - o i, k, k)

    def forward(self, kernel: Tensor) -> Tensor:
        filters = torch.cat([kernel.flatten(0, 1), self.random.to(kernel.dtype)])  # (O I, k, k)
        return filters.view(self.shape) * StraightThroughSign.apply(self.mask)


class RepeatedConv2d(SharedConv2d):
    """A conv whose kernel is made of a smaller one.

    It has a bias, also where the plain conv has none, as in the authors' code. Where the small kernel is as large as
    the conv's, it is that kernel, and nothing is transformed.
    """

    def __init__(self, conv: nn.Conv2d, bank: 'RepeatedKernel', norm: Optional[nn.Module] = None):
        super().__init__(conv, bank, norm)
        like = dict(device=conv.weight.device, dtype=conv.weight.dtype)
        own = bank.own_shape(conv)
        self.register_parameter('kernel', None)  # (o, i, k, k)
        if own is not None:
            self.kernel = nn.Parameter(nn.init.xavier_uniform_(torch.empty(own, **like)))
        self.register_parameter('added_bias', None)  # (O, )
        if self.bias is None:
            self.added_bias = nn.Parameter(torch.zeros(self.out_channels, **like))
        elif self is not bank.convs[0] or not bank.passes:
            nn.init.zeros_(self.bias)
        small, shape = self.small_kernel().shape, conv.weight.shape
        if small[2:] != shape[2:] or small[0] > shape[0] or small[1] > shape[1]:
            raise SharingError(f'A kernel of the shape {tuple(small)} cannot be repeated to {tuple(shape)}: it has to '
                               'be of the same height and width, and of no more channels.')
        kind, arguments = (bank.kind, bank.arguments) if small != shape else (Linear, {})
        self.transform = kind(small, shape, **arguments).to(**like)

    def small_kernel(self) -> Tensor:
        """The kernel that is repeated: the own one, the bank's, or both side by side along the inputs."""
        kernels = [kernel for kernel in (self.kernel, self.bank()) if kernel is not None]
        return kernels[0] if len(kernels) == 1 else torch.cat(kernels, 1)

    def whole_bias(self) -> Tensor:
        return self.added_bias if self.bias is None else self.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.transform.conv2d(x, self.small_kernel(), self.whole_bias(), self.stride, self.padding,
                                     self.dilation)

    def dense(self) -> Tuple[Tensor, Optional[Tensor]]:
        return self.transform(self.small_kernel()), self.whole_bias()

    def forms(self) -> List[nn.Sequential]:
        if not isinstance(self.transform, Linear) or self.transform.small == self.transform.shape:
            return super().forms()
        return [*super().forms(), nn.Sequential(CopiedConv2d(self))]


class CopiedConv2d(nn.Module):
    """A :class:`RepeatedConv2d` of plain copies for inference: in its fast form, without a bank."""

    def __init__(self, conv: RepeatedConv2d):
        super().__init__()
        self.transform = conv.transform
        self.kernel = nn.Parameter(conv.small_kernel().detach().clone())  # (o, i, k, k)
        self.bias = nn.Parameter(conv.whole_bias().detach().clone())  # (O, )
        self.geometry = conv.stride, conv.padding, conv.dilation

    def forward(self, x: Tensor) -> Tensor:
        return self.transform.conv2d(x, self.kernel, self.bias, *self.geometry)


def _kind_of(transform: dict) -> Tuple[Type[KernelTransform], dict]:
    """The class of a transform and its arguments, of its config."""
    if not isinstance(transform, dict) or 'type' not in transform:
        raise SharingError(f"transform={transform!r} is no config of a kernel transform: write "
                           "transform=dict(type='swish'), say.")
    arguments = dict(transform)
    name = arguments.pop('type')
    kind = KERNEL_TRANSFORMS.get(name) if isinstance(name, str) else name
    if not inspect.isclass(kind):
        raise SharingError(f'There is no kernel transform {name!r}: there are '
                           f'{", ".join(KERNEL_TRANSFORMS.module_dict)}.')
    try:
        inspect.signature(kind).bind(None, None, **arguments)  # small, shape
    except TypeError as error:
        raise SharingError(f'The arguments of transform={transform!r} do not fit {kind.__name__}: {error}.') from None
    return kind, arguments


@MODELS.register_module()
class RepeatedKernel(Bank):
    """Kernels that are small ones, repeated to the size of their conv, each copy transformed by learned values.

    Repetition is within a layer or between layers:

    - ``'intra'``: each conv repeats a small kernel of its own, that of a network ``width`` times narrower.
    - ``'inter'``: the convs behind the first repeat the kernel of the first.
    - ``'hybrid'``: they repeat it and, beside it along the inputs, a kernel of their own, of its shape or narrower
      where there is no room for two.

    The convs of a group may differ in shape. Small kernels of a conv's own are initialised by Xavier's uniform
    distribution; the one that is passed on keeps the values that its plain conv was made with.

    Args:
        convs (Sequence[nn.Conv2d]): The plain convs of the group.
        transform (dict): ``type``, the name of a transform in ``KERNEL_TRANSFORMS``: linear, swish, bireal,
            static_drop, random_bireal or one that you register, or its class; and its arguments.
        mode (str): See above. Defaults to ``'intra'``.
        width (float, optional): For ``'intra'``, how many times wider each conv is than its small kernel; channels are
            rounded down.
        input_channels (int, optional): For ``'intra'``, the number of channels that come into the repeated layers from
            the picture or the stem, which are not widened: convs of so many input channels repeat along the outputs
            alone. A number that no conv of the group has changes nothing, as in stages behind the first.

    Raises:
        SharingError: If the convs are grouped, if a kernel does not fit into a conv, or if the arguments do not fit
            the mode.
    """

    conv_class = RepeatedConv2d
    same_shape = False

    def __init__(self,
                 convs: Sequence[nn.Conv2d],
                 transform: dict,
                 mode: str = 'intra',
                 width: Optional[float] = None,
                 input_channels: Optional[int] = None):
        super().__init__()
        if any(conv.groups > 1 for conv in convs):
            raise SharingError('RepeatedKernel repeats ungrouped convs alone: leave grouped and depthwise convs out '
                               'of groups.')
        if mode not in ('intra', 'inter', 'hybrid'):
            raise SharingError(f"mode={mode!r} is none of 'intra', 'inter' and 'hybrid'.")
        self.kind, self.arguments = _kind_of(transform)
        self.passes = mode != 'intra'
        if self.passes != (width is None) or self.passes and input_channels is not None:
            raise SharingError("mode='intra' needs a width, and the other modes have neither width nor "
                               'input_channels: their kernel is that of the first conv of the group.')
        if not self.passes and not (isinstance(width, (int, float)) and math.isfinite(width)):
            raise SharingError(f'width={width!r} is no finite number: give 1 or more.')
        if not self.passes and width < 1:
            raise SharingError(f'width={width} makes kernels larger than their convs: give 1 or more.')
        if self.passes and len(convs) < 2:
            raise SharingError(f'mode={mode!r} is repetition between layers, and a group has one conv alone: name two '
                               'or more by one pattern.')
        self.mode, self.width, self.input_channels = mode, width, input_channels
        self.register_parameter('kernel', None)
        if self.passes:
            self.kernel = nn.Parameter(convs[0].weight.detach().clone())  # (o, i, k, k)

    def own_shape(self, conv: nn.Conv2d) -> Optional[Tuple[int, ...]]:
        """The shape of the kernel that a conv is to have of its own; called as the conv is made."""
        if not self.passes:
            fixed = conv.in_channels == self.input_channels
            # Down, but not where an exact quotient is a little below its whole number: 33 / 1.1 is 29.999....
            inputs = conv.in_channels if fixed else int(conv.in_channels / self.width + 1e-9)
            outputs = int(conv.out_channels / self.width + 1e-9)
            if not inputs or not outputs:
                raise SharingError(f'width={self.width} leaves nothing of a conv from {conv.in_channels} to '
                                   f'{conv.out_channels} channels: give a smaller one, or input_channels='
                                   f'{conv.in_channels} if that is the number of channels of the picture.')
            return outputs, inputs, *conv.kernel_size
        outputs, inputs, *size = self.kernel.shape
        inputs = min(inputs, conv.in_channels - inputs)
        return (outputs, inputs, *size) if self.mode == 'hybrid' and len(self.convs) > 1 and inputs > 0 else None

    def generate(self) -> Optional[Tensor]:
        return self.kernel

    @torch.no_grad()
    def fit(self, kernels: Sequence[Tensor]) -> None:
        """Take the least squares fit of the small kernels, with signs and masks as they are. For copies without a
        transform it is the mean of the tiles."""
        if not all(conv.transform.affine for conv in self.convs):
            return super().fit(kernels)
        small = [kernel for kernel in (self.kernel, *(conv.kernel for conv in self.convs)) if kernel is not None]
        for parameter in (*small, *(conv.added_bias for conv in self.convs if conv.added_bias is not None)):
            parameter.zero_()
        offsets = [conv.dense()[0].clone() for conv in self.convs]
        trained = [kernel.requires_grad for kernel in small]
        for kernel in small:
            kernel.fill_(1.).requires_grad_()
        with torch.enable_grad():
            ones = [conv.dense()[0] - offset for conv, offset in zip(self.convs, offsets)]
            # Of the linear part A each row has one value: A'A is diagonal, its diagonal is A'A 1.
            diagonals = torch.autograd.grad(sum(a.square().sum() / 2 for a in ones), small, retain_graph=True)
            targets = torch.autograd.grad(
                sum((a * (kernel - b)).sum() for a, kernel, b in zip(ones, kernels, offsets)), small)
        for kernel, diagonal, target, train in zip(small, diagonals, targets, trained):
            kernel.requires_grad_(train).copy_(target / diagonal.where(diagonal > 0, torch.ones_like(diagonal)))
