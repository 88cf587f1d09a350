"""What the tools do around those of mmdet and mmpretrain."""

import argparse
import logging
import os
import os.path as osp
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import torch
from mmengine.config import Config

from .convert.authors import Converted
from .engine.build import check_sharing
from .engine.checkpoint import mend_last_checkpoint, refuse_other_networks, save_checkpoint
from .engine.config import LIBRARIES, check_data, check_twins, config_path, load_config, merge_options
from .sharing import SharingError

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


def output_image(name: str) -> Path:
    """The type of an argument that names an image to write."""
    path = output_file(name)
    if path.suffix not in ('.png', '.pdf', '.svg', '.jpg'):
        raise argparse.ArgumentTypeError(f'{name} is no name of an image: let it end in .png, .pdf, .svg or .jpg')
    return path


def check_files(parser: argparse.ArgumentParser, *names: str | None) -> None:
    """Stop a tool that would write over one of its own files; what is None is none."""
    names = [name for name in names if name]
    if len({Path(name).resolve() for name in names}) < len(names):
        parser.error(f'{", ".join(map(str, names))} have to be files of their own')


class ImageSize(argparse.Action):
    """Takes the side of square images, or their height and width, or these after their channels; keeps (C, H, W)."""

    def __call__(self, parser, namespace, values, option_string=None):
        if len(values) > 3 or min(values) < 1:
            parser.error(
                f'{option_string}: give height and width, and before them the channels if not 3, each 1 or more'
            )
        channels = values[0] if len(values) == 3 else 3
        setattr(namespace, self.dest, (channels, values[0] if len(values) == 1 else values[-2], values[-1]))


def add_shape(parser: argparse.ArgumentParser) -> None:
    """Give a tool the option ``--shape``."""
    parser.add_argument(
        '--shape',
        type=int,
        nargs='+',
        action=ImageSize,
        default=(3, 224, 224),
        metavar='SIZE',
        help='height and width of the images, after their channels if not 3, or one number for '
        'both (default: 224 224)',
    )


@errors_in_a_sentence()
def run_tool(script: str, description: str, loaders: list[str]) -> None:
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
            type=DDP, broadcast_buffers=False, find_unused_parameters=cfg.get('find_unused_parameters', False)
        )
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


def add_runs(parser: argparse.ArgumentParser, out: str) -> None:
    """Add what a tool that compares runs is told: their work dirs, their names, the image to write."""
    parser.add_argument(
        'work_dirs', type=Path, nargs='+', metavar='work_dir', help='the work dir of a run of train.py'
    )
    parser.add_argument('--legend', nargs='+', help='names of the runs (default: those of their folders)')
    parser.add_argument('--out', type=output_image, default=out, help=f'default: {out}')


def named_runs(parser: argparse.ArgumentParser, args: argparse.Namespace) -> dict[str, Path]:
    """The work dirs of :func:`add_runs` by their names; the parser stops if a run has no name of its own."""
    names = args.legend or [path.resolve().name for path in args.work_dirs]
    if len(set(names)) < len(args.work_dirs) or len(names) > len(args.work_dirs):
        parser.error('--legend: give each run a name of its own')
    return dict(zip(names, args.work_dirs))


@errors_in_a_sentence()
@own_files()
def convert_file(description: str, convert: Callable[[str, Path], Converted]) -> None:
    """The command of a converter of authors' checkpoints: reads SRC, writes DST and says which config it is for. If
    there is no file of that config, it is written beside DST.

    Args:
        description (str): What the command says of itself.
        convert (Callable): Converts a file, given the folder of the configs too.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('src', help='their checkpoint')
    parser.add_argument('dst', type=output_file, help='the checkpoint to write')
    args = parser.parse_args()
    check_files(parser, args.src, args.dst, args.dst.with_suffix('.py'))
    configs = Path(__file__).parents[1] / 'configs'
    state_dict, config, options, note = convert(args.src, configs)
    if isinstance(config, Config):
        name = args.dst.with_suffix('.py')
        config.dump(name)
    else:
        name = Path('configs', config.relative_to(configs))
    save_checkpoint(dict(state_dict=state_dict, meta=dict(config=name.name)), args.dst)
    options = (
        ' '.join(['with --cfg-options', *(f'{key}={value}' for key, value in options.items())]) if options else ''
    )
    print(', '.join(filter(None, (f'{args.dst} is for {name}', options, note))))
