"""Converts checkpoints of plain networks to those of shared networks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..engine.build import load_whole
from ..sharing import SharingError, banks
from ..sharing.state_dict import Conversion, share_state_dict


def share_checkpoint(
    model: nn.Module, state_dict: dict[str, Tensor], name: str, moments: Mapping[str, Tensor] | None = None
) -> list[Conversion]:
    """Convert the state dict of a plain network to that of a shared model, in place.

    Args:
        model (nn.Module): The shared model.
        state_dict (dict): The state dict of the whole plain model, or of only its backbone.
        name (str): The name of the checkpoint, for messages.
        moments (Mapping[str, Tensor], optional): The second moments of the inputs of plain layers by their names in
            the whole model: with them, outputs are fitted and not weights, see :meth:`Bank.fit`.

    Returns:
        list[Conversion]: The result for each group.

    Raises:
        SharingError: If the model shares nothing, or if the state dict is already shared or not of this network.
    """
    if not banks(model):
        raise SharingError('The network of this config shares nothing: give a config of a network that shares.')
    network = model
    if hasattr(model, 'backbone') and not any(key.startswith('backbone.') for key in state_dict):
        network = model.get_submodule('backbone')
        if not banks(network):
            raise SharingError(
                f'{name} is of a backbone, and the shared layers here are outside of it: give the whole network.'
            )
    if moments is not None and network is not model:
        moments = {name.removeprefix('backbone.'): moment for name, moment in moments.items()}
    conversions = share_state_dict(network, state_dict, moments=moments)
    if not conversions:
        raise SharingError(f'{name} is shared already, as the network of the config is.')
    load_whole(network, state_dict, name, 'the plain network of the config')
    return conversions


def rank_for_energy(conversion: Conversion, energy: float) -> int | None:
    """The smallest number of filters that span this share of the energy of a group's kernels (Eckart and Young). None
    if the kernels differ in shape: their filters have no space in common."""
    if len({kernel[0].shape for kernel in conversion.kernels}) > 1:
        return None
    rows = torch.cat([kernel.flatten(1) for kernel in conversion.kernels])  # (N, I k k)
    shares = torch.linalg.svdvals(rows).square().cumsum(0)
    return int((shares < energy * shares[-1]).sum()) + 1
