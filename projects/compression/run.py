"""Compress a network for the tables of README.md, and keep the numbers.

A run does what `tools/compress.py` does with the same options. It can also plan in two other ways, for comparison:
`uniform` keeps the same share of every group, and `low-rank` gives every layer a basis of its own. Its numbers are
written to `results`, in a file named by the config, the method, its share, steps and epochs, and the seed; a run whose
file is there is skipped. All runs of one network and one plan share a work dir, in which nothing is made twice.
"""

import json
from functools import cached_property
from itertools import product
from pathlib import Path

from results import Result, add_compression, as_onnx, image_shape, parser_of, read_config

from mmshared.compress.pipeline import Budget, Compression
from mmshared.compress.plan import Group, Option, find_groups, whole_groups
from mmshared.engine.build import load_model
from mmshared.engine.checkpoint import write_text
from mmshared.engine.config import load_config
from mmshared_cli import errors_in_a_sentence, stdout_if


class Run(Compression):
    """Compression whose fine-tuning has a seed."""

    seed = 0

    def fine_tune(self, files, cfg, checkpoint):
        cfg = cfg.copy()
        cfg.randomness = dict(seed=self.seed)
        return super().fine_tune(files, cfg, checkpoint)


class LowRank(Run):
    """The same planner without sharing."""

    @cached_property
    def groups(self) -> list[Group]:
        return [each for each in find_groups(self.model) if len(each.layers) == 1]


class Uniform(Run):
    """The same share of every group: what minimises the sum of size / share under the budget."""

    @cached_property
    def groups(self) -> list[Group]:
        return whole_groups(find_groups(self.model))

    def write_options(self, path: Path) -> None:
        options = []
        for group in self.groups:
            plain = group.size.parameters
            costs = [plain * (plain / option.size.parameters - 1) for option in group.ladders[0]]
            found = [option._replace(cost=cost) for option, cost in zip(group.ladders[0], costs)]
            options.append([Option(None, group.size, 0.0), *found])
        write_text(path, json.dumps(options))


METHODS = dict(planned=Run, uniform=Uniform, **{'low-rank': LowRank})


@errors_in_a_sentence()
def main() -> None:
    parser = parser_of(__doc__, 'work_dirs/compression')
    add_compression(parser)
    parser.add_argument('--plan', nargs='+', choices=METHODS, default=['planned'])
    parser.add_argument('--steps', nargs='+', type=int, default=[60], help='of each block before any training')
    args = parser.parse_args()
    cfg, table = read_config(args), Path(args.config).stem
    for method, keep, steps, seed in product(args.plan, args.keep, args.steps, args.seeds):
        result = Result(method, keep, steps, args.epochs, seed)
        if result.is_there(table):
            continue
        cfg.work_dir = str(args.work_dir / table / method)
        base = None if args.cfg_options else args.config
        run = METHODS[method](cfg, base, args.checkpoint, Budget(keep, 'kept'), steps=steps, epochs=args.epochs)
        run.seed = seed
        with stdout_if(False):  # the logs are in the work dir
            page = run.run()
            report, folder = json.loads(page.with_suffix('.json').read_text()), page.parent
            networks = {
                name: {key: report[name][key] for key in ('parameters', 'bytes', 'multiply_adds', 'metrics')}
                for name in ('plain', 'converted', 'finetuned')
                if name in report
            }
            last = [*networks][-1]
            shared = load_model(load_config(str(folder / 'compressed.py')), str(folder / f'{last}.pth'))
            networks |= as_onnx(shared, cfg, folder, image_shape(shared, cfg), networks[last]['metrics'])
        result.write(table, networks)


if __name__ == '__main__':
    main()
