"""Draw the Gram matrices of the filter bases in a checkpoint as heat maps.

Orthonormal bases give the identity.
"""

import argparse

from mmshared_cli import add_cfg_options, errors_in_a_sentence, output_image, own_files


@errors_in_a_sentence()
@own_files()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='the config of the checkpoint')
    parser.add_argument('checkpoint', help='the checkpoint')
    parser.add_argument('--out', type=output_image, default='gram_matrices.png', help='default: gram_matrices.png')
    add_cfg_options(parser)
    args = parser.parse_args()
    from mmshared import SharingError
    from mmshared.analysis.plots import draw_gram_matrices
    from mmshared.engine.build import load_model
    from mmshared.engine.config import load_config
    from mmshared.hooks import basis_health, basis_spaces

    spaces = basis_spaces(load_model(load_config(args.config, args.cfg_options), args.checkpoint))
    if not spaces:
        raise SharingError('The model of this config has no filter basis.')
    draw_gram_matrices(spaces, args.out)
    for name, filters in spaces.items():
        print(f'{name}: {len(filters)} filters,', ', '.join(f'{k} {v:.3g}' for k, v in basis_health(filters).items()))
    print(f'wrote {args.out}')


if __name__ == '__main__':
    main()
