"""Configs: found by path or by name, with options, and checked before anything is built."""

from __future__ import annotations

import copy
import inspect
import os
import os.path as osp
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, HOOKS, MODELS
from mmengine.utils import import_modules_from_strings

from ..sharing import SharingError

#: The folders of modules that are found only beside a config.
_BESIDE: dict[str, str] = {}
LIBRARIES = ('mmdet', 'mmpretrain', *filter(find_spec, ['mmseg']))


def config_folder(package: str) -> str:
    """The folder of a package's configs: ours, or that of one of the libraries."""
    return osp.join(import_module(package).__path__[0], '.mim', 'configs')


def config_path(name: str) -> str:
    """The file of a config, from a path or from its name in a package, such as ``mmdet::dcn/....py``."""
    package, _, inner = name.rpartition('::')
    packages = ('mmshared', *LIBRARIES)
    if package and package not in packages:
        raise SharingError(f'{name}: configs by name are those of {" and ".join(packages)}, not of {package}.')
    path = osp.join(config_folder(package), inner) if package else name
    if not osp.isfile(path):
        raise SharingError(f'There is no config {name}{f" ({path})" if package else ""}: check the name.')
    return path


def root_of(error: BaseException) -> BaseException:
    """The error that was the first cause of another: the text of an exporter's own is the same for all."""
    while error.__cause__:
        error = error.__cause__
    return error


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its type if it has none."""
    return _lines_of(error)[0][:200]


def reason_in(error: Exception) -> str:
    """The last line of an error's message, which says most; its type if it has none."""
    return _lines_of(error)[-1]


def _lines_of(error: BaseException) -> list[str]:
    return (str(error).strip() or type(error).__name__).splitlines()


def load_config(name: str, options: dict[str, Any] | None = None) -> Config:
    """Load the config of a model, from a path or from its name in a package, and merge options into it as
    :func:`merge_options` does.

    Its ``custom_imports`` may name modules in its own folder, and in those of the configs that its `_base_` names.

    Raises:
        SharingError: If there is no such file, if it is not a config of a model, or if it has no place for an option.
    """
    path = config_path(name)
    try:
        cfg = Config.fromfile(path, import_custom_modules=False)
        if cfg.get('custom_imports'):
            for file in _with_bases(path):
                _find_modules_beside(file, cfg.custom_imports['imports'])
            import_modules_from_strings(**cfg.custom_imports)
    except Exception as error:  # a config is code
        raise SharingError(f'The config {name} cannot be read: {reason_in(error)}') from None
    if not {'model', 'default_scope'} <= set(cfg):
        raise SharingError(
            f'{name} is not a config of a model: it has no {"model" if "model" not in cfg else "default_scope"}.'
        )
    merge_options(cfg, options or {})
    return cfg


def _with_bases(path: str) -> Iterator[str]:
    """The files of a config: its own, and those that it builds on."""
    yield path
    bases = [Config._get_cfg_path(base, path)[0] for base in Config._get_base_files(path)]
    for base in filter(osp.isfile, bases):  # others have variables in their names
        yield from _with_bases(base)


def _find_modules_beside(path: str, names: str | list[str]) -> None:
    """Let this process, and those that it starts, import modules that lie beside a config and nowhere else."""
    folder = osp.dirname(osp.abspath(path))
    there = (top for top in _tops(names) if Path(folder, f'{top}.py').is_file() or Path(folder, top).is_dir())
    missing = [top for top in there if find_spec(top) is None]
    if missing:
        _BESIDE.update(dict.fromkeys(missing, folder))
        sys.path.append(folder)
        inherited = os.environ.get('PYTHONPATH')
        os.environ['PYTHONPATH'] = f'{inherited}{os.pathsep}{folder}' if inherited else folder


def dump_config(cfg: Config, file: str | Path) -> None:
    """Write a config to a file, and beside it the modules of its ``custom_imports`` that lie beside the loaded config.
    What is there already stays, and other modules that they import from their folder are not followed."""
    path = Path(file)
    cfg.dump(path)
    for top in _tops((cfg.get('custom_imports') or {}).get('imports', [])) & set(_BESIDE):
        package, module = Path(_BESIDE[top], top), Path(_BESIDE[top], f'{top}.py')
        if package.is_dir() and not (path.parent / top).exists():
            shutil.copytree(package, path.parent / top, ignore=shutil.ignore_patterns('__pycache__'))
        elif module.is_file() and not (path.parent / module.name).exists():
            shutil.copyfile(module, path.parent / module.name)


