"""What the tools have in common: argument types, one-sentence errors, the configs of runs.

Nothing here imports PyTorch before the arguments are parsed, and the tools do not either: ``--help`` should not wait
for it. So this is not a part of the package mmshared, which imports PyTorch.
"""

from __future__ import annotations

import argparse
import logging
import os
import os.path as osp
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from io import TextIOBase
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmengine.config import Config


@contextmanager
def errors_in_a_sentence() -> Iterator[None]:
    """End a tool with one sentence if a :class:`SharingError` is raised, or with the whole traceback if
    ``--traceback`` is among its arguments. All tools accept this option, so it is removed before any parser runs."""
    whole = '--traceback' in sys.argv[1:]
    if whole:
        sys.argv.remove('--traceback')
    try:
        yield
    except ValueError as error:
        from mmshared import SharingError

        if not isinstance(error, SharingError):
            raise
        if whole:
            error.__suppress_context__ = False  # show the error behind it too
            raise
        raise SystemExit(f'Error: {error}') from None


@contextmanager
def own_files() -> Iterator[None]:
    """Raise a :class:`SharingError` if a tool cannot read or write one of its own files. Do not use it around code
    that reads data sets: a missing image is easier to find with a traceback."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise
        from mmshared import SharingError

        raise SharingError(f'{error.filename} cannot be read or written: {error.strerror}.') from error


class _Nowhere(TextIOBase):
    def write(self, text: str) -> int:
        return len(text)


def stdout_if(wanted: bool) -> redirect_stdout:
    """A context that drops what is printed to stdout unless it is wanted."""
    return redirect_stdout(sys.stdout if wanted else _Nowhere())


def print_table(title: str, text: list[str], numbers: list[str], rows: list[list[str]], caption: str = '') -> None:
    """Print a table at least 110 characters wide.

    Args:
        title (str): What is above it.
        text (list[str]): The heads of the first columns, which hold text. Only words go into several lines.
        numbers (list[str]): Those of the other columns.
        rows (list[list[str]]): The cells.
        caption (str): What is below it.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, caption=caption)
    for column, name in enumerate(text):
        table.add_column(name, overflow='fold', no_wrap=not any(' ' in row[column] for row in rows))
    for name in numbers:
        table.add_column(name, justify='right')
    for row in rows:
        table.add_row(*row)
    Console(width=max(110, Console().width)).print(table)


def output_file(name: str) -> Path:
    """Argument type for a file to write: creates its folder."""
    path = Path(name)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f'{name} is a folder: name a file')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f'{name} cannot be written: {error.strerror}') from None
    return path


def output_checkpoint(name: str) -> Path:
    """Argument type for a checkpoint to write, as PyTorch writes it."""
    path = output_file(name)
    if path.suffix == '.safetensors':
        raise argparse.ArgumentTypeError(f'{name}: this tool writes .pth; safetensors are written by fold.py')
    return path


def output_image(name: str) -> Path:
    """Argument type for an image to write."""
    path = output_file(name)
    if path.suffix not in ('.png', '.pdf', '.svg', '.jpg'):
        raise argparse.ArgumentTypeError(f'{name} is not an image: the name must end in .png, .pdf, .svg or .jpg')
    return path


def check_files(parser: argparse.ArgumentParser, *names: str | None) -> None:
    """Stop a tool that would overwrite one of its own files. None is ignored."""
    names = [name for name in names if name]
    if len({Path(name).resolve() for name in names}) < len(names):
        parser.error(f'{", ".join(map(str, names))} must be different files')


class ImageSize(argparse.Action):
    """Takes the side of square images, or height and width, or channels, height and width. Stores (C, H, W)."""

    def __call__(self, parser, namespace, values, option_string=None):
        if len(values) > 3 or min(values) < 1:
            parser.error(
                f'{option_string}: give height and width, and before them the channels if not 3, each 1 or more'
            )
        channels = values[0] if len(values) == 3 else 3
        setattr(namespace, self.dest, (channels, values[0] if len(values) == 1 else values[-2], values[-1]))


def add_shape(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--shape``."""
    parser.add_argument(
        '--shape',
        type=int,
        nargs='+',
        action=ImageSize,
        default=(3, 224, 224),
        metavar='SIZE',
        help='height and width of the images, preceded by the channels if not 3, or one number for '
        'both (default: 224 224)',
    )


@contextmanager
def interrupts_in_a_sentence(hint: str = '') -> Iterator[None]:
    """End a tool with one sentence, followed by a hint, if Ctrl-C interrupts it."""
    interrupts = []

    def interrupt(*signal_and_frame):
        interrupts.append(signal_and_frame)
        signal.default_int_handler(*signal_and_frame)

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except (KeyboardInterrupt, RuntimeError):
        # Ctrl-C reaches the workers of the data loaders too: the error may be that one of them is gone.
        if not interrupts:
            raise
        raise SystemExit(f'Interrupted.{hint}') from None


def end_run() -> None:
    """Exit at the end of a distributed run on CPUs: the threads of gloo may abort a process that exits normally."""
    import torch
    from torch import distributed as dist

    if dist.is_initialized() and not torch.cuda.is_available():
        dist.destroy_process_group()
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def load_run(args: argparse.Namespace) -> Config:
    """Load the config of a run of train.py or test.py and apply the arguments that both have."""
    from mmshared import SharingError
    from mmshared.engine.config import LIBRARIES, load_config, merge_options

    cfg = load_config(args.config)
    if cfg.default_scope not in LIBRARIES:
        raise SharingError(f'{args.config} is of {cfg.default_scope}: the tools know {" and ".join(LIBRARIES)}.')
    merge_options(cfg, args.cfg_options)
    cfg.setdefault('runner_type', 'SharingRunner')
    cfg.launcher = args.launcher
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or osp.join('work_dirs', Path(cfg.filename).stem)
    with own_files():
        Path(cfg.work_dir).mkdir(parents=True, exist_ok=True)
    if cfg.default_scope == 'mmdet' and cfg.get('compile'):
        from mmdet.utils import setup_cache_size_limit_of_dynamo

        setup_cache_size_limit_of_dynamo()
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg.get(name) or {}
        if cfg.default_scope == 'mmpretrain' and loader:  # mmpretrain's own tools set these
            loader.setdefault('pin_memory', True)
            loader.setdefault('persistent_workers', loader.get('num_workers', 0) > 0)
            loader.setdefault('collate_fn', dict(type='default_collate'))
        loader.update({option: False for option in args.loaders_without or () if loader})
    return cfg


class CfgOptions(argparse.Action):
    """mmengine's ``DictAction``, imported when the option is used: this takes a third of a second."""

    def __call__(self, parser, namespace, values, option_string=None):
        from mmengine.config import DictAction

        try:
            DictAction(self.option_strings, self.dest)(parser, namespace, values, option_string)
        except (AssertionError, RecursionError, ValueError):
            parser.error(
                f'{option_string} {" ".join(values)}: give KEY=VALUE, where a value is a number, a word, a [list] or '
                'a (tuple) of them; the keys of a dict are given one by one, as KEY.NAME=VALUE'
            )


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--cfg-options``, for :func:`mmshared.engine.config.merge_options`."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=CfgOptions,
        default={},
        metavar='KEY=VALUE',
        help='settings of the config, such as train_cfg.max_epochs=6; data_root=FOLDER moves the data set',
    )


