"""Rotated MNIST, the networks that are equivariant to rotations, and the share of what equivariance gains."""

import copy
import functools
import gzip
import math
import sys

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import MODELS
from mmengine.runner.checkpoint import load_state_dict
from mmpretrain.registry import DATASETS
from PIL import Image
from torch import nn

from helpers import ROOT, WITHOUT_ESCNN, randomise_norms
from mmshared import RotatedMNIST, SharingError
from mmshared.analysis.complexity import count_multiply_adds, parameter_count
from mmshared.datasets.rotated_mnist import rotate
from mmshared.engine.build import build_model, load_model
from mmshared.sharing.deployment import relative_difference

pytestmark = pytest.mark.slow  # whole data sets

CONFIG = ROOT / 'configs/repeatnet/steerable-c4_b128_rotmnist.py'
FILES = ['train-images-idx3-ubyte', 'train-labels-idx1-ubyte', 't10k-images-idx3-ubyte', 't10k-labels-idx1-ubyte']
AMAT = ['mnist_all_rotation_normalized_float_train_valid.amat', 'mnist_all_rotation_normalized_float_test.amat']


@pytest.fixture
def digits():
    """40 images, smooth, with black corners."""
    y, x = np.mgrid[:28, :28] - 13.5
    waves = np.random.default_rng(1).uniform(-0.5, 0.5, (40, 2, 1, 1))
    return ((np.hypot(x, y) < 11) * (127 + 127 * np.sin(waves[:, 0] * x + waves[:, 1] * y))).astype(np.uint8)


@pytest.fixture
def mnist(digits, tmp_path, monkeypatch):
    """A folder with a MNIST of 30 and 10 images, each of a class of its own, of which 12 train and 20 test."""
    monkeypatch.setattr(RotatedMNIST, 'sizes', dict(train=12, test=20))
    for (images, labels), numbers in zip((FILES[:2], FILES[2:]), (range(30), range(30, 40))):
        head = b''.join(n.to_bytes(4, 'big') for n in (2051, len(numbers), 28, 28))
        (tmp_path / images).write_bytes(head + digits[numbers].tobytes())
        (tmp_path / labels).write_bytes(b''.join(n.to_bytes(4, 'big') for n in (2049, len(numbers))) + bytes(numbers))
    return tmp_path


def infos(root, split, **kwargs):
    data = RotatedMNIST(str(root), split, **kwargs)
    return [data.get_data_info(i) for i in range(len(data))]


def test_each_digit_is_turned_by_an_angle_of_its_own_and_is_in_one_split(mnist, digits):
    train, test = infos(mnist, 'train'), infos(mnist, 'test')
    seen = [info['gt_label'] for info in train + test]
    assert (len(train), len(test), len(set(seen))) == (12, 20, 32)
    angles = []
    for info in train + test:
        turned = {
            angle: np.asarray(Image.fromarray(digits[info['gt_label']]).rotate(angle, Image.BILINEAR), int)
            for angle in range(360)
        }
        errors = {angle: np.abs(image - info['img'])[4:24, 4:24].mean() for angle, image in turned.items()}
        angles.append(min(errors, key=errors.get))
        assert errors[angles[-1]] < 2 and info['img'].dtype == np.uint8
    assert len(set(angles)) > 25
    assert all(min(np.abs(np.subtract(angles, centre))) < 45 for centre in (45, 135, 225, 315))


def test_the_images_of_both_parts_of_mnist_are_shuffled(mnist):
    train, test = ([info['gt_label'] for info in infos(mnist, split)] for split in ('train', 'test'))
    for labels in (train, test):
        assert labels != sorted(labels)
        assert min(labels) < 12 and max(labels) >= 32  # of the first and the last images


def test_the_data_set_is_the_same_each_time_gzipped_or_not_and_in_part(mnist):
    first = infos(mnist, 'test')
    for name in FILES:
        (mnist / f'{name}.gz').write_bytes(gzip.compress((mnist / name).read_bytes()))
        (mnist / name).unlink()
    np.random.seed(5), torch.manual_seed(5)
    for again, count in ((infos(mnist, 'test'), 20), (infos(mnist, 'test', indices=7), 7)):
        assert len(again) == count
        assert all((a['img'] == b['img']).all() and a['gt_label'] == b['gt_label'] for a, b in zip(first, again))


def test_images_turn_counterclockwise_about_their_centre(digits):
    images = torch.from_numpy(digits)
    for turns in range(4):
        assert torch.equal(rotate(images, torch.full((40,), 90.0 * turns)), images.rot90(turns, (1, 2)))


