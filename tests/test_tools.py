"""The tools as a user runs them."""

import json
import os
import re
import signal
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

import helpers
from helpers import ROOT, Forked, loader_options
from mmshared import SharingError
from mmshared.engine.config import check_data, config_path, dotted, moved_root

SCENES = 'dataset_converters/digit_scenes.py'
CONFIG = ROOT / 'configs/small/faster-rcnn_r50-narrow-shared_6e_digits.py'
SMALL = ['--train', '8', '--val', '4', '--size', '64', '--digits', '1', '2', '--digit-size', '16', '32']


def call(tool, *arguments, check=True):
    result = helpers.call(tool, *arguments)
    assert not check or result.returncode == 0, result.stderr
    return result


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data') / 'digits'
    call(SCENES, folder, *SMALL)
    return folder


@pytest.mark.slow
class TestDigitScenes:
    def test_the_same_seed_gives_the_same_bytes(self, digits, tmp_path):
        call(SCENES, tmp_path / 'again', *SMALL)
        call(SCENES, tmp_path / 'other', *SMALL, '--seed', '1')
        names = [path.relative_to(digits) for path in digits.rglob('*') if path.is_file()]
        assert len(names) == 12 * 2 + 5
        assert all((digits / name).read_bytes() == (tmp_path / 'again' / name).read_bytes() for name in names)
        changed = [(digits / name).read_bytes() != (tmp_path / 'other' / name).read_bytes() for name in names]
        assert sum(changed) >= 12 * 2 + 3

    def test_coco_and_voc_say_the_same_boxes_and_they_hold_the_digits(self, digits):
        for split in ('train', 'val'):
            coco = json.loads((digits / f'instances_{split}.json').read_text())
            names = {item['id']: item['name'] for item in coco['categories']}
            listed = (digits / 'ImageSets/Main' / f'{split}.txt').read_text().split()
            assert listed == [image['file_name'][:-4] for image in coco['images']]
            for image in coco['images']:
                own = [item for item in coco['annotations'] if item['image_id'] == image['id']]
                tree = ElementTree.parse(digits / 'Annotations' / f'{image["file_name"][:-4]}.xml')
                corners = [
                    [int(box.find(key).text) for key in ('xmin', 'ymin', 'xmax', 'ymax')]
                    for box in tree.iter('bndbox')
                ]
                assert [name.text for name in tree.findall('object/name')] == [names[i['category_id']] for i in own]
                assert corners == [[x + 1, y + 1, x + w, y + h] for x, y, w, h in (i['bbox'] for i in own)]
                pixels = np.asarray(Image.open(digits / 'JPEGImages' / image['file_name'])).astype(float)
                assert pixels.shape == (image['height'], image['width'], 3)
                inside = np.zeros(pixels.shape[:2], bool)
                for x, y, w, h in (i['bbox'] for i in own):
                    assert x >= 0 and y >= 0 and x + w <= image['width'] and y + h <= image['height']
                    inside[y : y + h, x : x + w] = True
                # Ink is near black or near white, the ground is neither.
                ink = np.abs(pixels.mean(2) - 127) > 110
                assert ink[inside].any() and ink[~inside].mean() < 0.01

    def test_train_and_val_use_different_digits(self, digits, monkeypatch):
        monkeypatch.syspath_prepend((ROOT / 'tools' / SCENES).parent)
        import digit_scenes

        drawn = {}

        def watched(digits, labels, args, rng):
            drawn.setdefault(len(labels), {tuple(digit.ravel()) for digit in digits})
            return Image.new('RGB', (8, 8)), []

        monkeypatch.setattr(digit_scenes, 'scene', watched)
        monkeypatch.setattr(sys, 'argv', ['digit_scenes.py', str(digits.parent / 'watched'), *SMALL])
        digit_scenes.main()
        train, val = sorted(drawn.values(), key=len, reverse=True)
        assert len(train) + len(val) > 1700 and len(train & val) <= 1  # two of the 1,797 are alike to the pixel

    def test_what_is_there_is_not_overwritten(self, digits, tmp_path):
        assert 'exists already, made with the same settings' in call(SCENES, digits, *SMALL).stdout
        result = call(SCENES, digits, *SMALL, '--seed', '3', check=False)
        assert result.returncode == 1 and 'name another folder or remove it' in result.stderr
        own = tmp_path / 'new.partial/own'
        own.parent.mkdir()
        own.touch()
        call(SCENES, tmp_path / 'new', *SMALL)
        assert own.exists() and sorted(path.name for path in tmp_path.iterdir()) == ['new', 'new.partial']
        assert 'increasing order' in call(SCENES, tmp_path / 'no', '--digit-size', '40', '20', check=False).stderr


