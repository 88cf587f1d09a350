"""Whole detectors as ONNX find what mmdet's own ``predict`` finds."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, RUNNERS
from PIL import Image
from torch import nn

from helpers import ROOT, call, evaluating, image, randomise_norms
from mmshared import SharingError, banks, fold_layers, share_layers
from mmshared.engine.build import build_empty, build_model
from mmshared.engine.config import config_path, load_config

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')

from mmshared.convert.onnx import compare, exported, onnx_forms, open_session  # noqa: E402
from mmshared.convert.onnx_detector import same_detections  # noqa: E402
from mmshared.convert.onnx_evaluation import evaluate_onnx  # noqa: E402


@MODELS.register_module()
class Stem(nn.Module):
    """Maps of two levels, of strides 16 and 32, after a stage of blocks that may share."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 16, stride=16, padding=8)
        self.blocks = nn.Sequential(*[nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()) for _ in range(3)])
        self.down = nn.Conv2d(16, 16, 3, stride=2, padding=1)

    def forward(self, images):
        maps = self.blocks(self.stem(images))
        return maps, self.down(maps)


ONE = dict(in_channels=16, feat_channels=16)
HEAD = dict(ONE, num_classes=5, stacked_convs=1)
ANCHORS = dict(octave_base_scale=2, scales_per_octave=1, ratios=[1.0, 2.0], strides=[16, 32])
GROUPS = dict(type='GN', num_groups=4)
BOXES = dict(in_channels=16, fc_out_channels=32, num_classes=5)
REGIONS = dict(out_channels=16, featmap_strides=[16, 32], finest_scale=32)
#: Small detectors, as changes of stock configs.
FAMILIES = {
    'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py': dict(
        rpn_head=dict(ONE, anchor_generator=dict(scales=[2], strides=[16, 32])),
        roi_head=dict(bbox_roi_extractor=REGIONS, bbox_head=BOXES),
        test_cfg=dict(rpn=dict(nms_pre=50, max_per_img=40)),
    ),
    'retinanet/retinanet_r50_fpn_1x_coco.py': dict(bbox_head=dict(HEAD, anchor_generator=ANCHORS)),
    'atss/atss_r50_fpn_1x_coco.py': dict(
        bbox_head=dict(HEAD, norm_cfg=GROUPS, anchor_generator=dict(octave_base_scale=2, strides=[16, 32]))
    ),
    'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py': dict(
        bbox_head=dict(HEAD, norm_cfg=GROUPS, strides=[16, 32], regress_ranges=((-1, 64), (64, 1e8)))
    ),
    'yolox/yolox_tiny_8xb8-300e_coco.py': dict(bbox_head=dict(HEAD, strides=[16, 32])),
    'rtmdet/rtmdet_tiny_8xb32-300e_coco.py': dict(
        bbox_head=dict(HEAD, anchor_generator=dict(strides=[16, 32])), test_cfg=dict(nms_pre=300)
    ),
    'detr/detr_r50_8xb2-150e_coco.py': dict(
        encoder=dict(num_layers=1), decoder=dict(num_layers=1), num_queries=20, test_cfg=dict(max_per_img=15)
    ),
}
FASTER, RETINANET, *_, DETR = FAMILIES


def config(family: str) -> Config:
    cfg = Config.fromfile(config_path(f'mmdet::{family}'))
    cfg.merge_from_dict(dict(model=FAMILIES[family]))
    cfg.model.backbone = dict(type='Stem')
    cfg.model.neck = None
    if family == DETR:
        cfg.model.neck = dict(type='ChannelMapper', in_channels=[16, 16], out_channels=256, num_outs=1)
    return cfg


def detector(cfg: Config, spread: float = 1.0) -> nn.Module:
    """A detector with random weights whose scores differ by a factor."""
    network = randomise_norms(build_model(cfg))
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and 'head' in name:
            for word, size in (('cls', spread), ('obj', spread), ('reg', 0.1)):
                if word in name.rsplit('.')[-1] or word in name.rsplit('.')[-2]:
                    nn.init.normal_(module.weight, std=size / module.weight[0].numel() ** 0.5)
    return evaluating(network)


def run(content: bytes, images: torch.Tensor) -> list[torch.Tensor]:
    return [torch.from_numpy(each) for each in open_session(content).run(None, {'images': images.numpy()})]


def found_by(run, network: nn.Module, size: tuple[int, ...]) -> tuple[int, int, int]:
    """How many detections of a function are those of the network, of how many; and how many the network has."""
    case = exported(network)
    with torch.no_grad():
        images = case.images(size)
        expected = case.outputs(images)
        found = run(images)
    return *same_detections(found, expected, max(size), near=1e-4), len(expected[1])