def test_the_original_files_are_read_row_after_row(mnist, tmp_path):
    RotatedMNIST.sizes.update(train=2, test=1)
    ramp = np.arange(784) / 783
    for name, labels, gap in zip(AMAT, ([3, 9], [1]), ('   ', ' ')):
        lines = [
            gap + gap.join(f'{value:.6e}' for value in [*(ramp / (1 + i)), label]) for i, label in enumerate(labels)
        ]
        (tmp_path / name).write_text('\n'.join(lines) + '\n')
    train, test = infos(tmp_path, 'train'), infos(tmp_path, 'test')
    assert [info['gt_label'] for info in train + test] == [3, 9, 1]
    assert train[0]['img'].ravel().tolist() == np.round(ramp.astype(np.float32) * 255).tolist()
    assert train[0]['img'].shape == (28, 28) and train[1]['img'].max() == 128
    line = '0.5 ' * 784
    for text, words in [
        ('1 2 3\n', 'has 3 values in a line'),
        ('a b\n', 'cannot be read: could not convert'),
        (f'{line}1\n', 'has 1 lines, and the split has 2 images: it was cut off'),
        (f'{line}1\n' + '2 ' * 784 + '1\n', 'has values of images that are not from 0 to 1'),
        (f'{line}1\n' + 'nan ' * 784 + '1\n', 'has values of images that are not from 0 to 1'),
        (f'{line}1\n{line}10\n', 'has labels that are not digits'),
        (f'{line}1\n{line}0.5\n', 'has labels that are not digits'),
    ]:
        (tmp_path / AMAT[0]).write_text(text)
        with pytest.raises(SharingError, match=words):
            infos(tmp_path, 'train')
    (tmp_path / AMAT[0]).unlink()
    for split in ('train', 'test'):
        with pytest.raises(SharingError, match=f'has {AMAT[1]} but not the other file'):
            infos(tmp_path, split)


def test_what_is_missing_is_named(mnist):
    with pytest.raises(SharingError, match="no split 'val': it has train and test"):
        RotatedMNIST(str(mnist), 'val')
    (mnist / FILES[3]).rename(mnist / 'elsewhere')
    with pytest.raises(SharingError, match=f'made from the four files of MNIST, and {mnist} has no {FILES[3]} or'):
        infos(mnist, 'train')
    for content in (b'', b'not idx', (mnist / 'elsewhere').read_bytes()[:-3]):
        (mnist / FILES[3]).write_bytes(content)
        with pytest.raises(SharingError, match=f'{FILES[3]} is damaged'):
            infos(mnist, 'train')
    (mnist / FILES[3]).unlink()
    packed = bytearray(gzip.compress((mnist / 'elsewhere').read_bytes()))
    packed[12] ^= 0xFF
    (mnist / f'{FILES[3]}.gz').write_bytes(packed)
    with pytest.raises(SharingError, match=f'{FILES[3]}.gz is damaged'):
        infos(mnist, 'train')
    (mnist / FILES[3]).write_bytes((mnist / FILES[1]).read_bytes())
    with pytest.raises(SharingError, match=f'{FILES[2]} and {FILES[3]} that do not belong together'):
        infos(mnist, 'train')
    (mnist / 'elsewhere').rename(mnist / FILES[3])
    RotatedMNIST.sizes['train'] = 30
    with pytest.raises(SharingError, match='hold 40 images: MNIST has 70,000'):
        infos(mnist, 'test')


def test_the_config_gives_images_of_29_pixels_from_0_to_1(mnist, mmpretrain):
    cfg = Config.fromfile(CONFIG)
    assert cfg.train_dataloader.batch_size == 128 and cfg.train_dataloader.drop_last
    preprocess = MODELS.build(dict(cfg.data_preprocessor, type='ClsDataPreprocessor'))
    found = {}
    for loader in ('train', 'val'):
        cfg[f'{loader}_dataloader'].dataset.data_root = str(mnist)
        data = DATASETS.build(cfg[f'{loader}_dataloader'].dataset)
        torch.manual_seed(0)
        batch, again = [preprocess(pseudo_collate([data[i] for i in range(len(data))]))['inputs'] for _ in range(2)]
        assert batch.shape == (len(data), 1, 29, 29) and batch.min() == 0 and 0.9 < batch.max() <= 1
        found[loader] = batch, again, torch.stack([torch.from_numpy(info['img']) for info in infos(mnist, data.split)])
    batch, again, images = found['val']
    assert torch.equal(batch, again) and (batch[:, 0, :28, :28] * 255 - images).abs().max() < 1e-4
    assert not batch[:, :, 28].any() and not batch[:, :, :, 28].any()
    # In training they turn anew each time and lose nothing.
    batch, again, images = found['train']
    light = images.double().sum((1, 2)) / 255
    for turned in (batch, again):
        assert ((turned.double().sum((1, 2, 3)) / light - 1).abs() < 0.03).all()
    assert ((batch - again).abs().mean((1, 2, 3)) > 0.01).all()


