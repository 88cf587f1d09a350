"""Start a network of repeated kernels from the kernels of a trained small network.

If kernels repeat within each layer, the batch norms and the linear layer of the small network are repeated too. With
plain copies (linear), and with signs that all start as plus (bireal), the large network computes the same as the small
one in eval mode. Plain copies get equal gradients, so training does not tell them apart. A network of plain copies
becomes one of the same width with another transform in the same way.

If kernels repeat between layers, as in the VGGs, the layers that the small network lacks start as in the config.
"""

import argparse

from mmshared_cli import add_cfg_options, check_files, errors_in_a_sentence, output_checkpoint


@errors_in_a_sentence()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='the config of the large network, with repeated kernels')
    parser.add_argument('small', help='the checkpoint of the small network')
    parser.add_argument('out', type=output_checkpoint, help='the checkpoint to write')
    add_cfg_options(parser)
    args = parser.parse_args()
    check_files(parser, args.config, args.small, args.out)
    from mmshared.convert.rescale import rescale
    from mmshared.engine.build import build_model
    from mmshared.engine.checkpoint import load_checkpoint_file, save_checkpoint, state_dict_of
    from mmshared.engine.config import load_config

    cfg = load_config(args.config, args.cfg_options)
    state_dict, fresh = rescale(build_model(cfg), state_dict_of(load_checkpoint_file(args.small)))
    save_checkpoint(dict(state_dict=state_dict), args.out)
    if fresh:
        print(f'started as in the config: {", ".join(fresh)}')
    print(f'wrote {args.out}: train it with --cfg-options load_from={args.out}')


if __name__ == '__main__':
    main()
