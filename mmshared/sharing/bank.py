"""The one idea: every way of sharing parameters is a way to parameterise an ordinary layer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: The layers that can share.
Layer: TypeAlias = nn.Conv2d | nn.Linear


class SharingError(ValueError):
    """What the user gave cannot be used: a config, a checkpoint, data, an option. The message is a sentence, which the
    tools print in place of a traceback."""


class _NoWeight(SharingError, AttributeError):
    """What code that only looks for a weight takes as its lack."""


class SharedLayer(nn.Module):
    """One layer of a group, a conv or a linear, made of the group's bank and its own parameters.

    A subclass must keep one law: :meth:`dense` returns the weight and the bias of a plain layer, and in eval mode
    the module computes exactly that layer. A subclass that computes it in another way (through a basis, for example)
    overrides :meth:`forward` too.

    It is not an ``nn.Conv2d`` or ``nn.Linear``, so the ``init_cfg`` of a library leaves it alone, but it has the same
    attributes for its geometry, and a ``weight`` to read.

    Args:
        layer (nn.Conv2d | nn.Linear): The plain layer that this one replaces. It takes over the layer's geometry and,
            if it has one, its bias (the parameter itself).
        bank (Bank): The bank of the group.
        norm (nn.Module, optional): The batch norm that seems to follow the layer. Only its kind and its settings are
            used, for a norm inside the layer.

    Attributes:
        shape (torch.Size): The shape of the weight.
        is_conv (bool): Whether it is a conv.
    """

    kind: type[Layer]
    is_conv: bool
    shape: torch.Size
    bias: Tensor | None
    bank: Any  # of the class whose layer_class this is
    # Of a conv.
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    # Of a linear.
    in_features: int
    out_features: int

    def __init__(self, layer: Layer, bank: Bank, norm: nn.Module | None = None):
        super().__init__()
        self.kind = type(layer)
        self.is_conv = isinstance(layer, nn.Conv2d)
        for name in layer.__constants__:
            setattr(self, name, getattr(layer, name))
        self.shape = layer.weight.shape
        self.bias = layer.bias
        if bank.layers:
            # The bank is a child of its first layer only. The others hold a reference that nn.Module does not see, so
            # that state_dict, optimizers and EMA meet each shared tensor once.
            vars(self)['bank'] = bank
        else:
            self.bank = bank
        bank.layers.append(self)

    def dense(self) -> tuple[Tensor, Tensor | None]:
        """The plain layer that this module equals in eval mode.

        Returns:
            tuple: The weight, of the shape :attr:`shape`: (out_channels, in_channels / groups, kernel height, kernel
            width) or (out_features, in_features). The bias, of shape (out_channels, ), or None.
        """
        raise NotImplementedError

    @property
    def weight(self) -> Tensor:
        """The weight of the plain layer, for code that reads it; made once per forward pass.

        Raises:
            SharingError: If the plain layer's bias is not :attr:`bias`: code that reads both, such as RepVGG's
                ``switch_to_deploy``, would get another layer. It is an ``AttributeError`` too: there is no such
                attribute.
        """
        try:
            weight, bias = self.bank.once(self.dense, self)
        except AttributeError as error:  # which would read as if there were no weight
            raise RuntimeError(f'{type(self).__name__}.dense() failed: {error}') from error
        if bias is not self.bias:
            raise AttributeError  # after which Python asks __getattr__
        return weight

    def __getattr__(self, name: str) -> Any:
        if name == 'weight':
            raise _NoWeight(
                'The weight of this shared layer is not all of it, since its bank adds to the bias: fold the network '
                'first (fold_layers), or take a bank that adds none, as a FilterBasis with_norm=False.'
            )
        return super().__getattr__(name)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        if name == 'weight':
            raise SharingError(
                f'The weight of a {type(self).__name__} is what dense() returns: give its parameter another name.'
            )
        super().register_parameter(name, param)

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Apply a weight and a bias to an input, with the geometry of this layer."""
        if self.is_conv:
            return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        return F.linear(x, weight, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(x, *self.dense())

    def plain(self, weight: Tensor, bias: Tensor | None) -> Layer:
        """Make a plain layer of this geometry and of the class of the replaced layer."""
        arguments = inspect.signature(self.kind).parameters
        options = {name: getattr(self, name) for name in self.kind.__constants__ if name in arguments}
        layer = nn.utils.skip_init(
            self.kind, **options, bias=bias is not None, device=weight.device, dtype=weight.dtype
        )
        layer.weight = nn.Parameter(weight.detach().clone())
        layer.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        return layer

    def fold(self) -> Layer:
        """Make the plain layer that this module equals in eval mode."""
        layer = self.plain(*self.dense())
        parameters = (*self.parameters(), *self.bank.parameters())
        layer.requires_grad_(any(p.requires_grad for p in parameters if p is not self.bias))
        if self.bias is not None and layer.bias is not None:
            layer.bias.requires_grad_(self.bias.requires_grad)
        return layer.train(self.training)

    def forms(self) -> list[nn.Sequential]:
        """The chains of modules that this one equals in eval mode: :meth:`fold`, and forms that may be faster. A norm
        is fused only if the last module is an ``nn.Conv2d``."""
        return [nn.Sequential(self.fold())]

    def extra_repr(self) -> str:
        geometry = f', stride={self.stride}' if self.is_conv else ''
        own = 'own bank' if 'bank' in self._modules else 'bank above'
        return f'{tuple(self.shape)}{geometry}, {own}, {len(self.bank.layers)} layers share it'


class Bank(nn.Module):
    """The parameters that a group of layers has in common.

    A new method of sharing is a subclass of this class and one of :class:`SharedLayer`. The bank is registered in
    mmengine's ``MODELS`` and chosen by config; its constructor gets the plain layers of the group as ``layers``. The
    shared layers call ``bank()`` to get what :meth:`generate` makes, once per forward pass of the network.

    Attributes:
        layer_class (type): The class of its layers.
        same_shape (bool): Whether the layers of a group must be alike. If not, a group may consist of one layer, and
            the first blocks of a stage share too.
        orthogonal_start (bool): Whether :meth:`basis` is a parameter that starts orthogonal, also to the bases of the
            same space in its stage that are made with it.
        layers (list[SharedLayer]): Its layers, in the order of the network. The first of them is its parent module.
        stage (str | None): The name of the stage in the network that was shared; None for a group of full names.
        group (str): The pattern of the group.
        names (tuple[str, ...]): The names of the layers in the network that was shared.
        loaded (bool): Whether a checkpoint was loaded into it.
    """

    layer_class: type[SharedLayer]
    same_shape = True
    orthogonal_start = False
    stage: str | None = None
    group = ''
    names: tuple[str, ...] = ()
    loaded = False

    def __init__(self) -> None:
        super().__init__()
        self.layers: list[Any] = []  # of layer_class
        self._made: dict[tuple, Any] | None = None
        self._pass: object = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, '_made': None, '_pass': None}  # results of a pass are not copied or pickled

    def generate(self) -> Any:
        """Make what the layers of the group take from the bank: a kernel, a basis or the kernels of all layers."""
        raise NotImplementedError

    @property
    def generates_once(self) -> bool:
        """Whether the result of :meth:`generate` is kept for the other layers, as within a forward pass."""
        # A compiler merges equal products itself and does not trace the dict.
        return self._made is not None and not torch.compiler.is_compiling()

    def once(self, make: Callable[[], Any], *key: object) -> Any:
        """The result of ``make()``, called once per key within a forward pass and every time outside of one."""
        made = self._made
        if made is None or not self.generates_once:
            return make()
        # Reentrant checkpointing nests passes with and without gradients; losses are computed outside autocast.
        key = (*key, torch.is_grad_enabled(), torch.is_autocast_enabled('cpu'), torch.is_autocast_enabled('cuda'))
        if key not in made:
            made[key] = make()
        return made[key]

    def forward(self) -> Any:
        return self.once(self.generate)

    def begin(self, owner: object) -> None:
        """Begin a forward pass of an owner, unless another owner's is running. (An interrupted one starts again.)"""
        if self._pass is None or self._pass is owner:
            self._made, self._pass = {}, owner

    def end(self, owner: object) -> None:
        """End the forward pass of an owner."""
        if self._pass is owner:
            self._made = self._pass = None

    def make_layer(self, layer: Layer, norm: nn.Module | None = None) -> SharedLayer:
        """Make the layer that replaces ``layer``, which the batch norm ``norm`` seems to follow."""
        return self.layer_class(layer, self, norm)

    def fit(self, kernels: Sequence[Tensor], moments: Sequence[Tensor] | None = None) -> None:
        """Fit the bank and its layers to given weights W, as closely as possible in the sum of squares.

        If the second moments S of the layers' inputs are given, the outputs are fitted instead of the weights: the
        fit W' minimises the sum of ``tr((W - W') S (W - W')^T) / tr(W S W^T)`` over the layers.

        Args:
            kernels (Sequence[Tensor]): For each of :attr:`layers` a weight of its shape.
            moments (Sequence[Tensor], optional): For each of them the mean of ``x x^T`` over its input patches x,
                (K, K) with K = ``weight[0].numel()``, in the order of ``weight[0].flatten()``. If the outputs are
                G groups that see different inputs, as in a grouped conv, one for each group, (G, K, K). Its unit has
                no effect.

        Raises:
            SharingError: If the bank cannot be fitted, or if the kernels or the moments do not fit the layers.
        """
        raise SharingError(
            f'{type(self).__name__} cannot be started from the weights of a plain network: load a '
            'checkpoint that was shared in the same way, or train from random weights.'
        )

    def check_kernels(self, kernels: Sequence[Tensor]) -> None:
        """Raise a :class:`SharingError` if the layers cannot be fitted to these weights."""
        shapes, wanted = [tuple(each.shape) for each in kernels], [tuple(layer.shape) for layer in self.layers]
        if shapes != wanted:
            raise SharingError(f'The kernels to fit have the shapes {shapes}: give one for each layer, {wanted}.')
        if any(kernel.is_meta or not is_finite(kernel) for kernel in kernels):
            raise SharingError('The kernels to fit hold numbers that are not finite: give finite ones.')

    def basis(self) -> Tensor | None:
        """The filters that should be orthogonal to each other, (N, ...), or None if the method has none."""
        return None

    def own_filters(self) -> Tensor | None:
        """Each layer's own filters in the same space, (layers, U, ...), or None."""
        return None


