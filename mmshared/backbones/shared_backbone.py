"""Backbones that share their filters: one mixin over the libraries' own classes."""
import inspect
from typing import Dict, Iterable, Optional

from mmengine.logging import print_log
from mmengine.registry import Registry
from torch import nn

from ..sharing.base import SharingError, generate_once
from ..sharing.loading import share_state_dict
from ..sharing.surgery import check_groups, check_units, share_stage


class SharedBackboneMixin:
    """Passes each stage of a backbone through the surgery as the backbone makes it.

    Args:
        sharing (dict): ``groups``, a list of patterns, and ``bank``, the config of their banks, or a list with what
            each stage is to have as its ``bank``. See :func:`mmshared.share_convs`.
        *args, **kwargs: The arguments of the plain backbone.

    Attributes:
        own_blocks (int): Number of blocks at the start of a stage that keep their own convs: the first alone, which
            changes width or resolution, unless a backbone says otherwise, or the bank's convs may differ.
    """

    own_blocks = 1

    def __init__(self, *args, sharing: Optional[dict] = None, **kwargs):
        if set(sharing or ()) != {'groups', 'bank'}:
            raise SharingError(f'{type(self).__name__} needs sharing=dict(groups=[...], bank=dict(type=...)), and got '
                               f'sharing={sharing}.')
        self.sharing = sharing
        self._made = 0
        super().__init__(*args, **kwargs)
        banks = sharing['bank']
        if isinstance(banks, (list, tuple)) and len(banks) != self._made:
            raise SharingError(f'sharing has a list of {len(banks)} banks, and {type(self).__name__} has {self._made} '
                               'stages here: give one for each, or a single config for all.')
        # A plain list: the stages are children already.
        self._stages = [stage for stage in self.modules() if 'banks' in vars(stage)]
        banks = banks if isinstance(banks, (list, tuple)) else [banks] * len(self._stages)
        check_groups(self._stages, sharing['groups'], banks, self.own_blocks)
        self._units_checked = False

    # The seam of the libraries' backbones, by either of its names.
    def make_res_layer(self, *args, **kwargs) -> nn.Module:
        return self._share(super().make_res_layer(*args, **kwargs))

    def make_layer(self, *args, **kwargs) -> nn.Module:
        return self._share(super().make_layer(*args, **kwargs))

    def forward(self, *args, **kwargs):
        if not self._units_checked:
            check_units(self)
            self._units_checked = True
        with generate_once(bank for stage in self._stages for bank in vars(stage).get('banks', {}).values()):
            return super().forward(*args, **kwargs)

    def _share(self, stage: nn.Module) -> nn.Module:
        groups, bank = self.sharing['groups'], self.sharing['bank']
        if not isinstance(bank, (list, tuple)):
            share_stage(stage, groups, bank, self.own_blocks)
        elif self._made < len(bank):
            share_stage(stage, groups, bank[self._made], self.own_blocks)
        self._made += 1
        return stage

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        # Before any parameter is loaded: a plain checkpoint is converted, one that fits neither way refused.
        for conversion in share_state_dict(self, state_dict, prefix):
            print_log(str(conversion), logger='current')
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def makes_stages(backbone: type) -> bool:
    """Whether a backbone makes each of its stages, a sequence of blocks, by a method that can be overridden."""
    if hasattr(backbone, 'make_res_layer'):
        # SparseResNet replaces its convs by masked ones once its stages are made.
        return not hasattr(backbone, 'dense_model_to_sparse')
    # EfficientNet's make_layer makes all stages at once.
    return hasattr(backbone, 'make_layer') and 'num_blocks' in inspect.signature(backbone.make_layer).parameters


def share_backbones(backbones: Iterable, registry: Registry, module: str) -> Dict[str, type]:
    """Make and register ``Shared<Name>`` for each backbone that has the seam.

    Args:
        backbones (Iterable): Classes of backbones, and whatever else a package of them holds.
        registry (Registry): The registry of their library.
        module (str): Name of the module that is to hold the classes.

    Returns:
        dict[str, type]: The classes by name.
    """
    shared = {}
    for parent in backbones:
        if inspect.isclass(parent) and makes_stages(parent):
            name = f'Shared{parent.__name__}'
            doc = f'``{parent.__name__}`` with shared filters: all of its arguments, and ``sharing``.'
            shared[name] = type(name, (SharedBackboneMixin, parent), {'__doc__': doc, '__module__': module})
            registry.register_module(module=shared[name])
    return shared
