"""What the tools do around those of mmdet and mmpretrain."""
import argparse
import os
import os.path as osp
import re
import runpy
import sys
from importlib import import_module
from typing import Any, Iterator, List, Tuple

import torch
from mmengine.config import Config, DictAction
from mmengine.runner.checkpoint import CheckpointLoader, get_torch_safe_globals

from .sharing import SharingError

LIBRARIES = ('mmdet', 'mmpretrain')


def config_path(name: str) -> str:
    """The file of a config, from a path or from the name that a library gives it, ``mmdet::dcn/....py`` say."""
    library, _, inner = name.rpartition('::')
    if not library:
        path = name
    elif library in LIBRARIES:
        path = osp.join(osp.dirname(import_module(library).__file__), '.mim', 'configs', inner)
    else:
        raise SystemExit(f'{name}: configs by name are those of {" and ".join(LIBRARIES)}, not of {library}.')
    if not osp.isfile(path):
        raise SystemExit(f'There is no config {name}{f" ({path})" if library else ""}: check the name.')
    return path


def load_config(name: str, cfg_options: dict = None) -> Config:
    """Load a config by path or name, with options merged into it."""
    cfg = Config.fromfile(config_path(name))
    if cfg_options:
        cfg.merge_from_dict(cfg_options)
    return cfg


def load_checkpoint_file(filename: str, map_location='cpu') -> dict:
    """Load a checkpoint from a file without running any code that it may carry.

    Raises:
        SharingError: If there is no such file, or if it is damaged, or if it holds more than weights and plain data.
    """
    if not osp.isfile(filename):
        raise SharingError(f'There is no checkpoint {filename}: check the path.')
    try:
        with torch.serialization.safe_globals(get_torch_safe_globals()):
            checkpoint = torch.load(filename, map_location=map_location, weights_only=True)
    except Exception as error:  # torch.load has many ways to say so
        reason = str(error).strip().partition('\n')[0] or type(error).__name__
        raise SharingError(f'The checkpoint {filename} cannot be loaded: it is damaged or cut off, or it holds more '
                           f'than weights ({reason}). Copy or download it again.') from None
    if not isinstance(checkpoint, dict):
        raise SharingError(f'The checkpoint {filename} holds a {type(checkpoint).__name__} and no state dict.')
    return checkpoint


def refuse_pickles() -> None:
    """Make mmengine load checkpoints by :func:`load_checkpoint_file`, and PyTorch unpickle none from anywhere."""
    os.environ.setdefault('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
    CheckpointLoader.register_scheme('', load_checkpoint_file, force=True)


def dotted(cfg: Any, prefix: str = '') -> Iterator[Tuple[str, Any]]:
    """Each leaf of a config with the key that ``--cfg-options`` knows it by."""
    items = cfg.items() if isinstance(cfg, dict) else enumerate(cfg) if isinstance(cfg, (list, tuple)) else None
    if items is None:
        yield prefix[:-1], cfg
    else:
        for key, value in items:
            yield from dotted(value, f'{prefix}{key}.')


def moved_root(cfg: Config, root: str) -> List[str]:
    """The options that move a config's data set to another root, wherever its ``data_root`` has gone."""
    old = cfg.get('data_root')
    if old is None:
        raise SystemExit('This config has no data_root: set the data_root of each of its data sets instead.')
    root = osp.join(root, '')
    loaders = {key: value for key, value in cfg.items() if re.fullmatch('(train|val|test)_(dataloader|evaluator)', key)}
    return [f'{key}={root}{value[len(old):].lstrip("/")}' for key, value in dotted(loaders)
            if isinstance(value, str) and value.startswith(old)]


def check_data(cfg: Config, loaders: List[str]) -> None:
    """Stop with one sentence if a data set of the config is not where it is expected."""
    for loader in loaders:
        for dataset in _datasets((cfg.get(loader) or {}).get('dataset')):
            root, prefix = dataset.get('data_root') or '', dataset.get('data_prefix') or ''
            prefixes = list(prefix.values()) if isinstance(prefix, dict) else [prefix]
            parts = [''] if root else []
            parts += [part for part in (dataset.get('ann_file'), *prefixes) if root and isinstance(part, str) and part]
            missing = [part for part in parts if '://' not in root + part and not osp.exists(osp.join(root, part))]
            if missing:
                lack = 'is not there' if '' in missing else f'has no {" and no ".join(missing)}'
                raise SystemExit(f'The data set of {loader} is expected in {root}, which {lack}: put the data set '
                                 'there, or name its folder with --cfg-options data_root=FOLDER.')


def _datasets(dataset: Any) -> Iterator[dict]:
    """The data sets inside a dataset config and its wrappers."""
    if isinstance(dataset, dict):
        inner = dataset.get('datasets') or ([dataset['dataset']] if 'dataset' in dataset else [])
        if not inner:
            yield dataset
        for item in inner:
            yield from _datasets(item)


def run_tool(script: str, loaders: List[str]) -> None:
    """Run ``train.py`` or ``test.py`` of the library that a config is of, with all options of that tool.

    Around it: a config may be given by name, mmshared's types are known, ``--cfg-options data_root=FOLDER`` moves the
    data set, a missing data set and a checkpoint that does not fit end in one sentence, and no checkpoint is unpickled.

    Args:
        script (str): The tool's file name.
        loaders (list[str]): The data loaders whose data must be there.
    """
    arguments = sys.argv[1:]
    named = next((i for i, argument in enumerate(arguments)
                  if re.fullmatch(r'[^-=][^=]*(::[^=]*|\.(py|ya?ml|json))', argument)), None)
    cfg = None
    if named is not None:
        arguments[named] = config_path(arguments[named])
        cfg = Config.fromfile(arguments[named])
    library = cfg.get('default_scope', LIBRARIES[0]) if cfg else LIBRARIES[0]
    if library not in LIBRARIES:
        raise SystemExit(f'This config is of {library}: the tools know {" and ".join(LIBRARIES)}.')
    roots = [argument for argument in arguments if argument.startswith('data_root=')]
    if cfg and roots:
        at = arguments.index(roots[-1])
        arguments[at:at + 1] = [roots[-1], *moved_root(cfg, roots[-1].partition('=')[2])]
    if cfg and not {'-h', '--help'} & set(arguments):
        cfg.merge_from_dict(_cfg_options(arguments))
        check_data(cfg, loaders)

    refuse_pickles()
    path = osp.join(osp.dirname(import_module(library).__file__), '.mim', 'tools', script)
    sys.argv = [sys.argv[0], *arguments]
    try:
        runpy.run_path(path, run_name='__main__')
    except SharingError as error:
        raise SystemExit(f'Error: {error}') from None
    except KeyboardInterrupt:
        raise SystemExit('Interrupted. The same command with --resume goes on from the last checkpoint.') from None


def _cfg_options(arguments: List[str]) -> dict:
    """What the tool will read from ``--cfg-options``."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    return parser.parse_known_args(arguments)[0].cfg_options or {}