def _tops(names: str | list[str]) -> set[str]:
    """The modules or packages that hold the modules of these names."""
    return {name.partition('.')[0] for name in ([names] if isinstance(names, str) else names)}


def dotted(cfg: Any, prefix: str = '') -> Iterator[tuple[str, Any]]:
    """Each leaf of a config with its key, such as ``model.backbone.depth``."""
    items = cfg.items() if isinstance(cfg, dict) else enumerate(cfg) if isinstance(cfg, (list, tuple)) else None
    if items is None:
        yield prefix[:-1], cfg
    else:
        for key, value in items:
            yield from dotted(value, f'{prefix}{key}.')


def moved_root(cfg: Config, root: str) -> dict[str, str]:
    """The options that move a config's data set to another root, wherever the config names its ``data_root``."""
    places = '(train|val|test)_(dataloader|evaluator)'
    leaves = dict(dotted({key: value for key, value in cfg.items() if re.fullmatch(places, key)}))
    roots = {value.rstrip('/') for key, value in leaves.items() if key.endswith('.data_root') and value}
    if len(roots) != 1:
        raise SharingError(
            f'The data sets of this config have {len(roots)} roots ({", ".join(sorted(roots))}): set '
            'the data_root of each of them instead.'
        )
    old = roots.pop()
    return {
        key: osp.join(root, value[len(old) :].lstrip('/'))
        for key, value in leaves.items()
        if isinstance(value, str) and f'{value}/'.startswith(f'{old}/')
    }


def merge_options(cfg: Config, options: dict[str, Any]) -> None:
    """Merge options into a config, in place; ``data_root`` moves the data set.

    Raises:
        SharingError: If the config has no place for an option.
    """
    options = dict(options)
    if 'data_root' in options:
        options = {**moved_root(cfg, options.pop('data_root')), **options}
    try:
        cfg.merge_from_dict(options)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        for key, value in options.items():
            try:
                copy.deepcopy(cfg).merge_from_dict({key: value})
            except Exception as error:
                name = cfg.filename or 'The config'
                raise SharingError(f'{name} has no place for the option {key}: {reason_in(error)[:200]}') from None
        raise


def in_work_dir(cfg: Config, work_dir: Path) -> Config:
    """A copy of a config for one of several runners in a process, which logs to a work dir of its own: mmengine keeps
    one visualizer for each name, and that one its folder."""
    cfg = copy.deepcopy(cfg)
    name = f'{work_dir.parent.name}-{work_dir.name}-{time.time_ns()}'
    visualizer = {**(cfg.get('visualizer') or dict(type='Visualizer')), 'name': name}
    cfg.update(work_dir=str(work_dir), experiment_name=name, visualizer=visualizer)
    return cfg


def plain_twin(cfg: Any) -> Any:
    """A model config without sharing: each type that shares becomes its plain one."""
    if isinstance(cfg, dict):
        twin = type(cfg)({key: plain_twin(value) for key, value in cfg.items() if key != 'sharing'})
        if 'sharing' in cfg:
            kind = cfg['type']
            twin['type'] = kind.replace('Shared', '', 1) if isinstance(kind, str) else kind.plain
        return twin
    if isinstance(cfg, tuple):
        return tuple(map(plain_twin, cfg))
    return [plain_twin(item) for item in cfg] if isinstance(cfg, list) else cfg


def shared_type(plain: str) -> str:
    """The type of the twin that shares: ``mmdet.SharedRetinaNet`` for ``mmdet.RetinaNet``."""
    library, dot, name = plain.rpartition('.')
    return f'{library}{dot}Shared{name}'


def shares(model: Any) -> bool:
    """Whether something in the config of a model shares."""
    return any('.sharing.' in f'.{key}.' for key, _ in dotted(model))


def class_of_hook(hook: dict | Hook) -> type:
    """The class of a hook, or of one by its config; ``object`` if it is not known."""
    if isinstance(hook, Hook):
        return type(hook)
    kind = HOOKS.get(hook['type']) if isinstance(hook['type'], str) else hook['type']
    return kind if isinstance(kind, type) else object


def drop_hooks(cfg: Config) -> Config:
    """Remove the hooks of mmshared from a config, in place, and return it."""
    hooks = cfg.pop('custom_hooks', None) or []
    hooks = [hook for hook in hooks if not class_of_hook(hook).__module__.startswith('mmshared')]
    if hooks:
        cfg.custom_hooks = hooks
    return cfg


