"""Laws of template banks as loops: similarity, the loss that rewards it, programs, folding."""

import re
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from PIL import Image
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from helpers import (
    BANKS,
    TWO_STAGES,
    backbone,
    call,
    classifier_config,
    evaluating,
    image,
    randomise_norms,
    small,
    stage_banks,
    train,
)
from mmshared import (
    LayerSimilarityHook,
    LoopedTemplates,
    RecurrenceLossHook,
    SharingError,
    TemplateBank,
    banks,
    layer_similarity,
)
from mmshared.analysis.complexity import parameter_count
from mmshared.analysis.logs import read_scalars
from mmshared.backbones.wide_resnet import WideResNet_CIFAR
from mmshared.convert.loops import fold_loops, loop_program, similar_layers, stage_programs
from mmshared.engine.build import build_model
from mmshared.hooks import recurrence_loss, template_banks
from mmshared.sharing.deployment import relative_difference

TEMPLATES = BANKS['templates']
PATTERN = [0, 1, 0, 1, 0, 1]
FOLD, SIMILARITY = 'model_converters/fold_loops.py', 'analysis_tools/layer_similarity.py'


def make_bank(rows):
    """A template bank whose convs have the rows of a matrix as coefficients."""
    convs = [nn.Conv2d(3, 3, 3, padding=1, bias=False) for _ in rows]
    bank = TemplateBank(convs, num_templates=rows.shape[1])
    for conv, row in zip(convs, rows):
        bank.make_layer(conv).coefficients.data = row.clone()
    return bank


def config(bank=TEMPLATES, data_root=None, network=None, width=64):
    """A classifier on a wide ResNet of depth 28 and width 1, whose banks have six convs each, or on another backbone;
    with data where there is some."""
    network = network or dict(
        type='SharedWideResNet_CIFAR', depth=28, widen_factor=1, sharing=dict(groups=['conv[12]'], bank=bank)
    )
    cfg = classifier_config(network, width)
    cfg.custom_imports = dict(imports=['mmshared'], allow_failed_imports=False)
    if data_root is not None:
        for split in ('train', 'test'):
            pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
            cfg[f'{split}_dataloader'] = dict(
                batch_size=8,
                num_workers=0,
                sampler=dict(type='DefaultSampler', shuffle=split == 'train'),
                dataset=dict(type='CustomDataset', data_root=str(data_root), data_prefix=split, pipeline=pipeline),
            )
        cfg.update(
            data_preprocessor=dict(mean=[127.0] * 3, std=[60.0] * 3, to_rgb=True),
            test_cfg=dict(),
            test_evaluator=dict(type='Accuracy', topk=(1,)),
            visualizer=dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')], name='visualizer'),
            train_cfg=dict(by_epoch=True, max_epochs=1),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
            custom_hooks=[dict(type='LayerSimilarityHook'), dict(type='EmptyCacheHook')],
        )
    return cfg


