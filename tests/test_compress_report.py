"""The report on a compressed network: it opens offline, holds every number, and nothing that is missing."""

import base64
import json
import math
import re
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.structures import DataSample
from PIL import Image

from helpers import BASIS, ROOT, TIED, backbone, classifier_config
from mmshared.compress.plan import size_of
from mmshared.compress.report import Results, measure, write_report
from mmshared.engine.build import build_model, build_plain

SIZES = ['parameters', 'bytes', 'multiply_adds', 'time']


def network(parameters, ap):
    metrics = {'coco/bbox_mAP': ap, 'coco/bbox_mAP_50': ap + 0.2, 'coco/bbox_mAP_s': -1.0}
    return dict(zip(SIZES, (parameters, 4 * parameters + 512, 3_512_034_816, 0.3214)), metrics=metrics)


def row(group='conv2', **values):
    found = dict(stage='backbone.layer1', group=group, layers=['1.conv2', '2.conv2'], before=4608, after=2304)
    return dict(found, bank='FilterBasis', rank=8, cost=0.00625, **values)


def results():
    """All that can be told of a detector."""
    random = np.random.default_rng(0)
    return Results(
        name='faster-rcnn',
        networks=dict(
            plain=network(5712802, 0.730), converted=network(2801234, 0.588), finetuned=network(2801235, 0.724)
        ),
        metric='coco/bbox_mAP',
        plan=[row(), dict(row('fc'), stage=None, bank='', rank=None, cost=None)],
        curves={
            'loss': [(10, 2.0), (20, 1.5)],
            'loss_distill': [(10, 0.5), (20, 0.4)],
            'coco/bbox_mAP': [(1, 0.724)],
            'lr': [(1, 1)],
        },
        detections={
            step: [random.integers(0, 256, (20, 30, 3), dtype=np.uint8) for _ in range(2)]
            for step in ('plain', 'finetuned')
        },
        commands={'Test it': 'python tools/test.py compressed.py finetuned.pth'},
    )


class Page(HTMLParser):
    """The elements of a page: its text by heading, its images, and what it would load."""

    VOID = ('meta', 'img', 'br', 'wbr')

    def __init__(self, path):
        super().__init__()
        self.open, self.tags, self.sections, self.images, self.addresses = [], set(), {'': ''}, [], []
        self.feed(path.read_text(encoding='utf-8'))
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.addresses += [value for name, value in attrs if name in ('src', 'href', 'srcset', 'data', 'action')]
        if tag == 'img':
            self.images.append(dict(attrs))
            self.sections[[*self.sections][-1]] += '[image]'
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ['h2']:
            self.sections[data] = ''
        elif self.open[-1:] != ['style']:
            self.sections[[*self.sections][-1]] += data


def report(results, folder):
    """The page and the numbers of a report."""
    page = Page(write_report(results, folder))
    return page, json.loads((folder / 'report.json').read_text())


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp('report')
    return *report(results(), folder), (folder / 'report.html').read_text(encoding='utf-8')


def numbers_in(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for each in value for number in numbers_in(each)]
    return [value] if isinstance(value, (int, float)) else []


def test_the_page_needs_nothing_from_elsewhere(whole):
    page, _, text = whole
    assert not re.search(r'https?://|url\(|@import', text)
    assert not page.tags & {'script', 'link', 'iframe', 'object'}
    assert page.addresses and all(address.startswith('data:image/') for address in page.addresses)


def test_every_number_of_the_json_is_on_the_page(whole):
    page, numbers, _ = whole
    shown = page.sections['All numbers'].partition('report.json')[2]
    assert len(numbers_in(numbers)) == 3 * (4 + 3) + 4 + 2
    assert json.JSONDecoder().raw_decode(shown.strip())[0] == numbers


def test_the_json_has_the_figures_of_each_network(whole):
    _, numbers, _ = whole
    for step, figures in results().networks.items():
        assert list(figures) == [*SIZES, 'metrics']
        assert numbers[step] == figures
    assert numbers['plan'] == results().plan


def test_the_table_compares_with_the_plain_network(whole):
    table = whole[0].sections['Sizes and metrics']
    for text in ('5,712,802', '2,801,234', '49.0 %', '22.85 MB', '3.512 G', '321.4 ms', '0.7300', '0.7240', '-0.006'):
        assert text in table
    assert 'mAP_s' not in table  # there are no small objects


