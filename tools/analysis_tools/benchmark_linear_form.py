"""Time the fast form of plain copies (linear) against the direct one.

Measures multiply-adds, training step and inference, with both forms of each network alternating in one process. Ratios
are medians over the rounds, with their quartiles.
"""

import argparse
import copy
from functools import partial
from pathlib import Path

from mmshared_cli import add_cfg_options, add_shape, errors_in_a_sentence


@errors_in_a_sentence()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('configs', nargs='+', metavar='config', help='configs of networks with plain copies')
    parser.add_argument('--batch', type=int, default=8, help='batch size (default: 8)')
    parser.add_argument('--rounds', type=int, default=7, help='number of rounds (default: 7)')
    add_shape(parser)
    add_cfg_options(parser)
    args = parser.parse_args()
    if min(args.batch, args.rounds) < 1:
        parser.error('--batch and --rounds must be 1 or more')
    import torch

    from mmshared import KernelTransform, SharingError
    from mmshared.analysis.complexity import count_multiply_adds
    from mmshared.analysis.speed import Step, inference_of, time_in_turn
    from mmshared.engine.build import build_model
    from mmshared.engine.config import load_config
    from mmshared.sharing.kernel_transforms import Linear

    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    images = torch.randn(args.batch, *args.shape, device=device)
    for config in args.configs:
        fast = build_model(load_config(config, args.cfg_options)).to(device)
        direct = copy.deepcopy(fast)
        copies = [module for module in direct.modules() if type(module) is Linear and module.small != module.shape]
        if not copies:
            raise SharingError(f'The network of {config} has no plain copies: give one whose transform is linear.')
        for transform in copies:
            transform.compute = partial(KernelTransform.compute, transform)
        networks = dict(direct=direct, fast=fast)
        cells = [f'{count_multiply_adds(network, args.shape)[""]:,}' for network in networks.values()]
        for work in (Step, inference_of):
            works = {name: work(network, images) for name, network in networks.items()}
            timing = time_in_turn(works, args.rounds, device)['fast']
            cells.append(f'{timing.ratio:.2f} ({timing.low:.2f} to {timing.high:.2f})')
        if config == args.configs[0]:
            print('| network | multiply-adds, direct | fast | training step | inference |')
            print('| --- | ---: | ---: | ---: | ---: |')
        print(f'| {" | ".join([Path(config).stem, *cells])} |', flush=True)


if __name__ == '__main__':
    main()
