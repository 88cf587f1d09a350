"""Write a small detection data set of handwritten digits, in COCO and in VOC layout.

The digits are the real ones in scikit-learn (8x8 pixels, 1,797 of them), enlarged to several sizes and pasted on
shaded, noisy backgrounds. Training and validation scenes use different digits. The same seed gives the same bytes.
"""

import argparse
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

import numpy as np
from PIL import Image
from tqdm import tqdm

from mmshared_cli import errors_in_a_sentence, own_files

CLASSES = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
VAL_SHARE = 0.2  # of the digits, used only for the validation scenes

Box = tuple[int, int, int, int]  # x, y, width, height in pixels


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('out', type=Path, nargs='?', default=Path('data/digits'), help='the folder to write')
    parser.add_argument('--train', type=int, default=200, help='number of training scenes')
    parser.add_argument('--val', type=int, default=50, help='number of validation scenes')
    parser.add_argument('--size', type=int, default=160, help='width and height of a scene in pixels')
    parser.add_argument(
        '--digits', type=int, nargs=2, default=(3, 6), metavar=('FEWEST', 'MOST'), help='digits per scene'
    )
    parser.add_argument(
        '--digit-size', type=int, nargs=2, default=(24, 64), metavar=('LEAST', 'MOST'), help='digit size in pixels'
    )
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    if args.digit_size[1] > args.size or args.digit_size[0] < 8 or args.digit_size[0] > args.digit_size[1]:
        parser.error(
            f'--digit-size {args.digit_size[0]} {args.digit_size[1]}: give two sizes in increasing order '
            f'between 8 and the {args.size} pixels of a scene'
        )
    if args.digits[0] < 1 or args.digits[0] > args.digits[1] or min(args.train, args.val) < 1 or args.seed < 0:
        parser.error(
            'give at least one scene of each kind and one digit per scene, FEWEST no more than MOST, and no '
            'seed below 0'
        )
    return args


def ground(size: int, rng: np.random.Generator) -> np.ndarray:
    """A shaded, noisy background, (size, size, 3) in 0..1."""
    y, x = np.mgrid[:size, :size] / size
    corners = rng.uniform(0.3, 0.8, (4, 3))
    shade = sum(
        weight[..., None] * corner
        for weight, corner in zip([(1 - y) * (1 - x), (1 - y) * x, y * (1 - x), y * x], corners)
    )
    return shade + rng.normal(0, 0.04, shade.shape)


def overlap(a: Box, b: Box) -> bool:
    return a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]


def scene(
    digits: np.ndarray, labels: np.ndarray, args: argparse.Namespace, rng: np.random.Generator
) -> tuple[Image.Image, list[tuple[int, Box]]]:
    """One scene: the image, and the label and box of each digit in it. Boxes do not overlap."""
    canvas, found = ground(args.size, rng), []
    for _ in range(rng.integers(args.digits[0], args.digits[1] + 1)):
        index, side = rng.integers(len(digits)), int(rng.integers(args.digit_size[0], args.digit_size[1] + 1))
        small = Image.fromarray((digits[index] * (255 / 16)).astype(np.uint8))
        ink = np.asarray(small.resize((side, side), Image.BICUBIC)) / 255.0
        rows, columns = np.flatnonzero((ink > 0.3).any(1)), np.flatnonzero((ink > 0.3).any(0))
        ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        height, width = ink.shape
        colour = rng.choice([0.0, 1.0]) + rng.uniform(-0.15, 0.15, 3)
        for _ in range(50):  # places to try; in a crowded scene a digit is left out
            x, y = int(rng.integers(args.size - width + 1)), int(rng.integers(args.size - height + 1))
            if not any(overlap((x, y, width, height), box) for _, box in found):
                patch = canvas[y : y + height, x : x + width]
                patch += ink[..., None] * (colour - patch)
                found.append((int(labels[index]), (x, y, width, height)))
                break
    return Image.fromarray((canvas.clip(0, 1) * 255).astype(np.uint8)), found


def voc_annotation(name: str, size: int, boxes: list[tuple[int, Box]]) -> ElementTree.Element:
    """A scene's annotation in VOC's XML, with inclusive corners counted from 1."""
    root = ElementTree.Element('annotation')
    ElementTree.SubElement(root, 'filename').text = name
    for key, value in dict(width=size, height=size, depth=3).items():
        parent = root.find('size') if root.find('size') is not None else ElementTree.SubElement(root, 'size')
        ElementTree.SubElement(parent, key).text = str(value)
    for label, (x, y, width, height) in boxes:
        item = ElementTree.SubElement(root, 'object')
        ElementTree.SubElement(item, 'name').text = CLASSES[label]
        ElementTree.SubElement(item, 'difficult').text = '0'
        box = ElementTree.SubElement(item, 'bndbox')
        for key, value in dict(xmin=x + 1, ymin=y + 1, xmax=x + width, ymax=y + height).items():
            ElementTree.SubElement(box, key).text = str(value)
    return root


def write(out: Path, args: argparse.Namespace) -> None:
    from sklearn.datasets import load_digits  # not at the top: --help should not wait for it

    for folder in ('JPEGImages', 'Annotations', 'ImageSets/Main'):
        (out / folder).mkdir(parents=True)
    digits, rng = load_digits(), np.random.default_rng(args.seed)
    order = rng.permutation(len(digits.target))
    held_out = int(len(order) * VAL_SHARE)
    number = 0
    for split, chosen, count in (('train', order[held_out:], args.train), ('val', order[:held_out], args.val)):
        coco = dict(
            images=[],
            annotations=[],
            categories=[dict(id=i + 1, name=name, supercategory='digit') for i, name in enumerate(CLASSES)],
        )
        names = []
        for _ in tqdm(range(count), desc=split, unit='scene', disable=None):
            number += 1
            name = f'{number:06d}'
            image, boxes = scene(digits.images[chosen], digits.target[chosen], args, rng)
            image.save(out / 'JPEGImages' / f'{name}.jpg', quality=95)
            names.append(name)
            coco['images'].append(dict(id=number, file_name=f'{name}.jpg', width=args.size, height=args.size))
            for label, (x, y, width, height) in boxes:
                coco['annotations'].append(
                    dict(
                        id=len(coco['annotations']) + 1,
                        image_id=number,
                        category_id=label + 1,
                        bbox=[x, y, width, height],
                        area=width * height,
                        iscrowd=0,
                    )
                )
            tree = ElementTree.ElementTree(voc_annotation(f'{name}.jpg', args.size, boxes))
            tree.write(out / 'Annotations' / f'{name}.xml')
        (out / f'instances_{split}.json').write_text(json.dumps(coco))
        (out / 'ImageSets' / 'Main' / f'{split}.txt').write_text('\n'.join(names) + '\n')


@errors_in_a_sentence()
@own_files()
def main() -> None:
    args = parse_args()
    settings = json.dumps({key: value for key, value in vars(args).items() if key != 'out'}, indent=1)
    record = args.out / 'settings.json'
    if record.is_file() and record.read_text() == settings:
        print(f'{args.out} exists already, made with the same settings.')
        return
    if args.out.exists():
        sys.exit(f'{args.out} exists already, made with other settings: name another folder or remove it.')
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=args.out.parent) as folder:  # an interrupted run leaves nothing that looks complete
        partial = Path(folder) / 'digits'
        write(partial, args)
        (partial / 'settings.json').write_text(settings)
        partial.rename(args.out)
    print(f'{args.train} training and {args.val} validation scenes of {args.size}x{args.size} pixels in {args.out}')


if __name__ == '__main__':
    main()
