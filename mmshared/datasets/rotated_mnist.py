"""Rotated MNIST (Larochelle et al., 2007): handwritten digits, each rotated by its own angle."""

import warnings
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from mmpretrain.datasets import BaseDataset
from mmpretrain.datasets.categories import MNIST_CATEGORITES
from mmpretrain.datasets.mnist import read_sn3_pascalvincent_tensor
from mmpretrain.registry import DATASETS
from torch import Tensor

from ..sharing import SharingError

IDX_FILES = [(f'{part}-images-idx3-ubyte', f'{part}-labels-idx1-ubyte') for part in ('train', 't10k')]


@DATASETS.register_module()
class RotatedMNIST(BaseDataset):
    """12,000 training and 50,000 test images of 28x28 pixels, made from MNIST or read from the original files.

    If ``data_root`` has the original files, they are read: each line has 784 values from 0 to 1, row by row, and the
    label. Otherwise the 70,000 images of MNIST, its training images before its test images, are shuffled, and each
    gets an angle, uniform over the circle, all with one fixed seed. The first 12,000 are for training, the next 50,000
    for test. They are rotated counterclockwise about their centre with bilinear interpolation. For a part of a split
    use ``indices`` of mmengine's data sets.

    Args:
        data_root (str): The folder of ``train-images-idx3-ubyte`` and the other three files of MNIST, gzipped (.gz)
            or not, or of ``mnist_all_rotation_normalized_float_train_valid.amat`` and ``..._test.amat``.
        split (str): ``train`` or ``test``.
        **kwargs: Further arguments of mmpretrain's ``BaseDataset``.

    Raises:
        SharingError: If a file is missing or does not match its name, or if there is no such split.
    """

    METAINFO = {'classes': MNIST_CATEGORITES}
    sizes = dict(train=12_000, test=50_000)
    originals = dict(
        train='mnist_all_rotation_normalized_float_train_valid.amat',
        test='mnist_all_rotation_normalized_float_test.amat',
    )

    def __init__(self, data_root: str, split: str, **kwargs):
        if split not in self.sizes:
            raise SharingError(f"RotatedMNIST has no split '{split}': it has train and test.")
        self.split = split
        super().__init__(ann_file='', data_root=data_root, **kwargs)

    def load_data_list(self) -> list[dict]:
        root = Path(self.data_root).expanduser()
        there = [name for name in self.originals.values() if (root / name).is_file()]
        if len(there) == 1:
            # A split made from MNIST would have some of the same digits.
            raise SharingError(
                f'{root} has {there[0]} but not the other file of the original rotated MNIST: put both '
                'there, or remove it.'
            )
        images, labels = self._read_original(root) if there else self._rotate(root)
        return [dict(img=image, gt_label=int(label)) for image, label in zip(images, labels)]

    def _read_original(self, root: Path) -> tuple[np.ndarray, np.ndarray]:
        path = root / self.originals[self.split]
        try:
            table = np.loadtxt(path, dtype=np.float32, ndmin=2)  # (N, 785)
        except ValueError as error:
            raise SharingError(f'{path} cannot be read: {str(error).splitlines()[0]}') from None
        if table.shape[1] != 785:
            raise SharingError(f'{path} has {table.shape[1]} values in a line: rotated MNIST has 784 and a label.')
        if len(table) < self.sizes[self.split]:
            raise SharingError(
                f'{path} has {len(table)} lines, and the split has {self.sizes[self.split]} images: '
                'it was cut off, copy it again.'
            )
        images, labels = (table[:, :-1].reshape(-1, 28, 28) * 255).round(), table[:, -1]
        if not ((images >= 0) & (images <= 255)).all():
            raise SharingError(f'{path} has values of images that are not from 0 to 1.')
        if not np.isin(labels, range(10)).all():
            raise SharingError(f'{path} has labels that are not digits.')
        return images.astype(np.uint8), labels

    def _rotate(self, root: Path) -> tuple[np.ndarray, np.ndarray]:
        parts = [[_read_idx(root, name) for name in names] for names in IDX_FILES]
        for (images, labels), names in zip(parts, IDX_FILES):
            if images.shape != (len(labels), 28, 28) or labels.dim() != 1:
                raise SharingError(
                    f'{root} has {" and ".join(names)} that do not belong together: copy or download them again.'
                )
        images, labels = (torch.cat(part) for part in zip(*parts))  # (M, 28, 28), (M, )
        random = np.random.default_rng(0)
        order, angles = random.permutation(len(images)), random.uniform(0, 360, len(images))
        start = 0 if self.split == 'train' else self.sizes['train']
        stop = start + self.sizes[self.split]
        if len(order) < stop:
            raise SharingError(f'The MNIST files in {root} hold {len(order)} images: MNIST has 70,000.')
        chosen = order[start:stop]
        return rotate(images[chosen], torch.from_numpy(angles[start:stop])).numpy(), labels[chosen].numpy()


def _read_idx(root: Path, name: str) -> Tensor:
    """A file of MNIST, gzipped or not."""
    for path in (root / name, root / f'{name}.gz'):
        if path.is_file():
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings('ignore', message='The given NumPy array is not writable')
                    return read_sn3_pascalvincent_tensor(str(path))
            except (AssertionError, EOFError, KeyError, OSError, RuntimeError, ValueError, zlib.error):
                raise SharingError(f'{path} is damaged or not a file of MNIST: copy or download it again.') from None
    raise SharingError(
        f'Rotated MNIST is made from the four files of MNIST, and {root} has no {name} or {name}.gz: put '
        'them there, or name their folder with the option data_root=FOLDER.'
    )


def rotate(images: Tensor, angles: Tensor) -> Tensor:
    """Rotate each image about its centre with bilinear interpolation, filled with black.

    Args:
        images (Tensor): (N, H, W) of uint8; H = W.
        angles (Tensor): (N, ), counterclockwise, in degrees.
    """
    turned = []
    for some, radians in zip(images.split(1000), angles.deg2rad().float().split(1000)):
        cos, sin, zero = radians.cos(), radians.sin(), torch.zeros_like(radians)
        # The pixel at (x, y), y downwards, is read from the matrix times (x, y, 1).
        matrices = torch.stack([cos, -sin, zero, sin, cos, zero], 1).view(-1, 2, 3)
        grid = F.affine_grid(matrices, (len(some), 1, *some.shape[1:]), align_corners=False)
        turned.append(F.grid_sample(some[:, None].float(), grid, align_corners=False)[:, 0].round().byte())
    return torch.cat(turned)
