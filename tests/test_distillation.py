"""Distillation: distances that vanish at equality, and a teacher that leaves no trace in the model."""

import copy
import json
import weakref
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmpretrain.structures import DataSample
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from helpers import BASIS, ROOT, TIED, TWO_STAGES, classifier_config, in_two_processes, join, leave, randomise_norms
from mmshared import DistillationHook, SharingError
from mmshared.engine.build import build_model, build_plain
from mmshared.engine.config import load_config
from mmshared.hooks.distillation_hook import (
    DISTANCES,
    compared_modules,
    features_distance,
    logits_distance,
    outputs_distance,
)

SHAPES = dict(logits=(6, 5), features=(4, 5, 3, 3), outputs=(4, 5, 3, 3))


def pair(*shape):
    return [torch.randn(shape, dtype=torch.float64) for _ in range(2)]


def distance(kind, *pair):
    return DISTANCES[kind](*pair, *([4.0] if kind == 'logits' else []))


@pytest.mark.parametrize('kind', DISTANCES)
def test_a_distance_is_zero_at_equality_and_only_there(kind):
    student, teacher = pair(*SHAPES[kind])
    assert distance(kind, student, teacher) > 0.01
    same = teacher.clone().requires_grad_()
    loss = distance(kind, same, teacher)
    (grad,) = torch.autograd.grad(loss, same)
    assert loss.abs() < 1e-12 and grad.abs().max() < 1e-12


@pytest.mark.parametrize('shape', [(4, 5, 3, 3), (4, 9, 5), (20, 5)], ids=['map', 'tokens', 'vector'])
def test_scale_and_mean_of_a_channel_do_not_matter_for_features(shape):
    student, teacher = pair(*shape)
    per_channel = (5, 1, 1) if len(shape) == 4 else (5,)
    scale, shift = torch.rand(per_channel).double() + 0.1, torch.randn(per_channel).double()
    expected = features_distance(student, teacher)
    torch.testing.assert_close(features_distance(student * scale + shift, teacher), expected)
    torch.testing.assert_close(features_distance(student, teacher * scale + shift), expected)


def test_the_distance_of_features_is_half_of_the_error_of_normalised_maps():
    student, teacher = pair(4, 5, 3, 3)
    maps = [(x - x.mean((0, 2, 3), True)) / x.std((0, 2, 3), unbiased=False, keepdim=True) for x in (student, teacher)]
    torch.testing.assert_close(features_distance(student, teacher), torch.nn.functional.mse_loss(*maps) / 2)


def test_constant_channels_of_features_teach_nothing_and_break_nothing():
    student, teacher = pair(4, 5, 3, 3)
    expected = features_distance(student[:, 1:], teacher[:, 1:])
    teacher[:, 0] = 0.1
    torch.testing.assert_close(features_distance(student, teacher), expected)
    student[:, 1] = 0
    student.requires_grad_()
    features_distance(student, teacher).backward()
    assert student.grad.isfinite().all()


def test_the_distance_of_logits_becomes_a_squared_error_at_high_temperature():
    student, teacher = (x - x.mean(1, True) for x in pair(6, 5))
    expected = (student - teacher).square().mean() / 2  # Hinton et al., equation 4
    torch.testing.assert_close(logits_distance(student, teacher, 1e4), expected, rtol=1e-3, atol=0)


def test_the_unit_of_outputs_does_not_matter():
    student, teacher = pair(4, 5, 3, 3)
    torch.testing.assert_close(outputs_distance(7 * student, 7 * teacher), outputs_distance(student, teacher))


def config(bank=BASIS):
    """The config of a small classifier whose batch norms stay in eval mode."""
    network = dict(type='SharedResNet', depth=18, base_channels=16, stem_channels=16, norm_eval=True, **TWO_STAGES)
    network['sharing'] = dict(groups=['conv[12]'], bank=bank)
    return classifier_config(network, 32, 3, data_preprocessor=dict(num_classes=3))


@pytest.fixture
def cfg():
    init_default_scope('mmpretrain')
    return config()


@pytest.fixture
def checkpoint(cfg, tmp_path):
    """The checkpoint of the plain network."""
    torch.save(dict(state_dict=randomise_norms(build_plain(cfg)).state_dict()), tmp_path / 'plain.pth')
    return str(tmp_path / 'plain.pth')


