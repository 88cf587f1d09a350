"""Start a network of repeated kernels from a trained small one: the kernels of the small network become those that are
repeated.

Repeated within each layer, the batch norms and the linear layer of the small network are repeated with them: with
plain copies (linear), and with signs that are all plus as at the start (bireal), the large network computes what the
small one does, in eval mode. Plain copies get equal gradients: training does not tell them apart. A network of plain
copies becomes one of the same width with another transform in the same way.

Repeated between layers, as in the VGGs, the layers that the small network does not have begin as the config has them.
"""

import argparse

from mmengine.config import DictAction

from mmshared.cli import check_files, errors_in_a_sentence, output_file
from mmshared.convert.rescale import rescale
from mmshared.engine.build import build_model
from mmshared.engine.checkpoint import load_checkpoint_file, save_checkpoint, state_dict_of
from mmshared.engine.config import load_config, merge_options


@errors_in_a_sentence()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='the config of the large network, of repeated kernels')
    parser.add_argument('small', help='the checkpoint of the small network')
    parser.add_argument('out', type=output_file, help='the checkpoint to write')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={}, help='changes of the config')
    args = parser.parse_args()
    check_files(parser, args.config, args.small, args.out)
    cfg = load_config(args.config)
    merge_options(cfg, args.cfg_options)
    state_dict, fresh = rescale(build_model(cfg), state_dict_of(load_checkpoint_file(args.small)))
    save_checkpoint(dict(state_dict=state_dict), args.out)
    if fresh:
        print(f'as the config begins: {", ".join(fresh)}')
    print(f'wrote {args.out}: train it with --cfg-options load_from={args.out}')


if __name__ == '__main__':
    main()
