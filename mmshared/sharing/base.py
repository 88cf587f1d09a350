"""The one idea: every way to share parameters is a way to write a convolution."""
from contextlib import contextmanager
from typing import Dict, Iterable, Iterator, List, Optional, Sequence, Tuple, Type

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SharingError(ValueError):
    """What the user asked for cannot be shared, or loaded into what is shared."""


class SharedConv2d(nn.Module):
    """One conv of a group, made of the group's bank and of what is its own.

    A subclass has one law to keep: :meth:`dense` returns the weight and the bias of a plain convolution, and in
    eval mode the module computes exactly that convolution. A subclass that computes it in another way (through a
    basis, say) overrides :meth:`forward` too.

    It is no ``nn.Conv2d``, so that a backbone's ``init_cfg`` for ``Conv2d`` leaves it alone, but it has the
    geometry of one under the same names.

    Args:
        conv (nn.Conv2d): The plain conv that this one stands for. Its geometry is taken over, and its bias (the
            parameter itself) where it has one.
        bank (Bank): The bank of the group.
        norm (nn.Module, optional): The batch norm that follows the conv in its network, if one does.
    """

    def __init__(self, conv: nn.Conv2d, bank: 'Bank', norm: Optional[nn.Module] = None):
        super().__init__()
        for name in ('in_channels', 'out_channels', 'kernel_size', 'stride', 'padding', 'dilation', 'groups',
                     'transposed', 'output_padding', 'padding_mode'):
            setattr(self, name, getattr(conv, name))
        self.bias = conv.bias
        if bank.convs:
            # The bank is a child of its first conv alone. The others hold a reference that nn.Module does not
            # see, so that state_dict, optimizers and EMA meet each shared tensor once.
            vars(self)['bank'] = bank
        else:
            self.bank = bank
        bank.convs.append(self)

    def dense(self) -> Tuple[Tensor, Optional[Tensor]]:
        """The plain convolution that this module equals in eval mode.

        Returns:
            tuple: The weight, of shape (out_channels, in_channels / groups, kernel height, kernel width), and the
            bias, of shape (out_channels, ), or None.
        """
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.dense()
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def fold(self) -> nn.Conv2d:
        """Make the plain ``nn.Conv2d`` that this module equals in eval mode."""
        weight, bias = self.dense()
        conv = nn.Conv2d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            bias=bias is not None,
            device=weight.device,
            dtype=weight.dtype)
        conv.weight.data.copy_(weight.detach())
        if bias is not None:
            conv.bias.data.copy_(bias.detach())
        trained = any(p.requires_grad for p in (*self.parameters(), *self.bank.parameters()))
        return conv.train(self.training).requires_grad_(trained)

    def forms(self) -> List[nn.Sequential]:
        """The chains of modules that this one equals in eval mode: :meth:`fold`, and what may be faster. Norms are
        fused into a last ``nn.Conv2d`` alone."""
        return [nn.Sequential(self.fold())]

    def extra_repr(self) -> str:
        own = 'own bank' if 'bank' in self._modules else 'bank above'
        return (f'{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, '
                f'{own}, {len(self.bank.convs)} convs share it')


class Bank(nn.Module):
    """The parameters that a group of convs has in common.

    A new method of sharing is a subclass of this and one of :class:`SharedConv2d`. The bank is registered in
    mmengine's ``MODELS`` and chosen by config; its constructor gets the convs of the group as ``convs``. What
    :meth:`generate` makes of its parameters the convs get by ``bank()``: made once in a forward pass of a shared
    backbone.

    Attributes:
        conv_class (type): The class of the convs that it makes.
        same_shape (bool): Whether the convs of a group have to be alike. Where they need not be, a group may be of one
            conv, and the first blocks of a stage share too.
        convs (list[SharedConv2d]): Its convs, in the order of the network. The first of them is its parent module.
    """

    conv_class: Type[SharedConv2d]
    same_shape = True

    def __init__(self):
        super().__init__()
        self.convs: List[SharedConv2d] = []
        self._generated: Optional[Dict[bool, Tensor]] = None

    def generate(self) -> Tensor:
        """Make what the convs of the group take from the bank: a kernel, a basis, the kernels of all of them."""
        raise NotImplementedError

    @property
    def generates_once(self) -> bool:
        """Whether what :meth:`generate` makes is kept for the other convs, as within :func:`generate_once`."""
        return self._generated is not None

    def forward(self) -> Tensor:
        generated = self._generated
        if generated is None:
            return self.generate()
        # Reentrant checkpointing runs a forward pass without gradients within one with them.
        key = torch.is_grad_enabled()
        if key not in generated:
            generated[key] = self.generate()
        return generated[key]

    def make_conv(self, conv: nn.Conv2d, norm: Optional[nn.Module] = None) -> SharedConv2d:
        """Make the conv that takes the place of ``conv``, which the batch norm ``norm`` follows."""
        return self.conv_class(conv, self, norm)

    def fit(self, kernels: Sequence[Tensor]) -> None:
        """Set the bank and its convs so that their kernels come as close to given ones as they can.

        Args:
            kernels (Sequence[Tensor]): For each of :attr:`convs` a kernel of the shape of its dense weight. Close
                is meant in the sum of squares.
        """
        raise SharingError(f'{type(self).__name__} cannot be started from the kernels of a plain network: load a '
                           'checkpoint that was shared in the same way, or train from random weights.')

    def basis(self) -> Optional[Tensor]:
        """The filters that are to be orthogonal to each other, (N, ...), or None where the method has none."""
        return None

    def own_filters(self) -> Optional[Tensor]:
        """The filters of the same space that each conv has of its own, (convs, U, ...), or None."""
        return None


@contextmanager
def generate_once(banks: Iterable[Bank]) -> Iterator[None]:
    """Within this context each bank generates once what its convs take from it; within another one, no more than that.

    The recomputation of checkpointed blocks, outside of it, generates for each conv. It is to be reentrant then, as
    ``with_cp`` is in mmdet and mmpretrain: the other kind wants the recomputation to save what the first pass did.
    """
    banks = [bank for bank in banks if bank._generated is None]
    for bank in banks:
        bank._generated = {}
    try:
        yield
    finally:
        for bank in banks:
            bank._generated = None
