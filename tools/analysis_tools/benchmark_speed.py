"""Time a config's shared network against the plain one, in one process and in turn.

A training step with and without the orthogonality loss, inference as trained and as shipped (plain convs, the fastest
form of each, batch norms fused into them), the loss alone, the memory of a training step and the size of the weights.
Ratios are medians over the rounds of the ratios within a round, with their quartiles.
"""

import argparse
import copy
import json
from pathlib import Path

import torch
from mmengine.config import Config
from rich.console import Console
from rich.table import Table
from torch import nn

from mmshared import SharingError, banks, deploy
from mmshared.analysis.plots import draw_growth
from mmshared.analysis.speed import (
    Step,
    checkpoint_bytes,
    inference_of,
    load_reference,
    peak_bytes,
    rows_of,
    rows_of_bytes,
    time_in_turn,
)
from mmshared.cli import add_shape, errors_in_a_sentence, output_file, output_image, own_files
from mmshared.engine.build import build_model, build_plain, inner
from mmshared.engine.config import load_config
from mmshared.hooks import orthogonality_loss, orthogonality_spaces


def usable_device(name: str) -> torch.device:
    """The type of an argument that names a device: one that computes here."""
    try:
        torch.ones(1, device=name).cpu()
        return torch.device(name)
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        raise argparse.ArgumentTypeError(f'{name} cannot be used here: {str(error).splitlines()[0]}') from None


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='the config of a shared classifier or detector (its backbone and neck)')
    parser.add_argument(
        '--reference',
        nargs=2,
        metavar=('FILE', 'CALL'),
        help="a network of an author's repository to time too: a file of a checkout and a call, "
        "Net_RL2/models/ilsvrc/resnet.py 'ResNet34_DoubleShared(48, 1)'",
    )
    parser.add_argument('--batch', type=int, default=8, help='images of a training step (default: 8)')
    parser.add_argument('--inference-batch', type=int, nargs='+', default=[1, 32], help='default: 1 32')
    add_shape(parser)
    parser.add_argument('--rounds', type=int, default=10, help='default: 10')
    parser.add_argument(
        '--device',
        type=usable_device,
        default='cuda' if torch.cuda.is_available() else 'cpu',
        help='default: cuda where there is one',
    )
    parser.add_argument('--autocast', choices=['bfloat16', 'float16'], help='mixed precision')
    parser.add_argument('--channels-last', action='store_true', help='memory format')
    parser.add_argument('--compile', action='store_true', help='compile all networks with torch.compile')
    parser.add_argument('--json', type=output_file, help='a file to write the same to')
    parser.add_argument(
        '--plot', type=output_image, help='instead of the table, draw how time and memory grow with what these name:'
    )
    parser.add_argument('--batches', type=int, nargs='+', default=[], help='sizes of a batch')
    parser.add_argument('--depths', type=int, nargs='+', default=[], help='depths of the backbone')
    parser.add_argument('--ranks', type=int, nargs='+', default=[], help='shared ranks of its bank')
    args = parser.parse_args()
    if min(args.batch, args.rounds, *args.inference_batch, *args.batches) < 1:
        parser.error('--batch, --batches, --inference-batch and --rounds are 1 or more')
    if bool(args.plot) != bool(args.batches or args.depths or args.ranks):
        parser.error('--plot and what it is to be over (--batches, --depths, --ranks) are given together')
    return args