def check_twins(cfg: Config) -> None:
    """Raise a :class:`SharingError` if the model of a config names a shared network that does not exist, or gives
    ``sharing`` to one that does not take it."""
    _check_twins(cfg.model, cfg.get('default_scope', 'mmengine'))


def _check_twins(cfg: Any, scope: str) -> None:
    if isinstance(cfg, (list, tuple)):
        for item in cfg:
            _check_twins(item, scope)
    elif isinstance(cfg, dict):
        scope = cfg.get('_scope_', scope)
        if isinstance(cfg.get('type'), str):
            _check_twin(cfg, scope)
        for value in cfg.values():
            _check_twins(value, scope)


def _check_twin(cfg: dict, scope: str) -> None:
    library, dot, name = cfg['type'].rpartition('.')
    shared = name.startswith('Shared')
    if not (shared or 'sharing' in cfg) or dot and library not in LIBRARIES:
        return
    with MODELS.switch_scope_and_registry(library or scope) as registry:
        kind, names = registry.get(name), set()
        while registry is not None:
            names |= set(registry.module_dict)
            registry = registry.parent
    plain = sorted(each for each in names if f'Shared{each}' in names)
    if kind is None and shared:
        nearest = [f'Shared{each}' for each in get_close_matches(name.removeprefix('Shared'), plain)]
        there = 'the nearest are ' if nearest else 'there are, among others, '
        there += ', '.join(nearest or [f'Shared{each}' for each in plain[:8]])
        raise SharingError(f'There is no {cfg["type"]}: {there}.')
    if kind is not None and 'sharing' in cfg and not _takes_sharing(kind):
        mend = f': write type={shared_type(cfg["type"])}.' if name in plain else f', and there is no Shared{name}.'
        raise SharingError(f'{cfg["type"]} takes no sharing{mend}')


def _takes_sharing(kind: Any) -> bool:
    """Whether a class, or one of its bases, has an argument ``sharing``."""
    return any('sharing' in inspect.signature(base.__init__).parameters for base in getattr(kind, '__mro__', ()))


def check_data(cfg: Config, loaders: Sequence[str], skip_downloads: bool = True) -> None:
    """Raise a :class:`SharingError` if a data set of the config is not where it is expected, if its annotations are an
    empty file, or if a data loader has no batch size above 0.

    Args:
        cfg (Config): The config.
        loaders (Sequence[str]): The data loaders whose data must be there.
        skip_downloads (bool): Whether to skip data sets that download themselves. Defaults to True.
    """
    for loader in loaders:
        settings = cfg.get(loader) or {}
        if not settings.get('batch_size', 1) > 0:
            raise SharingError(f'The batch_size of {loader} is {settings["batch_size"]}: it must be 1 or more.')
        for dataset in inner_datasets(settings.get('dataset')):
            root, prefix = dataset.get('data_root') or '', dataset.get('data_prefix') or ''
            if not root or '://' in root:
                continue
            if skip_downloads and _downloads(dataset, cfg.get('default_scope', 'mmengine')):
                continue
            parts = ['', dataset.get('ann_file'), *(prefix.values() if isinstance(prefix, dict) else [prefix])]
            missing = [
                part
                for part in parts
                if isinstance(part, str) and '://' not in part and not osp.exists(osp.join(root, part))
            ]
            if missing:
                lack = 'is not there' if '' in missing else f'has no {" and no ".join(missing)}'
                raise SharingError(
                    f'The data set of {loader} is expected in {root}, which {lack}: put the data set '
                    'there, or name its folder with the option data_root=FOLDER.'
                )
            annotations = osp.join(root, dataset.get('ann_file') or '')
            if osp.isfile(annotations) and osp.getsize(annotations) == 0:
                raise SharingError(f'The annotations {annotations} of {loader} are an empty file.')


def _downloads(dataset: dict, scope: str) -> bool:
    """Whether a data set downloads itself if it is missing, as mmpretrain's CIFAR-10 does."""
    kind = dataset['type']
    if isinstance(kind, str):
        kind = DATASETS.get(kind if '.' in kind else f'{scope}.{kind}')
    return kind is not None and 'download' in inspect.signature(kind).parameters and dataset.get('download', True)


def inner_datasets(dataset: Any) -> Iterator[dict]:
    """The data sets inside a dataset config and its wrappers."""
    if isinstance(dataset, dict):
        inner = dataset.get('datasets') or ([dataset['dataset']] if 'dataset' in dataset else [])
        if not inner:
            yield dataset
        for item in inner:
            yield from inner_datasets(item)