def banks(network: nn.Module) -> list[Bank]:
    """The banks of a network, in the order of its modules."""
    return [module for module in network.modules() if isinstance(module, Bank)]


def named_banks(network: nn.Module) -> dict[str, Bank]:
    """The banks of a network by names like ``backbone.layer1.conv2``: their stage and group in this network. Where a
    stage has several of one group, the others have a ``'`` at the end."""
    named = {}
    for place, bank in network.named_modules():
        if isinstance(bank, Bank):
            parts = _place_of(bank, place.removesuffix('bank').rstrip('.')), bank.group
            name = '.'.join(part for part in parts if part)
            while name in named:
                name += "'"
            named[name] = bank
    return named


def stage_in(bank: Bank, first: str) -> str | None:
    """The name of a bank's stage in a network, or in a part of one, by the name of its first layer there; None if it
    has none there."""
    return None if bank.stage is None else _place_of(bank, first)


def _place_of(bank: Bank, first: str) -> str | None:
    """The same, and for a group of full names the name of the network that was shared."""
    inside = bank.names[0] if bank.stage is None else bank.names[0].removeprefix(f'{bank.stage}.')
    return first.removesuffix(inside).rstrip('.') if f'.{first}'.endswith(f'.{inside}') else None


def stage_of(name: str, bank: Bank) -> str | None:
    """The stage of a bank in a network, by the bank's name there: see :func:`named_banks`. None for a group of full
    names."""
    return None if bank.stage is None else name.rstrip("'").removesuffix(bank.group).rstrip('.')