def config(name=CONFIG, **options):
    cfg = Config.fromfile(config_path(str(name)))
    cfg.merge_from_dict(options)
    return cfg


class TestConfigs:
    def test_a_config_has_a_path_or_a_name(self):
        assert config_path(str(CONFIG)) == str(CONFIG)
        assert config('mmpretrain::resnet/resnet18_8xb32_in1k.py').model.backbone.depth == 18
        for name, words in [
            ('configs/none.py', 'There is no config configs/none.py'),
            ('mmdet::none/none.py', 'There is no config mmdet::none/none.py'),
            ('other::a/b.py', 'not of other'),
        ]:
            with pytest.raises(SharingError, match=words):
                config_path(name)

    def test_one_option_moves_the_data_set(self):
        cfg = config(**moved_root(config(), 'elsewhere'))
        leaves = [value for key, value in dotted(cfg.to_dict()) if isinstance(value, str) and key != 'data_root']
        assert not any('data/digits' in value for value in leaves)
        assert cfg.train_dataloader.dataset.data_root == 'elsewhere/'
        assert cfg.val_evaluator.ann_file == cfg.test_evaluator.ann_file == 'elsewhere/instances_val.json'
        voc = moved_root(config('mmdet::pascal_voc/faster-rcnn_r50_fpn_1x_voc0712.py'), 'elsewhere')
        assert voc['train_dataloader.dataset.dataset.datasets.1.data_root'] == 'elsewhere/'
        imagenet = moved_root(config('mmpretrain::resnet/resnet18_8xb32_in1k.py'), 'elsewhere')
        assert set(imagenet) == {f'{split}_dataloader.dataset.data_root' for split in ('train', 'val', 'test')}
        with pytest.raises(SharingError, match='have 0 roots'):
            moved_root(Config(), 'elsewhere')

    @pytest.mark.slow
    def test_a_missing_data_set_is_one_sentence(self, digits, tmp_path):
        cfg = config(**moved_root(config(), str(digits)))
        check_data(cfg, ['train_dataloader', 'val_dataloader'])
        (tmp_path / 'JPEGImages').mkdir()
        for root, words in [(tmp_path, 'has no instances_train.json'), (tmp_path / 'none', 'which is not there')]:
            cfg.train_dataloader.dataset.data_root = str(root)
            with pytest.raises(SharingError, match=f'{root}, which .*data_root=FOLDER') as error:
                check_data(cfg, ['train_dataloader'])
            assert words in str(error.value)
        imagenet = {'train_dataloader.dataset.data_root': str(tmp_path / 'none')}
        with pytest.raises(SharingError, match='which is not there'):
            check_data(config('mmpretrain::resnet/resnet18_8xb32_in1k.py', **imagenet), ['train_dataloader'])
        check_data(Config(dict(test_dataloader=None)), ['test_dataloader'])

    def test_a_data_set_that_downloads_itself_need_not_be_there(self, tmp_path):
        name, root = 'mmpretrain::resnet/resnet18_8xb16_cifar10.py', str(tmp_path / 'none')
        check_data(config(name, **{'train_dataloader.dataset.data_root': root}), ['train_dataloader'])
        with pytest.raises(SharingError, match='which is not there'):
            check_data(
                config(
                    name, **{'train_dataloader.dataset.data_root': root, 'train_dataloader.dataset.download': False}
                ),
                ['train_dataloader'],
            )
        with pytest.raises(SharingError, match='which is not there'):
            check_data(config(name, **{'train_dataloader.dataset.data_root': root}), ['train_dataloader'], False)


# The detector of the demo at a fraction of its cost.
SMALLER = [
    'model.backbone.depth=50',
    'model.train_cfg.rpn_proposal.max_per_img=50',
    'model.test_cfg.rpn.max_per_img=50',
]