def student_of(cfg, checkpoint):
    """The shared network fitted to the plain one."""
    model = build_model(cfg)
    model.load_state_dict(torch.load(checkpoint, weights_only=True)['state_dict'])
    return model.train()


def batch(number=4):
    torch.manual_seed(1)
    samples = [DataSample().set_gt_label(i % 3) for i in range(number)]
    return dict(inputs=torch.randn(number, 3, 32, 32), data_samples=samples)


def attach(hook, model, cfg=None):
    hook.before_train(SimpleNamespace(model=model, cfg=cfg or Config()))
    return model


def losses_of(model, number=4):
    return model(**batch(number), mode='loss')


# What follows a norm works in place: the maps that are compared are those that it has returned.
@pytest.mark.parametrize('modules', [None, {'backbone.layer2.1.bn2': 'outputs'}, {'backbone.bn1': 'features'}])
def test_a_student_that_equals_its_teacher_has_nothing_to_learn(cfg, checkpoint, modules):
    model = build_plain(cfg)
    model.load_state_dict(torch.load(checkpoint, weights_only=True)['state_dict'])
    loss = losses_of(attach(DistillationHook(checkpoint, modules=modules), model.eval(), cfg))['loss_distill']
    loss.backward()
    assert loss.abs() < 1e-6
    reached = [p for p in model.parameters() if modules is None or p.grad is not None]
    assert reached and all(p.grad.abs().max() < 1e-5 for p in reached)


def test_what_learns_nothing_is_told_in_a_sentence(cfg, checkpoint):
    cfg.model.backbone.with_cp = True
    inner, block = ({name: 'features'} for name in ('backbone.layer2.1.conv2', 'backbone.layer2.1'))
    losses_of(attach(DistillationHook(checkpoint, modules=block), student_of(cfg, checkpoint), cfg))
    model = attach(DistillationHook(checkpoint, modules=inner), student_of(cfg, checkpoint), cfg)
    with pytest.raises(SharingError, match='nothing is learnt: backbone.layer2.1.conv2 is frozen, or inside a block'):
        losses_of(model)
    with torch.no_grad():
        losses_of(model)
    losses = [
        losses_of(attach(DistillationHook(checkpoint, modules=modules), student_of(cfg, checkpoint), cfg))
        for modules in (dict(head='logits'), dict(inner, head='logits'))
    ]
    torch.testing.assert_close(losses[1]['loss_distill'], losses[0]['loss_distill'])


def test_the_loss_is_that_of_the_logits_by_weight(cfg, checkpoint):
    model = student_of(cfg, checkpoint)
    inputs = batch()['inputs']
    teacher = build_plain(cfg).eval()
    teacher.load_state_dict(torch.load(checkpoint, weights_only=True)['state_dict'])
    expected = 0.5 * logits_distance(model(inputs), teacher(inputs), 2.0)
    attach(DistillationHook(checkpoint, loss_weight=0.5, temperature=2.0), model, cfg)
    loss = losses_of(model)['loss_distill']
    assert loss > 1e-4
    torch.testing.assert_close(loss, expected)


def test_the_teacher_is_no_part_of_the_model_and_has_no_gradients(cfg, checkpoint):
    model = student_of(cfg, checkpoint)
    keys, parameters = list(model.state_dict()), list(model.parameters())
    hook = DistillationHook(checkpoint)
    teacher = hook.load_teacher(cfg)
    with patch.object(hook, 'load_teacher', return_value=teacher):
        attach(hook, model, cfg)
    before = copy.deepcopy(teacher.state_dict())
    sum(losses_of(model).values()).backward()
    assert list(model.state_dict()) == keys and list(map(id, model.parameters())) == list(map(id, parameters))
    assert not teacher.training
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    assert all(torch.equal(tensor, before[key]) for key, tensor in teacher.state_dict().items())


def test_only_losses_are_hooked_and_nothing_is_kept(cfg, checkpoint):
    hook = DistillationHook(checkpoint)
    model = attach(hook, student_of(cfg, checkpoint), cfg)
    losses_of(model)
    logits = model(batch()['inputs'])
    assert isinstance(logits, torch.Tensor)
    kept = weakref.ref(logits)
    del logits
    assert kept() is None
    hook.after_train(None)
    assert 'loss_distill' not in losses_of(model)


