"""Train a network from scratch, and keep the numbers beside those of run.py.

The network is that of the config with the options. An interrupted training goes on; with other settings another one
begins. One whose numbers are there, under its name, epochs and seed, is skipped.
"""

import copy
from pathlib import Path

import torch
from results import Result, as_onnx, evaluated, image_shape, parser_of, read_config

from mmshared.compress.files import digest_of
from mmshared.engine.runner import SharingRunner
from mmshared_cli import errors_in_a_sentence


@errors_in_a_sentence()
def main() -> None:
    parser = parser_of(__doc__, 'work_dirs/scratch')
    parser.add_argument('--name', required=True, help='of the network in the tables')
    args = parser.parse_args()
    cfg = read_config(args)
    data = Path(args.config).stem.rpartition('_')[2]
    for seed in args.seeds:
        result = Result(args.name, 1, 0, cfg.train_cfg.max_epochs, seed)
        if result.is_there(data):
            continue
        training, folder = copy.deepcopy(cfg), args.work_dir / data / f'{result.name}_{digest_of([cfg.to_dict()])[:8]}'
        training.merge_from_dict(dict(randomness=dict(seed=seed), work_dir=str(folder), resume=True))
        training.val_cfg = training.val_dataloader = training.val_evaluator = None
        runner = SharingRunner.from_cfg(training)
        runner.model.to(memory_format=torch.channels_last)  # a step on a CPU is shorter by a seventh
        network = runner.train()
        shape = image_shape(network, cfg)
        networks = dict(trained=evaluated(network, cfg, folder, shape))
        networks |= as_onnx(network, cfg, folder, shape, networks['trained']['metrics'])
        result.write(data, networks)


if __name__ == '__main__':
    main()
