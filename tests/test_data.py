"""What the Runner says of a data set that is not as the config expects it: one sentence, with the file's own words."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import init_default_scope
from PIL import Image
from torch import nn

from mmshared import SharingError, SharingRunner
from mmshared.engine.config import check_data

CLASSES = ('cat', 'dog')
PIPELINE = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True), dict(type='PackDetInputs')]


def write_images(folder):
    folder.mkdir()
    for number in range(3):
        Image.fromarray(np.full((40, 40, 3), 50 * number, np.uint8)).save(folder / f'{number}.jpg')


@pytest.fixture
def coco(tmp_path):
    """A data loader of a data set of cats and dogs in the format of COCO, and its annotations."""
    init_default_scope('mmdet')
    write_images(tmp_path / 'images')
    annotations = dict(
        images=[dict(id=i, file_name=f'{i}.jpg', width=40, height=40) for i in range(3)],
        categories=[dict(id=i, name=name) for i, name in enumerate(CLASSES)],
        annotations=[
            dict(id=i, image_id=i, category_id=i % 2, bbox=[1, 1, 20, 20], area=400, iscrowd=0) for i in range(3)
        ],
    )
    dataset = dict(
        type='CocoDataset',
        data_root=str(tmp_path),
        ann_file='train.json',
        data_prefix=dict(img='images/'),
        metainfo=dict(classes=CLASSES),
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        pipeline=PIPELINE,
    )
    return Config(dict(loader=loader_of(dataset))).loader, annotations


@pytest.fixture
def voc(tmp_path):
    """A data loader of a data set of cats in the format of VOC."""
    init_default_scope('mmdet')
    write_images(tmp_path / 'JPEGImages')
    (tmp_path / 'Annotations').mkdir()
    for number in range(3):
        (tmp_path / f'Annotations/{number}.xml').write_text(
            '<annotation><size><width>40</width><height>40</height></size><object><name>cat</name><bndbox><xmin>1</xmin>'
            '<ymin>1</ymin><xmax>20</xmax><ymax>20</ymax></bndbox></object></annotation>'
        )
    (tmp_path / 'train.txt').write_text('0\n1\n2\n')
    dataset = dict(
        type='VOCDataset',
        data_root=str(tmp_path),
        ann_file='train.txt',
        data_prefix=dict(sub_data_root=''),
        metainfo=dict(classes=('cat',)),
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=PIPELINE,
    )
    return Config(dict(loader=loader_of(dataset))).loader


def loader_of(dataset):
    return dict(batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False), dataset=dataset)


def build(loader, annotations=None):
    if annotations is not None:
        with open(f'{loader.dataset.data_root}/train.json', 'w') as file:
            json.dump(annotations, file)
    return SharingRunner.build_dataloader(loader)


@pytest.mark.parametrize('test_mode', [False, True])
@pytest.mark.parametrize('wrapped', [False, True])
def test_classes_that_no_object_has_are_told_with_those_that_they_have(coco, test_mode, wrapped):
    loader, annotations = coco
    assert len(build(loader, annotations).dataset) == 3
    loader.dataset.update(metainfo=dict(classes=('Cat', 'Dog')), test_mode=test_mode)
    if wrapped:
        loader.dataset = dict(type='RepeatDataset', times=2, dataset=loader.dataset)
    with pytest.raises(
        SharingError, match=r'train.json has .* 2 classes of metainfo \(Cat, Dog\). Its own .* cat, dog:'
    ):
        build(loader)


def test_classes_of_voc_are_told_too(voc):
    assert len(build(voc).dataset) == 3
    voc.dataset.metainfo = dict(classes=('dog', 'mouse'))
    with pytest.raises(SharingError, match=r'train.txt has .* metainfo \(dog, mouse\). Its own classes are cat:'):
        build(voc)


def test_images_without_objects_may_be_tested(coco, voc):
    loader, annotations = coco
    loader.dataset.test_mode = True
    assert len(build(loader, dict(annotations, annotations=[])).dataset) == 3
    for path in Path(voc.dataset.data_root).glob('Annotations/*.xml'):
        path.write_text(re.sub('<object>.*</object>', '', path.read_text()))
    voc.dataset.test_mode = True
    assert len(build(voc).dataset) == 3


@pytest.mark.parametrize(
    'changes, words',
    [
        (dict(images=[], annotations=[]), 'The annotations .*train.json list no image'),
        (dict(annotations=[]), r"filter_cfg {'filter_empty_gt': True, 'min_size': 32} leaves none of the 3 images of"),
        (dict(categories=[dict(id=0)]), "The annotations .*train.json cannot be read: KeyError: 'name'"),
    ],
)
def test_annotations_that_leave_no_image(coco, changes, words):
    loader, annotations = coco
    with pytest.raises(SharingError, match=words):
        build(loader, {**annotations, **changes})


def test_annotations_that_cannot_be_read_are_named(coco, voc):
    loader, annotations = coco
    root = Path(loader.dataset.data_root)
    (root / 'train.json').write_text(json.dumps(annotations)[:100])
    with pytest.raises(SharingError, match='The annotations .*train.json cannot be read: JSONDecodeError: '):
        build(loader)
    (root / 'Annotations/1.xml').write_text('')
    with pytest.raises(
        SharingError, match='The annotations .*Annotations/1.xml cannot be read: ParseError: no element'
    ):
        build(voc)


def test_a_loader_that_is_wrong_in_another_way_keeps_its_error(coco):
    loader, annotations = coco
    loader.sampler.type = 'NoSuchSampler'
    with pytest.raises(KeyError, match='NoSuchSampler'):
        build(loader, annotations)


def test_an_empty_file_and_an_empty_batch_are_seen_before_anything_is_built(tmp_path):
    (tmp_path / 'train.txt').touch()
    loader = dict(batch_size=1, dataset=dict(type='NoSuchType', data_root=str(tmp_path), ann_file='train.txt'))
    with pytest.raises(SharingError, match='The annotations .*train.txt of train_dataloader are an empty file'):
        check_data(Config(dict(train_dataloader=loader)), ['train_dataloader'])
    with pytest.raises(SharingError, match='The batch_size of train_dataloader is 0: it must be 1 or more'):
        check_data(Config(dict(train_dataloader=dict(loader, batch_size=0))), ['train_dataloader'])


class Untrained(BaseModel):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, *args, **kwargs):
        raise AssertionError('no image comes so far')


@pytest.mark.parametrize('content', [b'', b'not an image'])
@pytest.mark.parametrize('workers', [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize('use', ['train', 'test'])
def test_an_image_that_cannot_be_read_is_named(coco, tmp_path, content, workers, use):
    loader, annotations = coco
    build(loader, annotations)
    (tmp_path / 'images/1.jpg').write_bytes(content)
    loader.num_workers = workers
    runner = SharingRunner(
        Untrained(),
        str(tmp_path / 'run'),
        train_dataloader=dict(loader, batch_size=3),
        train_cfg=dict(by_epoch=False, max_iters=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        test_dataloader=dict(loader, batch_size=3),
        test_cfg={},
        test_evaluator=dict(type='DumpResults', out_file_path='none.pkl'),
        experiment_name=f'{tmp_path.name}',
        default_scope='mmdet',
    )
    with pytest.raises(SharingError, match='The image .*images/1.jpg cannot be read: it is empty, damaged or not an'):
        getattr(runner, use)()
