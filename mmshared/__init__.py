"""Parameter sharing in convolutional networks for MMDetection and MMPretrain.

What ``import mmshared`` does at once:

- mmcv's operators are supplied from torchvision where mmcv has none: before anything imports ``mmcv.ops``.
- No checkpoint is unpickled any more.
- Banks, hooks, ``SharingRunner``, ``ShortestPaths`` and ``PathScore`` are registered with mmengine.

And what only happens when a registry of a library is first asked for a type, which is when it imports the library's
own modules, so that a training of a detector does not wait for the classifiers:

- The twins of a library's networks are made and registered with it.
- With mmpretrain, the networks and data sets of ours that are made of its own are registered too.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

# First of all: whatever else is imported here reaches for mmcv's operators.
from . import compat  # noqa: F401
from .backbones import SharingMixin
from .datasets import PathScore, ShortestPaths
from .engine.checkpoint import refuse_pickles
from .engine.runner import SharingRunner
from .hooks import (
    BasisHealthHook,
    GradientFlowHook,
    LayerSimilarityHook,
    OrthogonalityLossHook,
    RecurrenceLossHook,
    TrainOnlyHook,
    layer_similarity,
)
from .sharing import (
    KERNEL_TRANSFORMS,
    Bank,
    FilterBasis,
    KernelTransform,
    LoopedTemplates,
    OrthonormalFilterBasis,
    RelaxedTie,
    RepeatedKernel,
    RepeatedLayers,
    SharedLayer,
    SharingError,
    TemplateBank,
    TiedFilters,
    banks,
    deploy,
    fold_layers,
    named_banks,
    repeated_layers,
    share_layers,
)
from .version import __version__

_OWN_NETWORKS = ('cifar', 'conv_chain', 'eca', 'path_net', 'steerable', 'wide_resnet')

#: The modules that a library's registry imports after its own.
_LOCATIONS = {
    ('mmdet', 'MODELS'): ['backbones.mmdet'],
    ('mmpretrain', 'MODELS'): ['backbones.mmpretrain', *(f'backbones.{name}' for name in _OWN_NETWORKS)],
    ('mmpretrain', 'DATASETS'): ['datasets.rotated_mnist'],
    ('mmseg', 'MODELS'): ['backbones.mmseg'],
}


def _register_with(library: str, registry: str, modules: list[str]) -> None:
    known = getattr(import_module(f'{library}.registry'), registry)
    known._locations.extend(modules)  # mmengine has no way to add to what ``Registry(locations=[...])`` has set
    if known._imported:
        for module in modules:
            import_module(module)


refuse_pickles()
for (_library, _registry), _modules in _LOCATIONS.items():
    if find_spec(_library):
        _register_with(_library, _registry, [f'{__name__}.{module}' for module in _modules])


def __getattr__(name: str) -> Any:
    if name == 'RotatedMNIST':  # it is made of a data set of mmpretrain
        return import_module(f'{__name__}.datasets.rotated_mnist').RotatedMNIST
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


__all__ = [
    'Bank',
    'BasisHealthHook',
    'FilterBasis',
    'GradientFlowHook',
    'KERNEL_TRANSFORMS',
    'KernelTransform',
    'LayerSimilarityHook',
    'LoopedTemplates',
    'OrthogonalityLossHook',
    'OrthonormalFilterBasis',
    'PathScore',
    'RecurrenceLossHook',
    'RelaxedTie',
    'RepeatedKernel',
    'RepeatedLayers',
    'RotatedMNIST',
    'SharedLayer',
    'SharingError',
    'SharingMixin',
    'SharingRunner',
    'ShortestPaths',
    'TemplateBank',
    'TiedFilters',
    'TrainOnlyHook',
    '__version__',
    'banks',
    'deploy',
    'fold_layers',
    'layer_similarity',
    'named_banks',
    'repeated_layers',
    'share_layers',
]
