"""Prepare a training checkpoint for publishing: keep only weights and meta data.

Like mmdet's tool of this name, puts the first digits of the file's SHA-256 into its name.
"""

import argparse
import hashlib
import io

from mmshared_cli import errors_in_a_sentence, output_file, own_files


@errors_in_a_sentence()
@own_files()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('in_file', help='the checkpoint')
    parser.add_argument('out_file', type=output_file, help='the name of the checkpoint to write, without the digits')
    parser.add_argument(
        '--save-keys', nargs='+', default=['meta', 'state_dict'], help='what to keep (default: meta state_dict)'
    )
    args = parser.parse_args()
    import torch

    from mmshared import SharingError
    from mmshared.engine.checkpoint import load_checkpoint_file, written_whole

    checkpoint = load_checkpoint_file(args.in_file)
    missing = [key for key in args.save_keys if key not in checkpoint]
    if missing:
        there = ', '.join([*checkpoint][:5])
        raise SharingError(
            f'{args.in_file} has no {", ".join(missing)}: it holds {there}. Name what to keep with --save-keys.'
        )
    dropped = [key for key in checkpoint if key not in args.save_keys]
    if dropped:
        print(f'left out: {", ".join(dropped)}')
    file = io.BytesIO()
    torch.save({key: checkpoint[key] for key in args.save_keys}, file)
    digits = hashlib.sha256(file.getvalue()).hexdigest()[:8]
    out = args.out_file.with_name(f'{args.out_file.name.removesuffix(".pth")}-{digits}.pth')
    with written_whole(out) as partial:
        partial.write_bytes(file.getvalue())
    print(f'wrote {out} ({out.stat().st_size / 1e6:.1f} MB)')


if __name__ == '__main__':
    main()
