"""Convert a checkpoint of a shared network to one of the plain network that it equals.

Writes the checkpoint and, beside it, the stock config that it loads into with strict=True, without mmshared: a
detector only takes mmcv's operators from it, where mmcv has no compiled ones. The outputs of both networks on random
images, of detectors the maps of the neck, are compared first; if they differ, nothing is written.
"""

import argparse
from importlib.util import find_spec

from mmshared_cli import add_cfg_options, add_shape, check_files, errors_in_a_sentence, output_file, own_files


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='the config of the shared network')
    parser.add_argument('checkpoint', help='its checkpoint')
    parser.add_argument(
        'out',
        type=output_file,
        help='the checkpoint to write, as safetensors if its name ends in .safetensors; the config of the plain '
        'network gets the same name',
    )
    parser.add_argument(
        '--onnx',
        type=output_file,
        metavar='FILE',
        help='also write the classifier, or the whole detector with its NMS, as ONNX, and check it',
    )
    parser.add_argument('--backbone', action='store_true', help="write only the detector's backbone as ONNX")
    parser.add_argument(
        '--keep-shared',
        action='store_true',
        help='store each bank once: in the ONNX model, which computes its weights when it is loaded and runs plain, '
        'and in safetensors, which load into the shared network or are unpacked into the plain one',
    )
    rounding = parser.add_mutually_exclusive_group()
    for bits in (8, 4):
        rounding.add_argument(
            f'--int{bits}',
            dest='bits',
            action='store_const',
            const=bits,
            help=f'store weights as int{bits} in the ONNX model' + ' and in safetensors' * (bits == 8),
        )
    rounding.add_argument('--half', action='store_true', help='store weights in half precision in safetensors')
    parser.add_argument('--torchvision', action='store_true', help="write the keys of torchvision's ResNets")
    add_cfg_options(parser)
    add_shape(parser)
    args = parser.parse_args()
    args.safetensors = args.out.suffix == '.safetensors'
    files = {'--onnx': args.onnx, 'an output .safetensors': args.safetensors}
    onnx, safetensors = files
    for option, given, needed in (
        ('--keep-shared', args.keep_shared, (onnx, safetensors)),
        ('--int8', args.bits == 8, (onnx, safetensors)),
        ('--int4', args.bits == 4, (onnx,)),
        ('--backbone', args.backbone, (onnx,)),
        ('--half', args.half, (safetensors,)),
    ):
        if given and not any(files[each] for each in needed):
            parser.error(f'{option} needs {" or ".join(needed)}')
    args.form = 'half' if args.half else 'int8' if args.bits == 8 else None
    args.packed = args.safetensors and bool(args.keep_shared or args.form)
    if args.packed and args.torchvision:
        parser.error('--torchvision writes a plain network in full: leave out --keep-shared, --int8 and --half')
    args.out_config = args.out.with_suffix('.py')
    check_files(parser, args.config, args.checkpoint, args.out, args.out_config, args.onnx)
    for name, wanted, packages in (
        ('--onnx', args.onnx, ('onnx', 'onnxruntime', 'onnxscript')),
        (args.out, args.safetensors, ('safetensors',)),
    ):
        if wanted and not all(map(find_spec, packages)):
            parser.error(f"{name} needs packages that are not installed: pip install 'mmshared[export]'")
    return args


@errors_in_a_sentence()
@own_files()
def main() -> None:
    args = parse_args()
    import torch

    from mmshared.convert.fold import fold_model, save_safetensors, to_torchvision
    from mmshared.convert.onnx import export_onnx
    from mmshared.convert.packing import pack
    from mmshared.engine.build import feature_maps, inner, load_model
    from mmshared.engine.checkpoint import converted, save_checkpoint
    from mmshared.engine.config import dump_config, load_config
    from mmshared.sharing.deployment import relative_difference

    cfg = load_config(args.config, args.cfg_options)
    shared = load_model(cfg, args.checkpoint)
    images = torch.randn(2, *args.shape, generator=torch.Generator().manual_seed(0))
    stock, plain, difference = fold_model(cfg, shared, images)
    print(f'relative difference of the outputs: {difference:.2g}')
    state_dict = to_torchvision(plain) if args.torchvision else plain.state_dict()
    if args.onnx:  # first: if it fails, nothing was written
        networks = map(inner, (shared, plain)) if args.backbone else (shared, plain)
        for line in export_onnx(*networks, args.onnx, args.shape, args.keep_shared, args.bits):
            print(line)
    if args.packed:
        packed = pack(shared if args.keep_shared else plain, args.out, args.form)
        difference = relative_difference(feature_maps(packed, images), feature_maps(plain, images))
        print(f'relative difference of the outputs as stored: {difference:.2g}')
    elif args.safetensors:
        save_safetensors(state_dict, args.out)
    else:
        save_checkpoint(state_dict if args.torchvision else converted(state_dict, args.checkpoint, stock), args.out)
    print(f'wrote {args.out} ({args.out.stat().st_size / 1e6:.1f} MB)')
    if not args.torchvision:
        dump_config(stock, args.out_config)
        own = 'mmshared' in stock.get('custom_imports', {}).get('imports', [])
        print(f'wrote {args.out_config}' + (', whose network is one of mmshared' if own else ''))


if __name__ == '__main__':
    main()