def test_the_plan_says_what_each_group_saves_and_costs(whole):
    plan = whole[0].sections['Plan']
    assert re.findall(r'\d,\d{3}', plan) == 2 * ['4,608', '2,304'] + ['9,216', '4,608']
    assert '0.00625' in plan


def test_the_images_are_in_the_page(whole):
    page, _, _ = whole
    files = [base64.b64decode(image['src'].partition(',')[2]) for image in page.images]
    sizes = [Image.open(BytesIO(file)).size for file in files]
    assert sizes.count((30, 20)) == 4  # two images with the detections of two networks
    assert len(sizes) == 4 + 1 + 2  # the stages, and the curves of more than one point
    assert all(image['alt'] for image in page.images)


def test_all_text_is_escaped(tmp_path):
    evil = '<script>alert("&amp;")</script>'
    plan = [dict(row(evil), stage=evil, bank=evil, layers=[evil])]
    networks = {step: dict(network(100, 0.5), metrics={evil: 0.5}) for step in ('plain', 'converted')}
    page, _ = report(Results(evil, networks, evil, plan, {evil: [(1, 0.5), (2, 0.6)]}, {}, {evil: evil}), tmp_path)
    assert 'script' not in page.tags
    assert all(evil in page.sections[name] for name in ('', 'Sizes and metrics', 'Plan', 'Use it'))
    assert any(evil in image['alt'] for image in page.images)


def test_what_is_missing_has_no_heading(whole, tmp_path):
    most, _, _ = whole
    headings = ['Sizes and metrics', 'Plan', 'Fine-tuning', 'Detections', 'Use it', 'All numbers']
    assert list(most.sections)[1:] == headings
    networks = dict(plain=network(200, 0.7), converted=network(100, 0.6))
    least, numbers = report(Results('resnet', networks, 'accuracy/top1'), tmp_path)
    assert list(least.sections)[1:] == ['Sizes and metrics', 'All numbers']
    for page in (most, least):
        assert all(text.strip() for text in page.sections.values())
    assert 'finetuned' not in numbers and 'finetuned' not in (tmp_path / 'report.html').read_text()


def test_numbers_that_are_not_finite_are_dashes_and_null(tmp_path):
    networks = dict(plain=network(200, 0.7), converted=network(100, math.nan))
    page, numbers = report(Results('resnet', networks, 'coco/bbox_mAP', [dict(row(), cost=math.inf)]), tmp_path)
    assert numbers['plan'][0]['cost'] is None and numbers['converted']['metrics']['coco/bbox_mAP'] is None
    assert '–' in page.sections['Sizes and metrics']
    assert not re.search(r'\b(nan|inf)\b', ''.join(page.sections.values()))


def test_the_bytes_of_a_network_are_those_of_a_checkpoint(mmpretrain):
    network = backbone(depth=18, groups=['conv[12]'], bank=TIED)
    tensors = network.state_dict().values()
    assert size_of(network).bytes == sum(tensor.numel() * tensor.itemsize for tensor in tensors)
    layer = torch.nn.Linear(8, 8)
    assert size_of(torch.nn.Sequential(layer, layer)) == size_of(layer) == (72, 4 * 72)


def test_networks_are_measured(mmpretrain):
    sharing = dict(groups=['conv[12]'], bank=BASIS)
    kind = dict(type='SharedResNet', depth=18, base_channels=16, stem_channels=16, sharing=sharing)
    cfg = classifier_config(kind, 128, 3)
    networks = dict(plain=build_plain(cfg), converted=build_model(cfg))
    batch = dict(inputs=[torch.zeros(3, 32, 32)], data_samples=[DataSample()])
    found = measure(networks, batch, rounds=2)
    for step, network in networks.items():
        assert found[step]['parameters'] == sum(p.numel() for p in network.parameters())
        assert found[step]['time'] > 0
    plain, converted = found.values()
    assert converted['bytes'] < plain['bytes']
    assert converted['multiply_adds'] == plain['multiply_adds'] > 0


@pytest.mark.slow
def test_a_detector_is_measured_with_its_heads():
    from mmdet.testing import demo_mm_inputs

    init_default_scope('mmdet')
    cfg = Config.fromfile(ROOT / 'configs/small/faster-rcnn_r50-narrow-shared_12e_chess.py')
    batch = demo_mm_inputs(1, [[3, 64, 64]], num_classes=4)
    (found,) = measure(dict(plain=build_plain(cfg)), batch, rounds=1).values()
    assert all(found[key] > 0 for key in SIZES)
