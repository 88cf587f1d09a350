"""What run.py and peers.py have in common: their arguments, and the numbers that they keep."""

import argparse
import copy
import json
from pathlib import Path
from typing import NamedTuple

from mmengine.config import Config
from torch import nn

from mmshared.convert.onnx import onnx_forms
from mmshared.convert.onnx_evaluation import evaluate_onnx
from mmshared.engine.checkpoint import write_text
from mmshared.engine.config import load_config, merge_options
from mmshared_cli import add_cfg_options, add_shape

RESULTS = Path(__file__).parent / 'results'


def parser_of(description: str, work_dir: str) -> argparse.ArgumentParser:
    """The arguments of all runs."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='the config of the plain network')
    parser.add_argument('checkpoint', help='its checkpoint')
    parser.add_argument('--keep', nargs='+', type=float, required=True, metavar='SHARE', help='of the parameters')
    parser.add_argument('--epochs', type=int, default=0, help='of fine-tuning')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0], help='of the fine-tuning')
    parser.add_argument('--work-dir', type=Path, default=Path(work_dir))
    add_cfg_options(parser)
    add_shape(parser)
    return parser


def read_config(args: argparse.Namespace) -> Config:
    cfg = load_config(args.config)
    merge_options(cfg, args.cfg_options)
    cfg.runner_type = 'SharingRunner'
    return cfg


class Result(NamedTuple):
    """A run, and where its numbers are kept."""

    plan: str
    keep: float
    steps: int
    epochs: int
    seed: int

    def path(self, config: str) -> Path:
        options = f'steps-{self.steps}_epochs-{self.epochs}_seed-{self.seed}'
        return RESULTS / Path(config).stem / f'{self.plan}-{self.keep}_{options}.json'

    def write(self, config: str, networks: dict[str, dict]) -> None:
        path = self.path(config)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({**self._asdict(), **networks}, indent=1))
        print(path.stem, {name: each['metrics'] for name, each in networks.items()}, flush=True)


def as_onnx(
    shared: nn.Module, plain: nn.Module, cfg: Config, folder: Path, shape: tuple[int, ...], metrics: dict
) -> dict:
    """Write the ONNX models of a network, which stay shared if it is.

    Returns their bytes and metrics: in float32 those of PyTorch, with weights as integers by onnxruntime.
    """
    forms = onnx_forms(shared, plain, shape, keep_shared=shared is not plain, bits=8)
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