SIZES = [(1, 3, 64, 96), (1, 3, 131, 75)]  # the second is no multiple of the strides


def check_sizes(network: nn.Module, model: onnx.ModelProto) -> None:
    content = model.SerializeToString()
    for size in SIZES:
        same, total, count = found_by(lambda images: run(content, images), network, size)
        assert same == total and count > 2


@pytest.mark.slow
@pytest.mark.parametrize('family', list(FAMILIES)[1:])  # of the first, the next test
def test_onnx_finds_what_predict_finds_in_images_of_any_size(family):
    network = detector(config(family))
    (model,) = onnx_forms(network, network, (3, 96, 64), False, None).values()
    check_sizes(network, model)


@pytest.fixture(scope='module')
def shared():
    """A Faster R-CNN that shares in its backbone and in its head, and its forms."""
    torch.manual_seed(0)
    network = detector(config(FASTER))
    share_layers(network, ['0'], dict(type='TiedFilters'), stages='backbone.blocks', own_blocks=0)
    fcs = r'roi_head\.bbox_head\.shared_fcs\.0'
    share_layers(network, layers=[fcs], bank=dict(type='FilterBasis', shared_rank=8, unique_rank=0, base_channels=784))
    network.eval()
    plain = fold_layers(copy.deepcopy(network))
    forms = onnx_forms(network, plain, (3, 96, 64), keep_shared=True, bits=8)
    return SimpleNamespace(network=network, plain=plain, forms=forms)


@pytest.mark.slow
def test_a_shared_detector_finds_the_same_and_stores_its_banks_once(shared):
    for name in ('plain', 'shared'):
        check_sizes(shared.plain, shared.forms[name])
    files = {name: form.SerializeToString() for name, form in shared.forms.items()}
    lines = list(compare(files, shared.plain, (3, 96, 64)))
    assert sum('detections' in line for line in lines) == 2 * len(files) == 8
    assert not [line for line in lines if 'in each run' in line]
    stored = [onnx.numpy_helper.to_array(each) for each in shared.forms['shared'].graph.initializer]
    for bank in banks(shared.network):
        values = bank().detach().numpy()
        assert sum(each.shape == values.shape and (each == values).all() for each in stored) == 1
    sizes = [len(files[name]) for name in ('plain', 'shared')]
    saved = sum(p.numel() for p in shared.plain.parameters()) - sum(p.numel() for p in shared.network.parameters())
    assert sizes[0] - sizes[1] > 3.5 * saved > 0


@pytest.mark.slow
def test_an_image_without_objects_has_no_detections(shared):
    model = copy.deepcopy(shared.forms['plain'])
    (bias,) = (each for each in model.graph.initializer if each.name.endswith('fc_cls.bias'))
    values = onnx.numpy_helper.to_array(bias).copy()
    values[-1] += 100  # all is background
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    boxes, scores, labels = run(model.SerializeToString(), torch.randn(1, 3, 64, 96))
    assert boxes.shape == (0, 4) and scores.shape == labels.shape == (0,)


def test_the_same_detections_are_counted_on_both_sides():
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40], [50, 50, 60, 60]])
    scores, labels = torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 1, 2])
    one = (boxes, scores, labels)
    assert same_detections(one, one, 100, 1e-6) == (6, 6)
    for other, same in [
        ((boxes + 0.5, scores, labels), 6),
        ((boxes + torch.tensor([0, 0, 2, 0]), scores, labels), 0),
        ((boxes, scores, labels.flip(0)), 2),
        ((boxes, scores + torch.tensor([0.02, 0, 0]), labels), 4),
    ]:
        assert same_detections(one, other, 100, 0.01) == (same, 6)
    assert same_detections([each[:0] for each in one], [each[:2] for each in one], 100, 0.01) == (0, 2)


@MODELS.register_module()
class Fixed(Stem):
    """Its table of positions is for one size."""

    def __init__(self):
        super().__init__()
        self.positions = nn.Parameter(torch.randn(16, 7, 5))

    def forward(self, images):
        maps = self.blocks(self.stem(images) + self.positions)
        return maps, self.down(maps)


@pytest.mark.slow
def test_a_detector_of_one_size_is_exported_at_that():
    cfg = config(RETINANET)
    cfg.model.backbone.type = 'Fixed'
    network = detector(cfg)
    with pytest.warns(UserWarning, match='only for images of 96x64'):
        (model,) = onnx_forms(network, network, (3, 96, 64), False, None).values()
    lines = list(compare(dict(plain=model.SerializeToString()), network, (3, 96, 64)))
    assert [line.split(': ')[0] for line in lines if 'PyTorch' in line] == 2 * [
        'ONNX against PyTorch, plain, 1x3x96x64'
    ]