def bases_by_space(banks: dict[str, Bank]) -> list[dict[str, Bank]]:
    """Sort banks with a basis by the space of their filters: filters of one shape in one stage.

    Args:
        banks (dict[str, Bank]): What :func:`named_banks` returns.

    Returns:
        list[dict[str, Bank]]: The banks of each space by name.
    """
    spaces: dict[tuple, dict[str, Bank]] = {}
    for name, bank in banks.items():
        basis = bank.basis()
        if basis is not None:
            stage = stage_of(name, bank)
            spaces.setdefault((name if stage is None else stage, *basis.shape[1:]), {})[name] = bank
    return list(spaces.values())


def in_float(tensor: Tensor) -> Tensor:
    """The tensor, in float32 if it has less precision."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers of a tensor are finite."""
    if not tensor.is_floating_point() and not tensor.is_complex():
        return True
    # There is no isfinite for 8-bit formats.
    return bool((tensor.float() if tensor.dtype.itemsize == 1 else tensor).isfinite().all())


@torch.no_grad()
def orthogonal_(filters: Tensor) -> Tensor:
    """Fill filters, (N, ...), with orthonormal rows or columns, whatever their dtype."""
    values = torch.empty_like(filters, dtype=torch.promote_types(filters.dtype, torch.float32))
    return filters.copy_(nn.init.orthogonal_(values))


