"""Compress a network for the tables of README.md, and keep the numbers.

A run does what `tools/compress.py` does with the same options. It can also plan in two other ways, for comparison:
`uniform` keeps the same share of every group, and `low-rank` gives every layer a basis of its own. Its numbers are
written to `results`, and runs whose file is there are skipped: all runs of one network and one plan share a work dir,
in which nothing is made twice.
"""

import argparse
import json
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.config import Config

from mmshared.compress.pipeline import Budget, Compression
from mmshared.compress.plan import Group, Option, find_groups
from mmshared.engine.checkpoint import write_text
from mmshared.engine.config import load_config, merge_options
from mmshared_cli import add_cfg_options, errors_in_a_sentence, stdout_if

RESULTS = Path(__file__).parent / 'results'


class Run(Compression):
    """Compression whose fine-tuning has a seed."""

    seed = 0

    def fine_tune(self, steps, cfg, checkpoint):
        cfg = cfg.copy()
        cfg.randomness = dict(seed=self.seed)
        cfg.compile = True
        return super().fine_tune(steps, cfg, checkpoint)


class LowRank(Run):
    """The same planner without sharing."""

    @cached_property
    def groups(self) -> list[Group]:
        return find_groups(self.model, share=False)


class Uniform(Run):
    """The same share of every group: what minimises the sum of size / share under the budget."""

    def write_options(self, path: Path) -> None:
        options = []
        for group in self.groups:
            plain = group.size.parameters
            costs = [plain * (plain / option.size.parameters - 1) for option in group.ladders[0]]
            found = [option._replace(cost=cost) for option, cost in zip(group.ladders[0], costs)]
            options.append([Option(None, '', group.size, 0.0), *found])
        write_text(path, json.dumps(options))


METHODS = dict(planned=Run, uniform=Uniform, **{'low-rank': LowRank})


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
    return parser


def read_config(args: argparse.Namespace) -> Config:
    cfg = load_config(args.config)
    merge_options(cfg, args.cfg_options)
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


@errors_in_a_sentence()
def main() -> None:
    parser = parser_of(__doc__, 'work_dirs/compression')
    parser.add_argument('--plan', nargs='+', choices=METHODS, default=['planned'])
    parser.add_argument('--steps', nargs='+', type=int, default=[60], help='of each block before any training')
    args = parser.parse_args()
    cfg = read_config(args)
    name = Path(args.config).stem
    # It would be compiled anew for each learning rate.
    torch.optim.SGD.step = torch.compiler.disable(torch.optim.SGD.step)
    for method, keep, steps, seed in product(args.plan, args.keep, args.steps, args.seeds):
        result = Result(method, keep, steps, args.epochs, seed)
        if result.path(args.config).is_file():
            continue
        cfg.work_dir, cfg.runner_type = str(args.work_dir / name / method), 'SharingRunner'
        run = METHODS[method](cfg, args.config, args.checkpoint, Budget(keep, 'kept'), steps=steps, epochs=args.epochs)
        run.seed = seed
        with stdout_if(False):  # the logs are in the work dir
            report = json.loads(run.run().with_suffix('.json').read_text())
        networks = {
            name: {key: report[name][key] for key in ('parameters', 'bytes', 'metrics')}
            for name in ('plain', 'converted', 'finetuned')
            if name in report
        }
        result.write(args.config, networks)


if __name__ == '__main__':
    main()