def test_a_copy_of_the_model_learns_from_the_teacher_too(cfg, checkpoint):
    model = attach(DistillationHook(checkpoint), student_of(cfg, checkpoint), cfg)
    loss = losses_of(model)['loss_distill']
    torch.testing.assert_close(losses_of(copy.deepcopy(model))['loss_distill'], loss)


def test_teacher_and_student_run_in_the_same_precision(cfg, checkpoint):
    model = build_plain(cfg)
    model.load_state_dict(torch.load(checkpoint, weights_only=True)['state_dict'])
    attach(DistillationHook(checkpoint), model.eval(), cfg)
    with torch.autocast('cpu', torch.bfloat16):
        loss = losses_of(model)['loss_distill']
    assert loss.abs() < 1e-6  # if only one ran in bfloat16, its rounding would show
    assert loss.dtype == torch.float32


def test_any_module_can_be_compared_by_its_name(cfg, checkpoint):
    modules = {'backbone.layer2.1.conv1': 'features', 'backbone': 'outputs', 'head.fc': 'logits'}
    parts = []
    for names in ({name: kind} for name, kind in modules.items()):
        hook = DistillationHook(checkpoint, modules=names)
        parts.append(losses_of(attach(hook, student_of(cfg, checkpoint), cfg))['loss_distill'])
    model = attach(DistillationHook(checkpoint, modules=modules), student_of(cfg, checkpoint), cfg)
    assert all(part > 0 for part in parts)
    torch.testing.assert_close(losses_of(model)['loss_distill'], sum(parts))


def test_the_teacher_may_be_of_another_config(cfg, checkpoint, tmp_path):
    other = copy.deepcopy(cfg)
    other.model.backbone = {key: value for key, value in cfg.model.backbone.items() if key != 'sharing'}
    other.model.backbone |= dict(type='ResNet', depth=34)
    torch.save(build_model(other).state_dict(), tmp_path / 'other.pth')
    other.dump(tmp_path / 'other.py')
    hook = DistillationHook(str(tmp_path / 'other.pth'), str(tmp_path / 'other.py'))
    assert losses_of(attach(hook, student_of(cfg, checkpoint)))['loss_distill'] > 0


def test_bad_input_is_told_in_a_sentence():
    for arguments, message in [
        (dict(modules=['neck']), r"modules=\['neck'\]: give the names of modules, each with 'logits'"),
        (dict(modules=dict(neck='maps')), 'each with .* for example'),
        (dict(temperature=0), 'temperature=0: give a number above 0'),
        (dict(loss_weight=-1), 'loss_weight=-1: give a factor of 0 or more'),
    ]:
        with pytest.raises(SharingError, match=message):
            DistillationHook('plain.pth', **arguments)


def test_what_does_not_fit_the_run_is_told_in_a_sentence(cfg, checkpoint, tmp_path):
    model = student_of(cfg, checkpoint)
    torch.save(dict(state_dict=dict(a=torch.ones(1))), tmp_path / 'other.pth')
    for arguments, message in [
        (dict(checkpoint='none.pth'), 'cannot load its teacher: There is no checkpoint none.pth'),
        (dict(checkpoint=str(tmp_path / 'other.pth')), 'cannot load its teacher: .* is not of the model'),
        (dict(modules=dict(haed='logits')), "'haed', and the model has no such module: it has head"),
        (dict(modules={'backbone.layer1.1.conv1.bank': 'outputs'}), 'and the teacher has no such module'),
        (dict(config='none.py'), 'no config none.py'),
    ]:
        with pytest.raises(SharingError, match=message):
            attach(DistillationHook(**dict(dict(checkpoint=checkpoint), **arguments)), model, cfg)
    with pytest.raises(SharingError, match='this run has no config, so name one'):
        attach(DistillationHook(checkpoint), model)


def test_outputs_that_never_agree_are_refused(cfg, checkpoint, tmp_path):
    model = student_of(cfg, checkpoint)
    other = copy.deepcopy(cfg)
    other.model.head.num_classes = 5
    torch.save(build_plain(other).state_dict(), tmp_path / 'other.pth')
    attach(DistillationHook(str(tmp_path / 'other.pth')), model, other)
    with pytest.raises(SharingError, match='head returns 4x3 in the model and 4x5 in the teacher. Name other modules'):
        losses_of(model)