def make_alike(model, noise=0.0):
    """Give the layers of each bank coefficients that follow the pattern, in sizes and signs of their own."""
    for bank in template_banks(model).values():
        rows = torch.randn(2, len(bank.templates))
        for i, (conv, kernel) in enumerate(zip(bank.layers, PATTERN)):
            row = (-1) ** (i // 2) * (0.5 + 0.3 * i) * rows[kernel]
            conv.coefficients.data = row + noise * torch.randn_like(row)
    return evaluating(randomise_norms(model))


def write(tmp_path, cfg, model):
    """A config and a checkpoint as files."""
    cfg.dump(tmp_path / 'config.py')
    torch.save(
        dict(state_dict=model.state_dict(), meta=dict(epoch=3, dataset_meta=dict(classes=list('abcdefghij')))),
        tmp_path / 'model.pth',
    )
    return tmp_path / 'config.py', tmp_path / 'model.pth'


# The start


@pytest.mark.parametrize(
    'make, kernels',
    [
        (lambda convs: TemplateBank(convs, num_templates=4), 8),
        (lambda convs: LoopedTemplates(convs, kernels=[0, 1, 2, 3, 4, 5, 0, 1], num_templates=4), 6),
    ],
    ids=['templates', 'loops'],
)
def test_templates_start_as_kernels_do_and_their_coefficients_orthogonal(make, kernels):
    convs = [nn.Conv2d(32, 64, 3, bias=False) for _ in range(8)]
    bank = make(convs)
    for conv in convs:
        bank.make_layer(conv)
    coefficients = bank.coefficients() if callable(bank.coefficients) else bank.coefficients
    assert coefficients.shape == (kernels, 4)
    torch.testing.assert_close(coefficients.T @ coefficients, torch.eye(4), rtol=0, atol=1e-5)
    # Kaiming's normal distribution: variance 2 / fan in.
    assert bank.templates.var(unbiased=False).item() == pytest.approx(2 / (32 * 9), rel=0.02)


# Similarity and its loss


def test_similarity_is_the_absolute_cosine_and_0_without_coefficients():
    bank = make_bank(torch.tensor([[3.0, 4.0], [-6.0, -8.0], [4.0, -3.0], [0.0, 0.0], [1.0, 0.0]]))
    expected = torch.tensor([[1, 1, 0, 0, 0.6], [1, 1, 0, 0, 0.6], [0, 0, 1, 0, 0.8], [0] * 5, [0.6, 0.6, 0.8, 0, 1]])
    torch.testing.assert_close(layer_similarity(bank), expected)
    with torch.autocast('cpu', torch.bfloat16):
        torch.testing.assert_close(layer_similarity(bank), expected)
    assert layer_similarity(bank.bfloat16()).dtype == torch.float32


def test_the_recurrence_loss_equals_its_formula_and_its_gradient_raises_similarity():
    banks = {name: make_bank(torch.randn(5, 3)) for name in 'ab'}
    expected = 0
    for bank in banks.values():
        rows = bank.coefficients().detach()
        for i in range(5):
            for j in range(i + 1, 5):
                expected += 1 - (rows[i] @ rows[j]).abs() / rows[i].norm() / rows[j].norm()
    loss = recurrence_loss(banks)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    for bank in banks.values():
        for conv in bank.layers:
            conv.coefficients.data -= 0.01 * conv.coefficients.grad
    assert recurrence_loss(banks) < loss - 1e-3
    alike = {'a': make_bank(torch.tensor([[1.0, 2.0], [-2.0, -4.0], [3.0, 6.0]]))}
    assert recurrence_loss(alike).abs() < 1e-6
    # A conv without coefficients is like none; nothing is divided by its length.
    without = make_bank(torch.tensor([[1.0, 2.0], [0.0, 0.0]]))
    recurrence_loss({'a': without}).backward()
    assert all(conv.coefficients.grad.isfinite().all() for conv in without.layers)
    for conv in banks['a'].layers:
        conv.coefficients.requires_grad_(False)
    assert recurrence_loss(banks) == recurrence_loss({'b': banks['b']})


@pytest.mark.slow
def test_the_hooks_add_the_loss_and_write_the_similarity(mmpretrain, tmp_path):
    network = backbone(depth=34, groups=['conv[12]'], bank=TEMPLATES, **TWO_STAGES)
    start = recurrence_loss(template_banks(network)).item()
    model, seen = train(network, tmp_path, [RecurrenceLossHook(0.5), LayerSimilarityHook(2)], iterations=4)
    assert seen[0]['loss_recurrence'].item() == pytest.approx(0.5 * start)
    assert recurrence_loss(template_banks(network)) < start
    assert not model._forward_hooks
    scalars = read_scalars(tmp_path)
    for name, bank in template_banks(model).items():
        similarity = layer_similarity(bank).detach()
        pairs = similarity[np.triu_indices(len(similarity), 1)]
        for key, value in (('mean', pairs.mean()), ('max', pairs.max())):
            written = scalars[f'similarity/{name}/{key}']
            assert [step for step, _ in written] == [2, 4]
            assert written[-1][1] == pytest.approx(value.item(), abs=1e-5)
        (drawn,) = tmp_path.glob(f'*/vis_data/vis_image/similarity_{name.replace("[", "[[]")}_4.png')
        # The brighter, the more alike: a square for each pair.
        green = np.asarray(Image.open(drawn))[8::16, 8::16, 1].astype(int)
        assert green.shape == similarity.shape
        order = similarity.flatten().argsort()
        assert (np.diff(green.flatten()[order]) >= 0).all() and green.max() > green.min()


@pytest.mark.parametrize('hook', [RecurrenceLossHook(1.0), LayerSimilarityHook()])
def test_hooks_without_a_template_bank_are_refused(mmpretrain, tmp_path, hook):
    with pytest.raises(SharingError, match=f'{type(hook).__name__} found no TemplateBank'):
        train(small(), tmp_path, [hook])


# Groups and programs


def test_every_two_layers_of_a_group_are_alike():
    # A chain: neighbours are alike, the ends are not.
    angles = torch.tensor([0.0, 0.25, 0.45, 1.5, 1.6, 0.05])
    similarity = (angles[:, None] - angles).cos().abs()
    assert similar_layers(similarity, 0.95) == [0, 1, 1, 2, 2, 0]
    assert similar_layers(similarity, 0.8) == [0, 0, 0, 1, 1, 0]
    assert similar_layers(similarity, 0.9999) == [0, 1, 2, 3, 4, 5]
    assert similar_layers(torch.ones(3, 3), 0.95) == [0, 0, 0]
    for _ in range(20):
        similarity = layer_similarity(make_bank(torch.randn(8, 2))).detach()
        groups = torch.tensor(similar_layers(similarity, 0.9))
        assert (similarity[groups[:, None] == groups] > 0.9).all()


@pytest.mark.parametrize(
    'sequence, program',
    [
        ('ababab', [('ab', 3)]),
        ('aaaa', [('a', 4)]),
        ('abc', [('abc', 1)]),
        ('abcbcbcd', [('a', 1), ('bc', 3), ('d', 1)]),
        ('ababac', [('ab', 2), ('ac', 1)]),
        ('aabaab', [('aab', 2)]),
        ('aabb', [('a', 2), ('b', 2)]),
        ('', []),
    ],
)
def test_the_program_of_a_sequence_is_the_shortest(sequence, program):
    assert [(''.join(body), times) for body, times in loop_program(sequence)] == program


def test_a_program_runs_its_sequence():
    random = np.random.default_rng(0)
    for _ in range(100):
        sequence = random.integers(0, 3, random.integers(1, 13)).tolist()
        program = loop_program(sequence)
        assert [item for loop in program for item in loop.body * loop.times] == sequence
        assert sum(len(loop.body) for loop in program) <= len(sequence)


# Folding


@pytest.mark.parametrize(
    'templates, pattern, program',
    [
        (2, PATTERN, '0.conv1 0.conv2; loop 3 x [1.conv1 1.conv2]'),
        (4, PATTERN, '0.conv1 0.conv2; loop 3 x [1.conv1 1.conv2]'),
        (1, [0] * 6, '0.conv1 0.conv2; loop 6 x [1.conv1]'),
        (2, [0, 1, 1, 2, 3, 0], '0.conv1 0.conv2 1.conv1; loop 2 x [1.conv2]; 2.conv2 3.conv1 1.conv1'),
    ],
)
def test_layers_that_are_alike_fold_without_a_change_of_the_output(templates, pattern, program):
    cfg = config(dict(TEMPLATES, num_templates=templates))
    model = build_model(cfg)
    # Directions far from each other: no two of them are alike by chance.
    angles = torch.arange(4) * 0.7
    for bank in template_banks(model).values():
        for i, (conv, kernel) in enumerate(zip(bank.layers, pattern)):
            row = torch.zeros(templates)
            row[:2] = torch.stack([angles[kernel].cos(), angles[kernel].sin()])[:templates]
            conv.coefficients.data = (-1) ** (i // 2) * (0.5 + 0.3 * i) * row
    evaluating(randomise_norms(model))
    folded_cfg, folded, conversions = fold_loops(cfg, model, 0.95)
    assert [bank.kernels for banks in stage_banks(folded).values() for bank in banks] == 3 * [pattern]
    assert max(conversion.error for conversion in conversions) < 1e-5
    assert stage_programs(folded)['backbone.layer1'] == program
    assert parameter_count(folded) < parameter_count(model)
    kept = min(templates, max(pattern) + 1)
    assert all(len(bank.templates) == kept for banks in stage_banks(folded).values() for bank in banks)
    x = image(32)
    assert relative_difference([folded(x)], [model(x)]) < 1e-4
    again = evaluating(build_model(folded_cfg))
    again.load_state_dict(folded.state_dict(), strict=True)
    assert torch.equal(again(x), folded(x))


def test_the_fold_changes_the_kernels_as_little_as_can_be():
    cfg = config(dict(TEMPLATES, num_templates=3))
    model = make_alike(build_model(cfg), noise=0.1)
    _, folded, conversions = fold_loops(cfg, model, 0.8)
    assert conversions
    for before, after in zip(stage_banks(model).values(), stage_banks(folded).values()):
        bank, looped = before[0], after[0]
        gram = bank.templates.flatten(1) @ bank.templates.flatten(1).T
        least, change = 0, 0
        for kernel in set(looped.kernels):
            members = [i for i, other in enumerate(looped.kernels) if other == kernel]
            rows = bank.coefficients()[members]
            # Of the best fit of rank one, all but the leading eigenvalue of the kernels' own Gram matrix is lost.
            least += torch.linalg.eigvalsh(rows @ gram @ rows.T)[:-1].sum()
            for i in members:
                change += (bank.layers[i].dense()[0] - looped.layers[i].dense()[0]).square().sum()
        torch.testing.assert_close(change, least, rtol=1e-3, atol=1e-5)
        assert least > 1e-4


def test_parameters_never_grow_by_folding():
    for templates, threshold in [(1, 0.5), (2, 0.97), (2, 0.9), (2, 0.5), (3, 0.8), (5, 0.5), (8, 0.4)]:
        cfg = config(dict(TEMPLATES, num_templates=templates))
        model = build_model(cfg)
        for bank in template_banks(model).values():
            for conv in bank.layers:
                nn.init.normal_(conv.coefficients)
        bank.layers[2].coefficients.data.zero_()  # like no other layer
        _, folded, conversions = fold_loops(cfg, model, threshold)
        assert conversions and parameter_count(folded) < parameter_count(model)
        assert all(parameter.isfinite().all() for parameter in folded.parameters())


def test_folded_loops_keep_weight_decay_off_scalars():
    cfg = config()
    cfg.optim_wrapper = dict(
        optimizer=dict(type='SGD', lr=0.1, weight_decay=0.1),
        paramwise_cfg=dict(custom_keys={'coefficients': dict(decay_mult=0)}),
    )
    folded_cfg, folded, _ = fold_loops(cfg, make_alike(build_model(cfg)), 0.95)
    wrapper = build_optim_wrapper(folded, folded_cfg.optim_wrapper)
    decays = {id(p): group['weight_decay'] for group in wrapper.param_groups for p in group['params']}
    scales = [decays[id(p)] for name, p in folded.named_parameters() if name.endswith('.scale')]
    assert scales == [0] * 12


def test_a_bank_without_alike_layers_stays_beside_one_that_loops():
    cfg = config(dict(TEMPLATES, num_templates=6))
    model = build_model(cfg)
    first = stage_banks(model)['backbone.layer1'][0]
    first.layers[3].coefficients.data = -2 * first.layers[0].coefficients.data
    folded_cfg, folded, conversions = fold_loops(cfg, model, 0.95)
    kinds = [type(bank) for banks in stage_banks(folded).values() for bank in banks]
    assert kinds == [LoopedTemplates, TemplateBank, TemplateBank] and len(conversions) == 1
    assert stage_banks(folded)['backbone.layer1'][0].kernels == [0, 1, 2, 0, 3, 4]
    for name in ('layer2', 'layer3'):
        for key, tensor in model.backbone.get_submodule(name).state_dict().items():
            assert torch.equal(tensor, folded.backbone.get_submodule(name).state_dict()[key])
    # What is left can be folded in its turn, if there is anything.
    assert fold_loops(folded_cfg, folded, 0.95)[2] == []


def test_each_group_of_a_stage_has_loops_of_its_own():
    cfg = config(
        width=256,
        network=dict(
            type='SharedResNet',
            depth=50,
            base_channels=8,
            stem_channels=8,
            sharing=dict(groups=['conv2', 'conv3'], bank=TEMPLATES),
        ),
    )
    model = build_model(cfg)
    for conv2, conv3 in stage_banks(model).values():
        for conv in conv2.layers:
            conv.coefficients.data = torch.tensor([1.0, 2.0])
        for i, conv in enumerate(conv3.layers):
            conv.coefficients.data = torch.eye(2)[i % 2]
    evaluating(randomise_norms(model))
    folded_cfg, folded, _ = fold_loops(cfg, model, 0.95)
    folded_banks = {(each.stages, *each.groups): each.bank for each in folded_cfg.model.backbone.sharing}
    assert folded_banks['layer3', 'conv2'] == dict(type='LoopedTemplates', kernels=[0] * 5, num_templates=2)
    assert folded_banks['layer3', 'conv3'] == dict(type='LoopedTemplates', kernels=[0, 1, 0, 1, 0], num_templates=2)
    assert folded_banks['layer1', 'conv3'] == TEMPLATES  # two convs, which differ
    x = image(32)
    assert relative_difference([folded(x)], [model(x)]) < 1e-4


def test_a_plain_checkpoint_loads_into_loops(mmpretrain):
    bank = dict(type='LoopedTemplates', kernels=[0, 0], num_templates=1)
    plain, looped = [
        backbone(depth=34, groups=['conv1'], bank=each, num_stages=1, strides=(1,), dilations=(1,), out_indices=(0,))
        for each in (None, bank)
    ]
    looped.load_state_dict(plain.state_dict(), strict=True)
    rows = torch.stack([plain.layer1[i].conv1.weight.flatten() for i in (1, 2)])
    change = sum((plain.layer1[i].conv1.weight - looped.layer1[i].conv1.dense()[0]).square().sum() for i in (1, 2))
    torch.testing.assert_close(change, torch.linalg.svdvals(rows)[1].square())


def test_kernels_of_no_size_and_at_right_angles_fit():
    convs = [nn.Conv2d(3, 3, 3) for _ in range(3)]
    kernel = torch.randn_like(convs[0].weight)
    for kernels in ([0 * kernel, kernel, -2 * kernel], [0 * kernel] * 3):
        bank = LoopedTemplates(convs, kernels=[0, 0, 0], num_templates=1)
        looped = [bank.make_layer(conv) for conv in convs]
        bank.fit(kernels)
        torch.testing.assert_close([conv.dense()[0] for conv in looped], kernels, atol=1e-4, rtol=1e-4)


def test_a_kernel_counts_as_often_as_it_runs():
    first, often, last = (torch.randn(16, 16, 3, 3) for _ in range(3))
    kernels = [first, 0.8 * often, 0.9 * often, 0.7 * often, last]
    convs = [nn.Conv2d(16, 16, 3) for _ in kernels]
    bank = LoopedTemplates(convs, kernels=[0, 1, 1, 1, 2], num_templates=2)
    looped = [bank.make_layer(conv) for conv in convs]
    bank.fit(kernels)
    error = sum((layer.weight - kernel).square().sum() for layer, kernel in zip(looped, kernels))
    assert error < 1.01 * min(first.square().sum(), last.square().sum())  # that of leaving out one of these


def test_loops_of_layers_outside_of_a_shared_backbone_are_refused(mmpretrain):
    cfg = config(network=dict(type='WideResNet_CIFAR', depth=28, widen_factor=1))
    cfg.model.update(type='SharedImageClassifier', sharing=dict(layers=r'backbone.layer1.*conv1', bank=TEMPLATES))
    with pytest.raises(SharingError, match='give the backbone a sharing of its own'):
        fold_loops(cfg, build_model(cfg), 0.5)


def test_stages_without_a_group_need_no_bank(library):
    # MobileNetV2: stages of one to four blocks, of which the first keeps its own convs.
    pattern = '(conv.0|expand_conv).conv'
    make = dict(type='MobileNetV2', groups=[pattern], widen_factor=0.25, out_indices=(6,))
    model = evaluating(randomise_norms(backbone(bank=TEMPLATES, **make)))
    counts = {bank.stage: len(bank.layers) for bank in banks(model)}
    assert counts == dict(layer3=2, layer4=3, layer5=2, layer6=2)
    sharing = [
        dict(stages=stage, groups=[pattern], bank=dict(type='LoopedTemplates', kernels=[0] * count, num_templates=1))
        for stage, count in counts.items()
    ]
    looped = evaluating(
        MODELS.build(dict(type='SharedMobileNetV2', widen_factor=0.25, out_indices=(6,), sharing=sharing))
    )
    assert parameter_count(looped) < parameter_count(model)
    assert {bank.stage: len(bank.layers) for bank in banks(looped)} == counts
    assert looped(image())[0].isfinite().all()


@pytest.mark.parametrize(
    'bank, words',
    [
        (
            dict(type='LoopedTemplates', kernels=[0, 1, 0], num_templates=1),
            'not a list of kernels for a group of 6 convs',
        ),
        (dict(type='LoopedTemplates', kernels=[0, 0, 2, 0, 2, 0], num_templates=1), 'number the kernels from 0'),
        (dict(type='LoopedTemplates', kernels=[0] * 6, num_templates=0), 'num_templates=0 makes no kernel'),
    ],
)
def test_banks_that_fit_no_network_are_refused(bank, words):
    with pytest.raises(SharingError, match=words):
        build_model(config(bank))


# The tools


@contextmanager
def batches_of_training():
    """The batches that wide ResNets in training mode get within this context."""
    seen = []

    def see(module, args):
        if isinstance(module, WideResNet_CIFAR) and module.training:
            seen.append(args[0])

    handle = register_module_forward_pre_hook(see)
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.slow
def test_the_tool_writes_a_network_of_loops_that_loads_and_tells_what_it_costs(images, tmp_path):
    cfg = config(data_root=images)
    model = make_alike(build_model(cfg), noise=0.02)
    out = tmp_path / 'out/loops.pth'
    with batches_of_training() as seen:
        result = call(FOLD, *write(tmp_path, cfg, model), out, '--threshold', '0.9', '--recalibrate', '2')
    assert result.returncode == 0, result.stderr
    said = result.stdout
    assert 'backbone.layer1: 0.conv1 0.conv2; loop 3 x [1.conv1 1.conv2]' in said
    before, after = re.search(r'parameters: (\S+) before, (\S+) after', said).groups()
    assert int(before.replace(',', '')) == parameter_count(model) > int(after.replace(',', ''))
    assert re.search(r'weights on disk: \S+ MB before, \S+ MB after', said)
    assert re.search(r'accuracy/top1: \S+ before, \S+ after, \S+ after, recalibrated', said)

    written, checkpoint = Config.fromfile(out.with_suffix('.py')), torch.load(out, weights_only=True)
    assert [hook['type'] for hook in written.custom_hooks] == ['EmptyCacheHook']
    assert checkpoint['meta']['dataset_meta'] == dict(classes=list('abcdefghij'))
    folded = evaluating(build_model(written))
    folded.load_state_dict(checkpoint['state_dict'], strict=True)
    assert parameter_count(folded) == int(after.replace(',', ''))
    assert [bank.kernels for banks in stage_banks(folded).values() for bank in banks] == 3 * [PATTERN]
    kernels = [
        conv.dense()[0]
        for net in (model, folded)
        for banks in stage_banks(net).values()
        for bank in banks
        for conv in bank.layers
    ]
    assert relative_difference(kernels[18:], kernels[:18]) < 0.2
    # The first batch norm has the mean of two batches of the training set, not the numbers that it was given.
    norm, means = folded.backbone.layer1[0].norm1, []
    norm.register_forward_pre_hook(lambda module, args: means.append(args[0].mean((0, 2, 3))))
    for batch in seen:
        folded.backbone(batch)
    assert len(means) == 2
    torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_recalibration_takes_exactly_the_batches_asked_for(images, tmp_path):
    cfg = config(data_root=images)
    files = write(tmp_path, cfg, make_alike(build_model(cfg)))
    with batches_of_training() as seen:
        call(FOLD, *files, tmp_path / 'out.pth', '--recalibrate', '3', '--no-test')
    assert [len(batch) for batch in seen] == [8] * 3


@pytest.mark.slow
def test_the_tool_goes_on_without_data_and_leaves_what_does_not_loop(tmp_path):
    cfg = config(dict(TEMPLATES, num_templates=6), data_root=tmp_path / 'none')
    files, out = write(tmp_path, cfg, build_model(cfg)), tmp_path / 'out.pth'
    result = call(FOLD, *files, out)
    assert result.returncode == 0 and 'the network is not changed, and nothing was written' in result.stdout
    assert not out.exists() and not out.with_suffix('.py').exists()
    torch.save(dict(state_dict=make_alike(build_model(cfg)).state_dict()), files[1])
    result = call(FOLD, *files, out, '--recalibrate', '1')
    assert 'The data set of train_dataloader' in result.stderr and result.returncode == 1 and not out.exists()
    result = call(FOLD, *files, out)
    assert re.search('Nothing is evaluated: The data set of test_dataloader .* is not there', result.stdout)
    assert result.returncode == 0 and out.exists()
    # What loops has no template bank any more, and a plain network never had one.
    assert (
        'Error: The network of this config has no TemplateBank'
        in call(FOLD, out.with_suffix('.py'), out, tmp_path / 'again.pth').stderr
    )
    plain = config(network=dict(type='WideResNet_CIFAR', depth=16, widen_factor=1))
    files = write(tmp_path, plain, build_model(plain))
    assert 'Error: The network of this config has no TemplateBank' in call(FOLD, *files, tmp_path / 'again.pth').stderr
    assert 'Error: The model of this config has no TemplateBank' in call(SIMILARITY, *files).stderr
    assert 'must be different files' in call(FOLD, *files, files[1]).stderr
    assert 'from 0 to below 1' in call(FOLD, *files, out, '--threshold', '1').stderr


@pytest.mark.slow
def test_the_similarities_of_a_checkpoint_are_drawn_and_their_groups_told(tmp_path):
    cfg = config()
    result = call(SIMILARITY, *write(tmp_path, cfg, make_alike(build_model(cfg))), '--out', tmp_path / 'drawn.png')
    assert result.stdout.count('above 0.95: 1.conv1 2.conv1 3.conv1\n') == 3, result.stderr
    assert result.stdout.count('above 0.95: 1.conv2 2.conv2 3.conv2\n') == 3
    # Half of all squares are at 1, the brightest colour.
    pixels = np.asarray(Image.open(tmp_path / 'drawn.png').convert('RGB')).astype(int)
    bright = (np.abs(pixels - [253, 231, 36]).max(2) < 3).sum()
    assert bright > 0.1 * pixels.shape[0] * pixels.shape[1]
