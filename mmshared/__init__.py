"""Parameter sharing in convolutional networks for MMDetection and MMPretrain.

What ``import mmshared`` does at once:

- It supplies mmcv's operators from torchvision if mmcv lacks them, before anything imports ``mmcv.ops``.
- From then on, no checkpoint is unpickled.
- From then on, mmengine takes the names of our configs, ``mmshared::faster_rcnn_r50_shared.py``.
- It registers banks, hooks, ``SharingRunner``, ``ShortestPaths`` and ``PathScore`` with mmengine.

The rest happens when a library's registry is first asked for a type, which is when it imports the library's own
modules. So training a detector does not wait for the classifiers:

- The twins of the library's networks are made and registered with it.
- For mmpretrain, our networks and data sets that build on its own are registered too.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

# This comes first: the other imports need mmcv's operators.
from . import compat  # noqa: F401
from .backbones import SharingMixin
from .datasets import PathScore, ShortestPaths
from .engine.checkpoint import refuse_pickles
from .engine.names import take_own_names
from .engine.runner import SharingRunner
from .hooks import (
    BasisHealthHook,
    DistillationHook,
    GradientFlowHook,
    LayerSimilarityHook,
    OrthogonalityLossHook,
    ProgressHook,
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

#: The modules that a library's registry imports after the library's own.
_LOCATIONS = {
    ('mmdet', 'MODELS'): ['backbones.mmdet'],
    ('mmpretrain', 'MODELS'): ['backbones.mmpretrain', *(f'backbones.{name}' for name in _OWN_NETWORKS)],
    ('mmpretrain', 'DATASETS'): ['datasets.rotated_mnist'],
    ('mmseg', 'MODELS'): ['backbones.mmseg'],
}


def _register_with(library: str, registry: str, modules: list[str]) -> None:
    known = getattr(import_module(f'{library}.registry'), registry)
    known._locations.extend(modules)  # mmengine has no public way to add to ``Registry(locations=[...])``
    if known._imported:
        for module in modules:
            import_module(module)


refuse_pickles()
take_own_names()
for (_library, _registry), _modules in _LOCATIONS.items():
    if find_spec(_library):
        _register_with(_library, _registry, [f'{__name__}.{module}' for module in _modules])


def __getattr__(name: str) -> Any:
    if name == 'RotatedMNIST':  # it builds on a data set of mmpretrain
        return import_module(f'{__name__}.datasets.rotated_mnist').RotatedMNIST
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


__all__ = [
    'Bank',
    'BasisHealthHook',
    'DistillationHook',
    'FilterBasis',
    'GradientFlowHook',
    'KERNEL_TRANSFORMS',
    'KernelTransform',
    'LayerSimilarityHook',
    'LoopedTemplates',
    'OrthogonalityLossHook',
    'OrthonormalFilterBasis',
    'PathScore',
    'ProgressHook',
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