def test_what_is_compared_depends_on_the_kind_of_model(cfg):
    assert compared_modules(build_plain(cfg)) == dict(head='logits')
    cfg.model.head = dict(type='MultiLabelLinearClsHead', num_classes=10, in_channels=64)
    assert compared_modules(build_plain(cfg)) == dict(head='outputs')
    loss = dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original', use_sigmoid=True)
    cfg.model.head = dict(type='LinearClsHead', num_classes=10, in_channels=64, loss=loss)
    assert compared_modules(build_plain(cfg)) == dict(head='outputs')
    assert compared_modules(torch.nn.ModuleDict(dict(backbone=torch.nn.Identity()))) == dict(backbone='features')
    with pytest.raises(SharingError, match='no default for a Linear'):
        compared_modules(torch.nn.Linear(1, 1))


def images_with_boxes(model):
    return model.data_preprocessor(demo_mm_inputs(2, [[3, 64, 64]] * 2, num_items=[1, 1], num_classes=4), True)


@pytest.fixture
def detector(tmp_path):
    """The config of a narrow Faster R-CNN, a shared network fitted to a plain one, and the checkpoint of that."""
    cfg = Config.fromfile(ROOT / 'configs/small/faster-rcnn_r50-narrow-shared_12e_chess.py')
    init_default_scope('mmdet')
    torch.save(build_plain(cfg).state_dict(), tmp_path / 'plain.pth')
    model = build_model(cfg)
    model.load_state_dict(torch.load(tmp_path / 'plain.pth', weights_only=True))
    return cfg, model.train(), str(tmp_path / 'plain.pth')


@pytest.mark.slow
def test_of_a_detector_the_neck_and_the_dense_heads_are_compared(detector):
    cfg, model, checkpoint = detector
    assert compared_modules(model) == dict(neck='features', rpn_head='outputs')
    attach(DistillationHook(checkpoint), model, cfg)
    with patch('mmdet.models.StandardRoIHead.forward', side_effect=AssertionError):  # the teacher stops before it
        losses = model(**images_with_boxes(model), mode='loss')
    total, log = model.parse_losses(losses)
    assert log['loss_distill'] > 1e-3
    torch.testing.assert_close(total, sum(value for name, value in log.items() if name.startswith('loss_')))


@pytest.mark.slow
@pytest.mark.parametrize(
    'name, options',
    [
        ('retinanet/retinanet_r50_fpn_1x_coco.py', {}),
        ('fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', dict(norm_on_bbox=True)),
        ('vfnet/vfnet_r50_fpn_1x_coco.py', {}),
        ('rtmdet/rtmdet_tiny_8xb32-300e_coco.py', {}),
    ],
)
def test_a_detector_of_one_stage_that_equals_its_teacher_has_nothing_to_learn(name, options, tmp_path):
    cfg = load_config(f'mmdet::{name}')
    cfg.model.bbox_head.update(options)
    cfg.model.pop('init_cfg', None)
    init_default_scope('mmdet')
    model = build_model(cfg).eval()
    torch.save(model.state_dict(), tmp_path / 'plain.pth')
    for module in model.modules():
        module.training = not isinstance(module, _BatchNorm)
    hook = DistillationHook(str(tmp_path / 'plain.pth'))
    with patch.object(hook, 'distance', wraps=hook.distance) as distance:
        losses = attach(hook, model, cfg)(**images_with_boxes(model), mode='loss')
    assert [each.args[0] for each in distance.call_args_list] == ['features', 'outputs']
    assert losses['loss_distill'].abs() < 1e-5


@pytest.mark.slow
def test_a_detector_without_a_neck_is_compared_by_its_backbone():
    cfg = Config.fromfile(ROOT / 'configs/small/faster-rcnn_r50-narrow_12e_chess.py')
    init_default_scope('mmdet')
    cfg.model.neck = None
    assert compared_modules(build_model(cfg)) == dict(backbone='features', rpn_head='outputs')