@MODELS.register_module()
class Undecided(Stem):
    def forward(self, images):
        return super().forward(images if images.mean() > 0 else -images)


@pytest.mark.parametrize(
    'integers, same, fits', [(False, 96, True), (False, 94, False), (True, 26, True), (True, 24, False)]
)
def test_so_many_detections_have_to_be_the_same(integers, same, fits):
    boxes = torch.arange(400.0).view(100, 4)
    expected = boxes, torch.rand(100), torch.zeros(100, dtype=torch.long)
    found = boxes, expected[1], (torch.arange(100) >= same).long()  # the others are of another class
    check = exported(detector(config(RETINANET))).check
    told, accepted = check(found, expected, image(), integers)
    assert accepted is fits and told.startswith(f'{2 * same} of the 200 detections of both are the same')
    nothing = [each[:0] for each in expected]
    assert check(nothing, nothing, image(), integers)[1] and not check(nothing, expected, image(), integers)[1]


@pytest.mark.slow
def test_a_detector_that_cannot_be_traced_is_refused():
    cfg = config(RETINANET)
    cfg.model.backbone.type = 'Undecided'
    with pytest.raises(SharingError, match='RetinaNet cannot be exported to ONNX: Could not guard on data'):
        exported(detector(cfg)).export((3, 96, 64), None)


@pytest.mark.parametrize(
    'name', ['mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', 'rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py']
)
def test_a_detector_of_masks_is_refused(name):
    with pytest.raises(SharingError, match='predicts masks too'):
        exported(build_empty(load_config(f'mmdet::{name}')))


@pytest.mark.slow
def test_nms_of_another_kind_is_refused():
    cfg = config(RETINANET)
    cfg.model.test_cfg.nms = dict(type='soft_nms', iou_threshold=0.5)
    with pytest.raises(SharingError, match='no operator for the NMS of type soft_nms with iou_threshold=0.5'):
        exported(detector(cfg)).export((3, 96, 64), None)


CHESS = ROOT / 'configs/small/faster-rcnn_r50-narrow_12e_chess.py'
CLASSES = tuple('abcde')
LOADER = dict(batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False))


def only_test(cfg: Config, folder: Path, dataset: dict, evaluator: dict) -> None:
    """Let a config test on a data set, and do nothing else."""
    for name in ('train', 'val'):
        for part in ('dataloader', 'cfg', 'evaluator'):
            cfg.pop(f'{name}_{part}', None)
    for name in ('optim_wrapper', 'param_scheduler'):
        cfg.pop(name, None)
    cfg.update(runner_type='SharingRunner', work_dir=str(folder / 'work'), test_evaluator=evaluator)
    cfg.test_dataloader = dict(dataset=dataset, **LOADER)


@pytest.fixture(scope='module')
def tested(shared, tmp_path_factory):
    """The config of a test of the shared detector on two images, whose objects are what its plain twin finds there in
    part; and the ONNX model."""
    folder = tmp_path_factory.mktemp('onnx')
    cfg = config(FASTER)
    cfg.model.data_preprocessor.update(mean=[127.0] * 3, std=[20.0] * 3)
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='Resize', scale=(90, 60), keep_ratio=True),
        dict(type='PackDetInputs', meta_keys=('img_id', 'ori_shape', 'img_shape', 'scale_factor')),
    ]
    data = dict(
        type='CocoDataset',
        data_root=str(folder),
        ann_file='a.json',
        data_prefix=dict(img=''),
        metainfo=dict(classes=CLASSES),
        test_mode=True,
        pipeline=pipeline,
    )
    only_test(cfg, folder, data, dict(type='CocoMetric', ann_file=str(folder / 'a.json'), metric='bbox'))
    random, objects = np.random.default_rng(0), []
    for i in range(2):
        Image.fromarray(random.integers(0, 256, (44, 50 + 20 * i, 3), dtype=np.uint8)).save(folder / f'{i}.png')
    content = dict(
        images=[dict(id=i, file_name=f'{i}.png', height=44, width=50 + 20 * i) for i in range(2)],
        categories=[dict(id=i, name=name) for i, name in enumerate(CLASSES)],
        annotations=[dict(id=1, image_id=0, category_id=0, bbox=[0, 0, 9, 9], area=81, iscrowd=0)],
    )
    (folder / 'a.json').write_text(json.dumps(content))
    for sample in predictions(cfg, shared.plain):
        for box, label in list(zip(sample.pred_instances.bboxes.tolist(), sample.pred_instances.labels.tolist()))[::2]:
            left, top, right, bottom = box
            size = [right - left, bottom - top]
            objects.append(
                dict(
                    id=len(objects) + 1,
                    image_id=sample.img_id,
                    category_id=label,
                    bbox=[left, top, *size],
                    area=size[0] * size[1],
                    iscrowd=0,
                )
            )
    (folder / 'a.json').write_text(json.dumps(dict(content, annotations=objects)))
    (folder / 'plain.onnx').write_bytes(shared.forms['plain'].SerializeToString())
    return cfg, str(folder / 'plain.onnx')


