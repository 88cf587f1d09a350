"""What the tools do around those of mmdet and mmpretrain."""
import argparse
import inspect
import logging
import os
import os.path as osp
import re
import signal
import sys
import warnings
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, Dict, Iterator, List, Optional, Tuple

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS

from .analysis.models import build_empty
from .checkpoint import mend_last_checkpoint, refuse_other_networks
from .sharing import SharingError

LIBRARIES = ('mmdet', 'mmpretrain', *filter(find_spec, ['mmseg']))
DDP = 'MMDistributedDataParallel'
# Where a launcher says which of its processes this is.
RANKS = dict(pytorch='RANK', slurm='SLURM_PROCID', mpi='OMPI_COMM_WORLD_RANK')


@contextmanager
def errors_in_a_sentence() -> Iterator[None]:
    """End a tool with one sentence where a :class:`SharingError` is raised, or with the whole traceback if
    ``--traceback`` is among its arguments. It is taken out of them: all tools have it, and no parser knows it."""
    whole = '--traceback' in sys.argv[1:]
    if whole:
        sys.argv.remove('--traceback')
    try:
        yield
    except SharingError as error:
        if whole:
            error.__suppress_context__ = False  # what it was made of
            raise
        raise SystemExit(f'Error: {error}') from None


@contextmanager
def own_files() -> Iterator[None]:
    """Make a :class:`SharingError` of it where a tool cannot read or write one of its own files. It is not for what
    reads data sets: an image that is missing there is found by a traceback."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise
        raise SharingError(f'{error.filename} cannot be read or written: {error.strerror}.') from error


def config_path(name: str) -> str:
    """The file of a config, from a path or from the name that a library gives it, ``mmdet::dcn/....py`` say."""
    library, _, inner = name.rpartition('::')
    if not library:
        path = name
    elif library in LIBRARIES:
        path = osp.join(osp.dirname(import_module(library).__file__), '.mim', 'configs', inner)
    else:
        raise SharingError(f'{name}: configs by name are those of {" and ".join(LIBRARIES)}, not of {library}.')
    if not osp.isfile(path):
        raise SharingError(f'There is no config {name}{f" ({path})" if library else ""}: check the name.')
    return path


def load_config(name: str) -> Config:
    """The config of a model, from a path or from the name that a library gives it.

    Its ``custom_imports`` may name modules that lie beside it.

    Raises:
        SharingError: If there is no such file, or if it is none.
    """
    path = config_path(name)
    _find_modules_in(osp.dirname(osp.abspath(path)))
    try:
        cfg = Config.fromfile(path)
    except Exception as error:  # a config is code
        reason = str(error).strip() or type(error).__name__
        raise SharingError(f'The config {name} cannot be read: {reason.splitlines()[-1]}') from None
    if not {'model', 'default_scope'} <= set(cfg):
        raise SharingError(f'{name} is no config of a model: it has no '
                           f'{"model" if "model" not in cfg else "default_scope"}.')
    return cfg


def _find_modules_in(folder: str) -> None:
    """Let this process, and those that it starts, import the modules of a folder that have no other's name."""
    if folder not in sys.path:
        sys.path.append(folder)
    inherited = os.environ.get('PYTHONPATH')
    if folder not in (inherited or '').split(os.pathsep):
        os.environ['PYTHONPATH'] = f'{inherited}{os.pathsep}{folder}' if inherited else folder


def output_file(name: str) -> Path:
    """The type of an argument that names a file to write: makes its folder."""
    path = Path(name)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f'{name} is a folder: name a file')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f'{name} cannot be written: {error.strerror}') from None
    return path


def output_picture(name: str) -> Path:
    """The type of an argument that names a picture to write."""
    path = output_file(name)
    if path.suffix not in ('.png', '.pdf', '.svg', '.jpg'):
        raise argparse.ArgumentTypeError(f'{name} is no name of a picture: let it end in .png, .pdf, .svg or .jpg')
    return path


def check_files(parser: argparse.ArgumentParser, *names: Optional[str]) -> None:
    """Stop a tool that would write over one of its own files; what is None is none."""
    names = [name for name in names if name]
    if len({Path(name).resolve() for name in names}) < len(names):
        parser.error(f'{", ".join(map(str, names))} have to be files of their own')