def run(
    cfg, checkpoint, work_dir, epochs=2, batch_size=2, hooks=(dict(type='DistillationHook'),), shuffle=False, **options
):
    """Train by a runner. Returns the weights, and what was logged in each iteration."""
    data = [dict(inputs=image, data_samples=sample) for image, sample in zip(*batch(8).values())]
    runner = Runner(
        student_of(cfg, checkpoint),
        str(work_dir),
        DataLoader(data, batch_size, shuffle, collate_fn=pseudo_collate),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(
            dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9)), **options.pop('optim_wrapper', {})
        ),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1)),
        randomness=dict(seed=0),
        custom_hooks=[dict(hook, checkpoint=checkpoint) for hook in hooks],
        default_scope='mmpretrain',
        experiment_name=f'{work_dir}-{epochs}'.replace('/', '-'),
        cfg=cfg,
        **options,
    )
    runner.train()
    logged = [json.loads(line) for path in work_dir.glob('*/vis_data/scalars.json') for line in path.open()]
    return runner.model.state_dict(), logged


def same(weights, others):
    return all(torch.equal(tensor, others[key]) for key, tensor in weights.items())


@pytest.mark.slow
def test_the_loss_is_in_the_log_and_falls(cfg, checkpoint, tmp_path):
    optimizer = dict(optimizer=dict(type='SGD', lr=0.002))
    hooks = [dict(type='DistillationHook', loss_weight=10.0)]
    _, logged = run(cfg, checkpoint, tmp_path, epochs=6, hooks=hooks, optim_wrapper=optimizer)
    losses = [record['loss_distill'] for record in logged]
    assert len(losses) == 24
    assert sum(losses[-4:]) < 0.5 * sum(losses[:4])


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_weights(cfg, checkpoint, tmp_path):
    whole, _ = run(cfg, checkpoint, tmp_path / 'whole')
    run(cfg, checkpoint, tmp_path / 'parts', epochs=1)
    resumed, logged = run(cfg, checkpoint, tmp_path / 'parts', resume=True)
    assert len(logged) == 8
    assert same(whole, resumed)


@pytest.mark.slow
def test_without_weight_the_run_is_as_without_the_hook(cfg, checkpoint, tmp_path):
    silent_hook = dict(type='DistillationHook', loss_weight=0.0)
    without, _ = run(cfg, checkpoint, tmp_path / 'without', hooks=[], shuffle=True)
    silent, _ = run(cfg, checkpoint, tmp_path / 'silent', hooks=[silent_hook], shuffle=True)
    taught, _ = run(cfg, checkpoint, tmp_path / 'taught', shuffle=True)
    assert same(without, silent)
    assert not same(without, taught)


@pytest.mark.slow
def test_accumulated_gradients_are_those_of_the_whole_batch(cfg, checkpoint, tmp_path):
    whole, _ = run(cfg, checkpoint, tmp_path / 'whole', batch_size=4)
    parts, _ = run(cfg, checkpoint, tmp_path / 'parts', optim_wrapper=dict(accumulative_counts=2))
    for key, tensor in whole.items():
        torch.testing.assert_close(parts[key], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_compiled_model_takes_the_same_steps(cfg, checkpoint, tmp_path):
    weights, _ = run(cfg, checkpoint, tmp_path / 'plain')
    compiled, _ = run(Config(dict(cfg, compile=dict(backend='aot_eager'))), checkpoint, tmp_path / 'compiled')
    for key, tensor in weights.items():
        torch.testing.assert_close(compiled[key], tensor)


def gradients(model, part, cfg, checkpoint):
    attach(DistillationHook(checkpoint), model, cfg)
    data = batch()
    losses = model(inputs=data['inputs'][part], data_samples=data['data_samples'][part], mode='loss')
    losses['loss_distill'].backward()
    return {name: p.grad for name, p in getattr(model, 'module', model).named_parameters() if p.grad is not None}


def worker(rank, folder):
    join(rank, folder)
    init_default_scope('mmpretrain')
    cfg, checkpoint = config(TIED), f'{folder}/plain.pth'
    model = MMDistributedDataParallel(student_of(cfg, checkpoint))
    torch.save(gradients(model, slice(2 * rank, 2 * rank + 2), cfg, checkpoint), f'{folder}/{rank}.pth')
    leave()


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one(checkpoint, tmp_path):
    cfg = config(TIED)
    in_two_processes(worker, str(tmp_path))
    expected = gradients(student_of(cfg, checkpoint), slice(None), cfg, checkpoint)
    for rank in range(2):
        found = torch.load(tmp_path / f'{rank}.pth', weights_only=True)
        assert found.keys() == expected.keys()
        for name, grad in expected.items():
            torch.testing.assert_close(found[name], grad, rtol=1e-4, atol=1e-6)