def torch_runner(cfg: Config, network: nn.Module):
    runner = RUNNERS.build(Config(dict(copy.deepcopy(cfg.to_dict()), experiment_name=f'torch-{id(cfg)}')))
    runner.model.load_state_dict(network.state_dict())
    return runner


def predictions(cfg: Config, network: nn.Module) -> list:
    runner = torch_runner(cfg, network)
    return [sample for batch in runner.test_loop.dataloader for sample in evaluating(runner.model).test_step(batch)]


@pytest.mark.slow
def test_the_metrics_are_those_of_pytorch(shared, tested):
    cfg, file = tested
    expected = torch_runner(copy.deepcopy(cfg), shared.plain).test()
    found = evaluate_onnx(copy.deepcopy(cfg), file)
    assert 0.1 < expected['coco/bbox_mAP'] < 0.99
    assert found == pytest.approx(expected, abs=2e-3)


@pytest.mark.slow
def test_the_metrics_of_a_classifier_are_those_of_pytorch(images, tmp_path):
    cfg = Config.fromfile(ROOT / 'configs/shared_resnet/resnet32_b256_cifar10.py')
    cfg.model.backbone = dict(type='Stem')
    cfg.model.head.in_channels = 16
    load = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
    data = dict(type='CustomDataset', data_prefix=str(images / 'test'), pipeline=load, test_mode=True)
    only_test(cfg, tmp_path, data, dict(type='Accuracy', topk=(1, 5)))
    cfg.test_dataloader.collate_fn = dict(type='default_collate')
    network = evaluating(randomise_norms(build_model(cfg)))
    (model,) = onnx_forms(network, network, (3, 32, 32), False, None).values()
    (tmp_path / 'plain.onnx').write_bytes(model.SerializeToString())
    expected = torch_runner(copy.deepcopy(cfg), network).test()
    assert 10 < expected['accuracy/top5'] < 100
    assert evaluate_onnx(copy.deepcopy(cfg), str(tmp_path / 'plain.onnx')) == pytest.approx(expected)
    cfg.dump(tmp_path / 'tested.py')
    result = call('test_onnx.py', tmp_path / 'tested.py', tmp_path / 'plain.onnx')
    assert result.returncode == 0, result.stderr
    assert f'accuracy/top5: {expected["accuracy/top5"]:.4f}' in result.stdout + result.stderr


@pytest.mark.slow
def test_what_is_no_model_of_the_config_is_refused(tested, tmp_path):
    cfg, file = tested
    (tmp_path / 'text.onnx').write_text('text')
    images, maps = (onnx.helper.make_tensor_value_info(name, 1, ['n', 3, 64, 'w']) for name in ('images', 'maps'))
    graph = onnx.helper.make_graph([onnx.helper.make_node('Relu', ['images'], ['maps'])], 'one', [images], [maps])
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid('', 18)], ir_version=10),
        tmp_path / 'other.onnx',
    )
    fewer = dict(metainfo=dict(classes=CLASSES[:3]))
    for name, changes, words in [
        (tmp_path / 'none.onnx', {}, 'none.onnx cannot be read: No such file'),
        (tmp_path / 'text.onnx', {}, 'text.onnx is not an ONNX model that onnxruntime can load'),
        (tmp_path / 'other.onnx', {}, r"not the ONNX model of a detector, from images to .* to \['maps'\]"),
        (file, dict(test_dataloader=dict(dataset=fewer)), 'knows 5 classes, and the test data have 3'),
    ]:
        cfg = copy.deepcopy(tested[0])
        cfg.merge_from_dict(changes)
        cfg.experiment_name = str(words)[:12]
        with pytest.raises(SharingError, match=words):
            evaluate_onnx(cfg, str(name))
    result = call('test_onnx.py', CHESS, file, '--work-dir', tmp_path, '--cfg-options', 'data_root=nowhere')
    assert result.returncode and 'is expected in nowhere/, which is not there' in result.stderr
    with patch('importlib.util.find_spec', lambda name: None):
        result = call('test_onnx.py', CHESS, file)
    assert result.returncode and "pip install 'mmshared[export]'" in result.stderr
