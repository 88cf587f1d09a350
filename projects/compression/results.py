"""What the scripts of this folder have in common: their arguments, and the numbers that they keep."""

import argparse
import copy
import json
from pathlib import Path
from typing import NamedTuple

from mmengine.config import Config
from torch import nn

from mmshared import SharingError, banks, fold_layers
from mmshared.analysis.complexity import count_multiply_adds
from mmshared.compress.calibration import calibration_loader
from mmshared.compress.plan import size_of
from mmshared.convert.onnx import onnx_forms
from mmshared.convert.onnx_evaluation import evaluate_onnx
from mmshared.engine.checkpoint import write_text
from mmshared.engine.config import in_work_dir, load_config
from mmshared.engine.runner import SharingRunner
from mmshared_cli import add_cfg_options

RESULTS = Path(__file__).parent / 'results'


def parser_of(description: str, work_dir: str) -> argparse.ArgumentParser:
    """The arguments of all runs."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='the config of the network')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0], help='of the training')
    parser.add_argument('--work-dir', type=Path, default=Path(work_dir))
    add_cfg_options(parser)
    return parser


def add_compression(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of runs that make a trained network smaller."""
    parser.add_argument('checkpoint', help='that of the plain network')
    parser.add_argument('--keep', nargs='+', type=float, required=True, metavar='SHARE', help='of the parameters')
    parser.add_argument('--epochs', type=int, default=0, help='of fine-tuning')


def read_config(args: argparse.Namespace) -> Config:
    """The config of a run with its options."""
    cfg = load_config(args.config, args.cfg_options)
    cfg.runner_type = 'SharingRunner'
    return cfg


class Result(NamedTuple):
    """A run, and where its numbers are kept."""

    method: str
    keep: float
    steps: int
    epochs: int
    seed: int

    @property
    def name(self) -> str:
        return f'{self.method}-{self.keep:g}_steps-{self.steps}_epochs-{self.epochs}_seed-{self.seed}'

    def path(self, table: str) -> Path:
        return RESULTS / table / f'{self.name}.json'

    def is_there(self, table: str) -> bool:
        """Whether its numbers are kept already: then this is said."""
        path = self.path(table)
        there = path.is_file()
        if there:
            print(f'{path}: there already', flush=True)
        return there

    def write(self, table: str, networks: dict[str, dict]) -> None:
        path = self.path(table)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({**self._asdict(), **networks}, indent=1))
        print(self.name, {name: each['metrics'] for name, each in networks.items()}, flush=True)


def runner_of(network: nn.Module, cfg: Config, work_dir: Path) -> SharingRunner:
    """A runner of a config with a given network, which keeps its weights."""
    network.is_init = True  # mmengine's runner would draw them anew

    class OfNetwork(SharingRunner):
        def build_model(self, model):
            return network

    return OfNetwork.from_cfg(in_work_dir(cfg, work_dir))


def image_shape(network: nn.Module, cfg: Config) -> tuple[int, ...]:
    """Channels, height and width of an image of the data as the network gets it."""
    batch = next(iter(calibration_loader(cfg, 1)))
    return tuple(network.data_preprocessor(batch, False)['inputs'].shape[1:])


def evaluated(network: nn.Module, cfg: Config, work_dir: Path, shape: tuple[int, ...]) -> dict:
    """The size of a network, its multiply-adds as the plain network that it equals, and its metrics. It is on the CPU
    afterwards."""
    metrics = runner_of(network, cfg, work_dir).val()
    plain = fold_layers(copy.deepcopy(network.cpu()))
    work = count_multiply_adds(plain, shape)['']
    return dict(size_of(network)._asdict(), multiply_adds=work, metrics=metrics)


def as_onnx(network: nn.Module, cfg: Config, folder: Path, shape: tuple[int, ...], metrics: dict) -> dict:
    """Write the ONNX models of a network, which stay shared if it is. If it has none, only says why.

    Returns their bytes and metrics: in float32 those of PyTorch, with weights as integers by onnxruntime.
    """
    folder.mkdir(parents=True, exist_ok=True)
    network.eval()
    plain = fold_layers(copy.deepcopy(network))
    try:
        forms = onnx_forms(network, plain, shape, keep_shared=bool(banks(network)), bits=8)
    except SharingError as error:
        print(error, flush=True)
        return {}
    floats, integers = [form.SerializeToString() for form in forms.values()][-2:]
    (folder / 'float32.onnx').write_bytes(floats)
    (folder / 'int8.onnx').write_bytes(integers)
    return dict(
        float32=dict(bytes=len(floats), metrics=metrics),
        int8=by_onnxruntime(folder / 'int8.onnx', cfg),
    )


def by_onnxruntime(file: Path, cfg: Config) -> dict:
    """The bytes of an ONNX model, and its metrics."""
    cfg = copy.deepcopy(cfg)
    cfg.work_dir = str(file.parent)
    return dict(bytes=file.stat().st_size, metrics=evaluate_onnx(cfg, str(file)))