def test_the_schedule_is_the_papers(mmpretrain):
    from mmengine.optim import OptimWrapper
    from mmengine.registry import PARAM_SCHEDULERS

    cfg = Config.fromfile(CONFIG)
    options = dict(cfg.optim_wrapper.optimizer)
    assert options.pop('type') == 'Adam' and cfg.train_cfg.max_epochs == 30
    assert cfg.optim_wrapper.clip_grad == dict(max_norm=1) and cfg.randomness == dict(seed=42, deterministic=True)
    wrapper = OptimWrapper(torch.optim.Adam([nn.Parameter(torch.zeros(1))], **options))
    scheduler = PARAM_SCHEDULERS.build(cfg.param_scheduler, default_args=dict(optimizer=wrapper))
    rates = []
    for _ in range(30):
        rates.append(wrapper.get_lr()['lr'][0])
        wrapper.optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([1e-3 * (0.8 ** (epoch - 9) if epoch >= 10 else 1) for epoch in range(30)])


@functools.cache
def built(rotations):
    cfg = Config.fromfile(CONFIG)
    width = {4: 64, 8: 45, 16: 32}[rotations]
    cfg.merge_from_dict({'model.backbone.rotations': rotations, 'model.head.in_channels': width})
    return build_model(cfg)


@pytest.mark.skipif(bool(WITHOUT_ESCNN), reason=WITHOUT_ESCNN)
class TestEquivariance:
    def network(self, rotations, training=False):
        return randomise_norms(copy.deepcopy(built(rotations))).train(training)

    @pytest.mark.parametrize('rotations, training', [(4, False), (4, True), (8, False), (16, False)])
    def test_an_image_turned_by_90_degrees_has_the_same_logits(self, rotations, training):
        model, images = self.network(rotations, training), torch.rand(2, 1, 28, 28)
        with torch.no_grad():
            expected = model(images)
            for turns in (1, 2, 3):
                assert relative_difference([model(images.rot90(turns, (2, 3)))], [expected]) < 1e-4
            # It is no function that hardly looks: a mirrored image is another one.
            assert relative_difference([model(images.flip(3))], [expected]) > 1e-2

    @pytest.mark.parametrize('rotations', [4, 8, 16])
    def test_the_parameters_are_those_of_the_authors_sizes(self, rotations):
        fields = [
            round(scale * width)
            for width in (16, 24, 32, 32, 48, 64)
            for scale in [{4: 1, 8: 0.5 * math.sqrt(2), 16: 0.5}[rotations]]
        ]
        # Circular harmonics up to the frequency 0 in the centre, 2 on the rings around it, 3 on the second of the
        # first conv's: 1 + 5 + 7 + 5 and 1 + 5 + 5 filters, the latter for each difference of two rotations.
        weights = 18 * fields[0] + 11 * rotations * sum(a * b for a, b in zip(fields, fields[1:]))
        head = fields[-1] * 64 + 64 + 2 * 64 + 64 * 10 + 10
        counted = {4: 304_154, 8: 305_098, 16: 301_746}[rotations]
        network = self.network(rotations)
        assert parameter_count(network) == weights + 2 * sum(fields) + head == counted
        # What it does is what a plain network of its channels does.
        widths, channels = (25, 25, 12, 12, 6, 2), [1, *(rotations * field for field in fields)]
        macs = sum(a * b * (7 if a == 1 else 5) ** 2 * width**2 for a, b, width in zip(channels, channels[1:], widths))
        assert count_multiply_adds(network, (1, 29, 29))[''] == macs + fields[-1] * 64 + 64 * 10

    def test_a_checkpoint_holds_what_was_learned_and_loads_in_either_mode(self, tmp_path):
        model, other = self.network(4, True), self.network(4)
        for parameter in other.parameters():
            nn.init.normal_(parameter, std=0.1)
        other.train().eval()
        copy.deepcopy(other)  # what eval mode keeps is no part of a graph
        images, keys = torch.rand(2, 1, 29, 29), set(model.state_dict())
        model.eval()
        assert set(model.state_dict()) == keys and not any(key.endswith('filter') for key in keys)
        with torch.no_grad():
            expected = model(images)
            assert relative_difference([other(images)], [expected]) > 1e-2
            load_state_dict(other, model.state_dict(), strict=True)
            assert torch.equal(other(images), expected)
            torch.save(dict(state_dict=model.state_dict()), tmp_path / 'model.pth')
            assert torch.equal(load_model(Config.fromfile(CONFIG), str(tmp_path / 'model.pth'))(images), expected)


def test_without_escnn_a_steerable_network_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'escnn', None)
    with pytest.raises(SharingError, match='need escnn, which is not installed: pip install --no-deps escnn'):
        build_model(Config.fromfile(CONFIG))