class PictureSize(argparse.Action):
    """Takes the side of square pictures, or their height and width, or these after their channels; keeps (C, H, W)."""

    def __call__(self, parser, namespace, values, option_string=None):
        if len(values) > 3 or min(values) < 1:
            parser.error(f'{option_string}: give height and width, and before them the channels if not 3, each 1 or '
                         'more')
        channels = values[0] if len(values) == 3 else 3
        setattr(namespace, self.dest, (channels, values[0] if len(values) == 1 else values[-2], values[-1]))


def add_shape(parser: argparse.ArgumentParser) -> None:
    """Give a tool the option ``--shape``."""
    parser.add_argument('--shape', type=int, nargs='+', action=PictureSize, default=(3, 224, 224), metavar='SIZE',
                        help='height and width of the pictures, after their channels if not 3, or one number for '
                        'both (default: 224 224)')


def dotted(cfg: Any, prefix: str = '') -> Iterator[Tuple[str, Any]]:
    """Each leaf of a config with the key that ``--cfg-options`` knows it by."""
    items = cfg.items() if isinstance(cfg, dict) else enumerate(cfg) if isinstance(cfg, (list, tuple)) else None
    if items is None:
        yield prefix[:-1], cfg
    else:
        for key, value in items:
            yield from dotted(value, f'{prefix}{key}.')


def moved_root(cfg: Config, root: str) -> Dict[str, str]:
    """The options that move a config's data set to another root, wherever the config has its ``data_root``."""
    places = '(train|val|test)_(dataloader|evaluator)'
    leaves = dict(dotted({key: value for key, value in cfg.items() if re.fullmatch(places, key)}))
    roots = {value.rstrip('/') for key, value in leaves.items() if key.endswith('.data_root') and value}
    if len(roots) != 1:
        raise SharingError(f'The data sets of this config have {len(roots)} roots ({", ".join(sorted(roots))}): set '
                           'the data_root of each of them instead.')
    old = roots.pop()
    return {key: osp.join(root, value[len(old):].lstrip('/')) for key, value in leaves.items()
            if isinstance(value, str) and f'{value}/'.startswith(f'{old}/')}


def merge_options(cfg: Config, options: Dict[str, Any]) -> Dict[str, Any]:
    """Merge what ``--cfg-options`` gives into a config, where ``data_root`` moves the data set. Returns the options
    that were merged."""
    options = dict(options)
    if 'data_root' in options:
        options = {**moved_root(cfg, options.pop('data_root')), **options}
    cfg.merge_from_dict(options)
    return options


def check_twins(cfg: Config) -> None:
    """Stop with one sentence if the model of a config names a shared network that there is not, or gives ``sharing``
    to one that does not share."""
    _check_twins(cfg.model, cfg.default_scope)


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
        mend = f': write type={library}{dot}Shared{name}.' if name in plain else f', and there is no Shared{name}.'
        raise SharingError(f'{cfg["type"]} takes no sharing{mend}')


def _takes_sharing(kind: Any) -> bool:
    """Whether a class, or one that it is made of, has an argument ``sharing``."""
    return any('sharing' in inspect.signature(base.__init__).parameters for base in getattr(kind, '__mro__', ()))


def check_sharing(cfg: Config) -> None:
    """Build the model of a config that shares, without numbers, so that what cannot be shared is said before anything
    else is done.

    Raises:
        SharingError: If the model cannot share so. What else is wrong with it is told when it is built.
    """
    if any('.sharing.' in f'.{key}.' for key, _ in dotted(cfg.model)):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            try:
                build_empty(cfg)
            except SharingError:
                raise
            except Exception:
                return


def check_data(cfg: Config, loaders: List[str], download: bool = True) -> None:
    """Stop with one sentence if a data set of the config is not where it is expected.

    Args:
        cfg (Config): The config.
        loaders (list[str]): The data loaders whose data must be there.
        download (bool): Whether a data set that fetches itself need not be there. Defaults to True.
    """
    for loader in loaders:
        for dataset in _datasets((cfg.get(loader) or {}).get('dataset')):
            root, prefix = dataset.get('data_root') or '', dataset.get('data_prefix') or ''
            if not root or '://' in root or download and _downloads(dataset, cfg.default_scope):
                continue
            parts = ['', dataset.get('ann_file'), *(prefix.values() if isinstance(prefix, dict) else [prefix])]
            missing = [part for part in parts if isinstance(part, str) and '://' not in part
                       and not osp.exists(osp.join(root, part))]
            if missing:
                lack = 'is not there' if '' in missing else f'has no {" and no ".join(missing)}'
                raise SharingError(f'The data set of {loader} is expected in {root}, which {lack}: put the data set '
                                   'there, or name its folder with --cfg-options data_root=FOLDER.')