@pytest.mark.slow
def test_training_can_be_interrupted_resumed_and_evaluated(digits, tmp_path):
    options = [
        '--work-dir',
        tmp_path / 'work',
        '--cfg-options',
        f'data_root={digits}',
        'train_dataloader.batch_size=2',
        *loader_options('train', 'val'),
        'default_hooks.logger.interval=1',
        *SMALLER,
    ]
    long = ['train_dataloader.num_workers=1', 'train_cfg.max_epochs=400']
    training = Forked(tmp_path / 'interrupted', 'train.py', CONFIG, *options, *long)
    assert training.stops_at(r'Epoch\(train\) +\[ *2\]')
    os.killpg(training.pid, signal.SIGINT)  # as Ctrl-C does: to the workers of the data loader too
    result = training.result()
    told = result.stdout + result.stderr
    assert result.returncode != 0 and 'with --resume continues from the last checkpoint' in told
    assert 'Traceback' not in told

    more = ['train_cfg.max_epochs=2', 'train_cfg.val_interval=1']
    result = Forked(tmp_path / 'resumed', 'train.py', CONFIG, '--resume', *options, *more).result()
    assert result.returncode == 0, result.stderr
    assert 'resumed epoch: 1, iter: 4' in result.stdout
    steps = re.findall(r'Epoch\(train\) +\[(\d)\]\[(\d)/4\].*loss_orth: (\S+)', result.stdout)
    assert [(epoch, step) for epoch, step, _ in steps] == [('2', str(i)) for i in range(1, 5)]
    assert 'bbox_mAP' in result.stdout

    testing = ['test.py', CONFIG, tmp_path / 'work/epoch_2.pth', '--work-dir', tmp_path / 'test', '--cfg-options']
    testing += [f'data_root={digits}', *loader_options('test'), *SMALLER]
    assert 'coco/bbox_mAP' in Forked(tmp_path / 'tested', *testing).result().stdout

    moved = (tmp_path / 'work').rename(tmp_path / 'moved')
    report = Forked(tmp_path / 'report', 'analysis_tools/report_run.py', moved, '--images', '2').result().stdout
    assert f'checkpoint: {moved}/epoch_2.pth' in report
    assert re.search(r'parameters of the backbone: 1,165,328 shared, 1,480,976 plain \(21\.3% fewer\)', report)
    for name in ('detections.png', 'curves.png'):
        assert np.asarray(Image.open(moved / name)).std() > 1

    (moved / 'epoch_2.pth').write_bytes((moved / 'epoch_2.pth').read_bytes()[:5000])
    testing[2] = moved / 'epoch_2.pth'
    broken = Forked(tmp_path / 'broken', *testing).result()
    assert broken.returncode == 1 and 'Traceback' not in broken.stderr
    assert re.search(r'Error: The checkpoint \S+epoch_2.pth cannot be loaded: it is damaged', broken.stderr)


@pytest.mark.slow
def test_the_launchers_pass_their_arguments_on(tmp_path):
    for name in ('torchrun', 'srun'):
        path = tmp_path / name
        path.write_text('#!/bin/sh\nfor argument in "$@"; do echo "$argument"; done\n')
        path.chmod(0o755)
    for script, arguments, expected in [
        ('dist_train.sh', ['c.py', '4', '--amp'], ['--nproc_per_node=4', 'tools/train.py', 'c.py', '--amp']),
        ('dist_test.sh', ['c.py', 'a b.pth', '4', '--tta'], ['tools/test.py', 'c.py', 'a b.pth', '--tta']),
        (
            'slurm_train.sh',
            ['gpu', 'job', 'c.py', 'dir', '--amp'],
            ['--partition=gpu', '--job-name=job', 'tools/train.py', 'c.py', '--work-dir', 'dir', '--amp'],
        ),
        ('slurm_test.sh', ['gpu', 'job', 'c.py', 'a.pth', '--tta'], ['tools/test.py', 'c.py', 'a.pth', '--tta']),
    ]:
        lines = subprocess.run(
            [f'tools/{script}', *arguments],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=True,
            env=dict(PATH=f'{tmp_path}:/usr/bin:/bin'),
        ).stdout.splitlines()
        lines = [line.replace(f'{ROOT}/', '') for line in lines]
        assert [line for line in lines if line in expected] == expected
        assert lines[-2:] == ['--launcher', 'slurm' if script.startswith('slurm') else 'pytorch']
    forgotten = subprocess.run(['tools/dist_train.sh', 'c.py'], capture_output=True, text=True, cwd=ROOT)
    assert forgotten.returncode and 'give a config and the number of processes' in forgotten.stderr
