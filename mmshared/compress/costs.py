"""Measures what it costs a network if a group of its layers shares."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..engine.build import tensors_in
from ..engine.checkpoint import write_text
from ..sharing import SharingError
from ..sharing.layers import plain_layers
from ..sharing.surgery import make_bank
from .files import digest_of
from .outputs import Outputs, difference, outputs_of


class Dense(NamedTuple):
    """The weight and the bias of a plain layer."""

    weight: Tensor
    bias: Tensor | None


@torch.no_grad()
def fit_bank(config: dict, layers: Sequence[Any], moments: Sequence[Tensor] | None) -> list[Dense]:
    """Fit a bank to plain layers, which are not changed. Returns the plain layers that the shared ones equal, on the
    CPU.

    Args:
        config (dict): The config of the bank.
        layers (Sequence[nn.Conv2d | nn.Linear]): The plain layers.
        moments (Sequence[Tensor], optional): The second moments of their inputs, as
            :func:`~mmshared.compress.statistics.collect_moments` gives them.
    """
    layers = [copy.deepcopy(layer).cpu() for layer in layers]  # where their moments are
    bank = make_bank(config, layers)
    shared = [bank.make_layer(layer).eval() for layer in layers]
    bank.fit([layer.weight.detach() for layer in layers], moments)
    return [Dense(*layer.dense()) for layer in shared]


class CostMeter:
    """Measures the cost of banks on calibration images: how much the outputs of the network change
    (:func:`~mmshared.compress.outputs.difference`, the mean over the kinds of outputs) when only the layers of one
    group have the weights of the fitted bank. The second stage of a detector sees the proposals of the plain network,
    and the decoder of a DETR the queries that the plain network selects.

    Args:
        model (nn.Module): The plain network. It is put in eval mode.
        batches (Sequence): Batches of calibration images as a data loader gives them.
        moments (dict[str, Tensor]): Second moments of the layers' inputs by the layers' names, as
            :func:`~mmshared.compress.statistics.collect_moments` gives them.
        cache (Path, optional): A file that keeps the costs, so that an interrupted plan goes on. One of other weights,
            images or moments is replaced.
    """

    def __init__(
        self, model: nn.Module, batches: Sequence[Any], moments: dict[str, Tensor], cache: Path | None = None
    ):
        self.model, self.batches, self.moments, self.cache = model.eval(), batches, moments, cache
        self._places = plain_layers(model)
        self._plain: list[Outputs] = []
        parts = model.state_dict(), list(batches), moments
        self._digest = '' if cache is None else digest_of(tensor for part in parts for tensor in tensors_in(part))
        self._costs = {} if cache is None else _read_costs(cache, self._digest)

    def __call__(self, layers: Sequence[str], bank: dict) -> float:
        """The cost of a bank for the layers of these names."""
        key = json.dumps([list(layers), bank], sort_keys=True)
        if key not in self._costs:
            plain = [self._places[name].layer for name in layers]
            moments = [self.moments[name] for name in layers] if set(layers) <= set(self.moments) else None
            self._costs[key] = self.change(dict(zip(layers, fit_bank(bank, plain, moments))))
            if self.cache is not None:
                write_text(self.cache, json.dumps(dict(digest=self._digest, costs=self._costs), indent=1))
        return self._costs[key]

    def change(self, dense: dict[str, Dense]) -> float:
        """The change of the outputs if layers, by their names, have other weights."""
        if not self._plain:
            self._plain = [outputs_of(self.model, batch) for batch in self.batches]
        total = torch.zeros(())
        with self._weights(dense):
            for batch, plain in zip(self.batches, self._plain):
                total = total + difference(outputs_of(self.model, batch, plain.chosen), plain).cpu()
        errors, sizes = total.unbind(1)  # (kinds, ) each
        differs = sizes != 0  # an output that is the same for all images says nothing
        if not differs.any():
            raise SharingError(
                'The outputs of the network are the same for all calibration images: check its weights, or take more '
                'images.'
            )
        return (errors[differs] / sizes[differs]).mean().item()

    @contextmanager
    def _weights(self, dense: dict[str, Dense]) -> Iterator[None]:
        layers = {name: self._places[name].layer for name in dense}
        own = {name: Dense(layer.weight.detach().clone(), layer.bias) for name, layer in layers.items()}
        try:
            for name, layer in layers.items():
                _set(layer, dense[name])
            yield
        finally:
            for name, layer in layers.items():
                _set(layer, own[name])


@torch.no_grad()
def _set(layer: Any, dense: Dense) -> None:
    layer.weight.copy_(dense.weight)  # in place: an attention's packed projection only refers to its weight
    bias = None if dense.bias is None else dense.bias.to(layer.weight.device)
    layer.bias = bias if bias is None or isinstance(bias, nn.Parameter) else nn.Parameter(bias)


def _read_costs(path: Path, digest: str) -> dict[str, float]:
    """The costs in a file, if they are those of this network, these images and their moments."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    costs = content['costs'] if content.get('digest') == digest else {}
    return {key: cost for key, cost in costs.items() if math.isfinite(cost)}