def _downloads(dataset: dict, scope: str) -> bool:
    """Whether a data set fetches itself where it is missing, as mmpretrain's CIFAR-10 does."""
    kind = DATASETS.get(dataset['type'] if '.' in dataset['type'] else f'{scope}.{dataset["type"]}')
    return kind is not None and 'download' in inspect.signature(kind).parameters and dataset.get('download', True)


def _datasets(dataset: Any) -> Iterator[dict]:
    """The data sets inside a dataset config and its wrappers."""
    if isinstance(dataset, dict):
        inner = dataset.get('datasets') or ([dataset['dataset']] if 'dataset' in dataset else [])
        if not inner:
            yield dataset
        for item in inner:
            yield from _datasets(item)


@errors_in_a_sentence()
def run_tool(script: str, description: str, loaders: List[str]) -> None:
    """Run ``train.py`` or ``test.py`` of the library that a config is of, with all options of that tool.

    Around it: a config may be given by name, mmshared's types are known, ``--cfg-options data_root=FOLDER`` moves
    the data set, and a missing data set, a shared network that there is not and a checkpoint that does not fit end in
    one sentence.

    Args:
        script (str): The tool's file name.
        description (str): What ``--help`` says above the options.
        loaders (list[str]): The data loaders whose data must be there.
    """
    if {'-h', '--help'} & set(sys.argv[1:]):
        print(description)
    # mmpretrain's tools have every option of mmdet's, so that they can find the config among the arguments.
    name = _library_tool('mmpretrain', script).parse_args().config
    path, cfg = config_path(name), load_config(name)
    library = cfg.get('default_scope')
    if library not in LIBRARIES:
        raise SharingError(f'The config {path} is of {library}: the tools know {" and ".join(LIBRARIES)}.')
    tool = _library_tool(library, script)
    args = tool.parse_args()
    args.config = path
    if args.cfg_options:
        args.cfg_options = merge_options(cfg, args.cfg_options)
    check_twins(cfg)
    check_sharing(cfg)
    check_data(cfg, loaders)
    with own_files():
        # As the library's tool chooses it.
        work_dir = Path(args.work_dir or cfg.get('work_dir') or Path('work_dirs') / Path(path).stem)
        work_dir.mkdir(parents=True, exist_ok=True)
        # The other processes wait for the first before they read anything of the folder.
        if getattr(args, 'resume', None) == 'auto' and os.environ.get(RANKS.get(args.launcher, ''), '0') == '0':
            mend_last_checkpoint(work_dir)
    refuse_other_networks(script)
    if args.launcher == 'pytorch' and not torch.cuda.is_available():
        # mmengine's launcher asks for a GPU in each process: without one they meet here.
        torch.distributed.init_process_group('gloo')
        wrapper = cfg.get('model_wrapper_cfg') or dict(
            type=DDP, broadcast_buffers=False, find_unused_parameters=cfg.get('find_unused_parameters', False))
        if wrapper.get('type', DDP) == DDP:
            args.cfg_options = {**(args.cfg_options or {}), 'model_wrapper_cfg': {**wrapper, 'device_ids': None}}
    tool.parse_args = lambda: args

    interrupts = []

    def interrupt(*signal_and_frame):
        interrupts.append(signal_and_frame)
        signal.default_int_handler(*signal_and_frame)

    signal.signal(signal.SIGINT, interrupt)
    try:
        tool.main()
        if torch.distributed.is_initialized():
            # mmengine leaves it open, and a process that ends with its threads running may be aborted.
            torch.distributed.destroy_process_group()
            if not torch.cuda.is_available():
                # Gloo's threads may abort it all the same, when all is done.
                logging.shutdown()
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(0)
    except (KeyboardInterrupt, RuntimeError):
        # Ctrl-C reaches the workers of the data loaders too: what is raised may be that one of them has gone.
        if not interrupts:
            raise
        resume = ' The same command with --resume goes on from the last checkpoint.' if script == 'train.py' else ''
        raise SystemExit(f'Interrupted.{resume}') from None


def _library_tool(library: str, script: str) -> ModuleType:
    """A library's own tool as a module."""
    path = osp.join(osp.dirname(import_module(library).__file__), '.mim', 'tools', script)
    spec = spec_from_file_location(f'{library}_{script[:-3]}', path)
    tool = module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool
