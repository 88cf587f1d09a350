"""Draw how alike the layers of each template bank in a checkpoint are, as heat maps.

Also prints the groups of layers that would share a kernel in loops.
"""

import argparse

from mmshared_cli import add_cfg_options, add_threshold, errors_in_a_sentence, output_image, own_files


@errors_in_a_sentence()
@own_files()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='the config of the checkpoint')
    parser.add_argument('checkpoint', help='the checkpoint')
    parser.add_argument(
        '--out', type=output_image, default='layer_similarity.png', help='default: layer_similarity.png'
    )
    add_threshold(parser)
    add_cfg_options(parser)
    args = parser.parse_args()
    import torch

    from mmshared import SharingError, layer_similarity
    from mmshared.analysis.plots import draw_similarities
    from mmshared.convert.loops import similar_layers
    from mmshared.engine.build import load_model
    from mmshared.engine.config import load_config
    from mmshared.hooks import template_banks

    model = load_model(load_config(args.config, args.cfg_options), args.checkpoint)
    if not template_banks(model):
        raise SharingError('The model of this config has no TemplateBank.')
    with torch.no_grad():
        similarities = {title: layer_similarity(bank) for title, bank in template_banks(model).items()}
    layers = {
        title: [name.removeprefix(f'{bank.stage}.') for name in bank.names]
        for title, bank in template_banks(model).items()
    }
    draw_similarities(similarities, layers, args.out)
    for title, similarity in similarities.items():
        pairs = similarity[tuple(torch.triu_indices(*similarity.shape, 1))]
        print(f'{title}: mean similarity {pairs.mean():.3f}, largest {pairs.max():.3f}')
        groups = similar_layers(similarity, args.threshold)
        for group in range(max(groups) + 1):
            members = [layer for layer, number in zip(layers[title], groups) if number == group]
            if len(members) > 1:
                print(f'  above {args.threshold:g}: {" ".join(members)}')
    print(f'wrote {args.out}')


if __name__ == '__main__':
    main()