class Benchmark:
    """The networks of a config, and what is measured of them."""

    def __init__(self, cfg: Config, args: argparse.Namespace):
        self.args = args
        self.networks = {'plain': build_plain(cfg), 'shared': build_model(cfg)}
        if not banks(self.networks['shared']):
            raise SharingError('The model of this config shares nothing: there is nothing to compare.')
        if args.reference:
            self.networks['reference'] = load_reference(*args.reference)
        layout = torch.channels_last if args.channels_last else torch.contiguous_format
        for network in self.networks.values():
            network.to(args.device, memory_format=layout)
        self.autocast = dict(enabled=bool(args.autocast), dtype=getattr(torch, args.autocast or 'bfloat16'))
        self.images = lambda number: torch.randn(number, *args.shape, device=args.device).to(memory_format=layout)

    def compiled(self, network: nn.Module) -> nn.Module:
        if self.args.compile:
            inner(network).compile()
        return network

    def training(self, batch: int, loss: bool) -> list[dict]:
        images, spaces = self.images(batch), orthogonality_spaces(self.networks['shared'])
        works = {name: Step(network, images, autocast=self.autocast) for name, network in self.networks.items()}
        if loss and any(bank.basis().requires_grad for space in spaces for bank in space.banks):
            works['shared, with the loss'] = Step(self.networks['shared'], images, 10.0, self.autocast)
            works['the loss alone'] = lambda: orthogonality_loss(spaces).backward()
        return rows_of(f'training step, batch {batch}', time_in_turn(works, self.args.rounds, self.args.device))

    def inference(self, kind: str, batch: int) -> list[dict]:
        images, networks = self.images(batch), self.networks
        if kind == 'as shipped':
            with torch.autocast(self.args.device.type, **self.autocast):
                networks = {name: deploy(inner(network), images) for name, network in networks.items()}
            networks = {name: self.compiled(network) for name, network in networks.items()}
        works = {name: inference_of(network, images, self.autocast) for name, network in networks.items()}
        return rows_of(f'inference {kind}, batch {batch}', time_in_turn(works, self.args.rounds, self.args.device))

    def memory(self, batch: int) -> list[dict]:
        sizes = {}
        for name, network in self.networks.items():
            network = copy.deepcopy(network)
            sizes[name] = peak_bytes(network, Step(network, self.images(batch), autocast=self.autocast))
        return rows_of_bytes(f'memory of a training step, batch {batch}', sizes)

    def weights(self) -> list[dict]:
        sizes = {name: checkpoint_bytes(network) for name, network in self.networks.items()}
        return rows_of_bytes('weights on disk', sizes)

    def everything(self) -> list[dict]:
        args = self.args
        rows = [*self.memory(args.batch), *self.weights()]  # before anything is compiled
        for network in self.networks.values():
            self.compiled(network)
        rows = self.training(args.batch, loss=True) + rows
        return rows + [
            row
            for number in args.inference_batch
            for kind in ('as trained', 'as shipped')
            for row in self.inference(kind, number)
        ]


def growth(cfg: Config, args: argparse.Namespace) -> dict[str, list[dict]]:
    """What is measured at each depth, rank and batch, by the quantity and with its ``value``."""
    keys = {'depth': 'model.backbone.depth', 'shared rank': 'model.backbone.sharing.bank.shared_rank', 'batch': None}
    found = {}
    for (quantity, key), values in zip(keys.items(), (args.depths, args.ranks, args.batches)):
        for value in values:
            variant, batch = copy.deepcopy(cfg), args.batch
            if key is None:
                batch = value
            else:
                variant.merge_from_dict({key: value})
            try:
                benchmark = Benchmark(variant, args)
            except (KeyError, TypeError) as error:
                raise SharingError(f'The config builds no network of {quantity} {value}: {error}.') from None
            rows = benchmark.memory(batch)  # before anything is compiled
            for network in benchmark.networks.values():
                benchmark.compiled(network)
            rows += [*benchmark.training(batch, loss=False), *benchmark.inference('as shipped', batch)]
            # Without the batch in the name, works are the same at each batch.
            found.setdefault(quantity, []).extend(
                dict(row, value=value, work=row['work'].rpartition(',')[0]) for row in rows
            )
    return found


def print_table(rows: list[dict], title: str) -> None:
    table = Table(title=title)
    for name in ('work', 'network', '', 'ratio', 'quartiles'):
        table.add_column(name, justify='right' if name in ('', 'ratio') else 'left')
    for row in rows:
        size = f'{row["bytes"] / 1e6:.1f} MB' if 'bytes' in row else f'{row["seconds"] * 1e3:.1f} ms'
        quartiles = f'{row["low"]:.3f} to {row["high"]:.3f}' if 'low' in row else ''
        table.add_row(row['work'], row['network'], size, f'{row["ratio"]:.3f}', quartiles)
    Console(width=max(110, Console().width)).print(table)


@errors_in_a_sentence()
@own_files()
def main() -> None:
    args = parse_args()
    cfg = load_config(args.config)
    if args.plot:
        found = growth(cfg, args)
        draw_growth(found, args.plot)
        print(f'wrote {args.plot}')
    else:
        found = Benchmark(cfg, args).everything()
        print_table(found, f'{Path(args.config).stem} on {args.device}')
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == '__main__':
    main()