def add_launcher(parser: argparse.ArgumentParser) -> None:
    """Add the options of a run that may be distributed, for :func:`load_run`."""
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help="set by PyTorch's older launcher")
    parser.add_argument('--traceback', action='store_true', help='show where an error comes from')
    parser.set_defaults(loaders_without=None)  # unless the tool has options for that


def add_loader_switch(parser: argparse.ArgumentParser, setting: str, help: str) -> None:
    """Add an option that turns a setting of the data loaders off, for :func:`load_run`."""
    name = f'--no-{setting.replace("_", "-")}'
    parser.add_argument(name, dest='loaders_without', action='append_const', const=setting, help=help)


def add_threshold(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--threshold``, for :func:`mmshared.convert.loops.similar_layers`."""

    def similarity(text: str) -> float:
        if not 0 <= (number := float(text)) < 1:
            raise argparse.ArgumentTypeError(f'{text}: give a similarity from 0 to below 1')
        return number

    parser.add_argument(
        '--threshold',
        type=similarity,
        default=0.95,
        help='the similarity that any two layers of one kernel exceed, below 1 (default: 0.95)',
    )


#: The default of ``--steps``.
STEPS = 60


def add_steps(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--steps``, for :func:`mmshared.compress.reconstruction.reconstruct`."""

    def steps(text: str) -> int:
        if (number := int(text)) < 0:
            raise argparse.ArgumentTypeError(f'{text} is less than 0')
        return number

    parser.add_argument(
        '--steps',
        type=steps,
        default=STEPS,
        metavar='N',
        help="steps in which each block learns to give what the plain network's block gives on these images, without "
        f'labels; 0 for none (default: {STEPS})',
    )


def add_runs(parser: argparse.ArgumentParser, out: str) -> None:
    """Add the arguments of a tool that compares runs: their work dirs, their names, the image to write."""
    parser.add_argument(
        'work_dirs', type=Path, nargs='+', metavar='work_dir', help='the work dir of a run of train.py'
    )
    parser.add_argument('--legend', nargs='+', help='names of the runs (default: the names of their folders)')
    parser.add_argument('--out', type=output_image, default=out, help=f'default: {out}')


def named_runs(parser: argparse.ArgumentParser, args: argparse.Namespace) -> dict[str, Path]:
    """The work dirs of :func:`add_runs` by name. The parser stops if two runs have the same name."""
    names = args.legend or [path.resolve().name for path in args.work_dirs]
    if len(set(names)) < len(args.work_dirs) or len(names) > len(args.work_dirs):
        parser.error('--legend: give each run a name of its own')
    return dict(zip(names, args.work_dirs))


@errors_in_a_sentence()
@own_files()
def convert_file(description: str, module: str) -> None:
    """The command of a converter of others' checkpoints: reads SRC, writes DST and prints which config it is for. If
    no config file exists for it, one is written beside DST.

    Args:
        description (str): The description in the command's help.
        module (str): The module whose ``convert_checkpoint`` converts a file. It also gets the folder of our configs.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('src', help='their checkpoint')
    parser.add_argument('dst', type=output_checkpoint, help='the checkpoint to write')
    args = parser.parse_args()
    check_files(parser, args.src, args.dst, args.dst.with_suffix('.py'))
    from mmengine.config import Config

    from mmshared.engine.checkpoint import save_checkpoint
    from mmshared.engine.config import config_folder

    configs = Path(config_folder('mmshared'))
    state_dict, config, options, note = import_module(module).convert_checkpoint(args.src, configs)
    if isinstance(config, Config):
        name = args.dst.with_suffix('.py')
        config.dump(name)
    else:
        name = config if isinstance(config, str) else f'mmshared::{config.relative_to(configs)}'
    save_checkpoint(dict(state_dict=state_dict, meta=dict(config=Path(name).name)), args.dst)
    options = (
        ' '.join(['with --cfg-options', *(f'{key}={value}' for key, value in options.items())]) if options else ''
    )
    print(', '.join(filter(None, (f'{args.dst} is for {name}', options, note))))