@contextmanager
def generate_once(network: nn.Module) -> Iterator[None]:
    """Within this context each bank of a network generates only once."""
    owner, found = object(), banks(network)
    for bank in found:
        bank.begin(owner)
    try:
        yield
    finally:
        for bank in found:
            bank.end(owner)


def end_passes(network: nn.Module) -> None:
    """End every forward pass of the banks of a network: one that Ctrl-C interrupted has no end of its own."""
    for bank in banks(network):
        bank._made = bank._pass = None


def dense_weights(network: nn.Module) -> dict[SharedLayer, Tensor]:
    """The weights of the plain layers that the shared layers of a network equal in eval mode."""
    end_passes(network)
    with generate_once(network):
        return {layer: layer.dense()[0] for layer in network.modules() if isinstance(layer, SharedLayer)}


class ForwardPass:
    """The hooks that tell the banks when a forward pass of their network begins and ends.

    The recomputation of checkpointed blocks runs outside of a pass, so banks generate for each layer there. Such
    checkpointing must be reentrant, as ``with_cp`` is in mmdet and mmpretrain: the other kind expects the
    recomputation to save the same tensors as the first pass.

    Args:
        banks (Iterable[Bank]): The banks.
    """

    def __init__(self, banks: Iterable[Bank]):
        self.banks = list(banks)
        self.checked = False

    def begin(self, network: nn.Module, args: tuple) -> None:
        if torch.compiler.is_compiling():
            return
        if not self.checked:
            check_units(network)
            self.checked = True
        for bank in self.banks:
            bank.begin(self)

    def end(self, network: nn.Module, args: tuple, output: Any) -> None:
        if torch.compiler.is_compiling():
            return
        for bank in self.banks:
            bank.end(self)


def check_units(network: nn.Module) -> None:
    """Raise a :class:`SharingError` if FSDP puts a bank or a shared layer of a network into a unit of its own: other
    units could not reach the bank."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    for name, unit in network.named_modules():
        if (
            unit is not network
            and isinstance(unit, FullyShardedDataParallel)
            and any(isinstance(child, (Bank, SharedLayer)) for child in unit.modules())
        ):
            raise SharingError(
                f'FSDP makes {name} a unit of its own, and other layers share parameters with it: leave '
                'out auto_wrap_policy, so that the whole model is one unit, or give one that wraps no '
                'part of the shared network.'
            )
