"""Stock configs with their backbone swapped, and the usual knobs on top."""

import copy
import re
from importlib import import_module

import pytest
import torch
from mmdet.models import ResNet
from mmdet.models.backbones.trident_resnet import TridentConv
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.model import BaseModule
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, Registry, init_default_scope
from mmengine.runner.checkpoint import load_state_dict
from mmpretrain.structures import DataSample
from torch import nn

from helpers import (
    BANKS,
    BASIS,
    ROOT,
    TIED,
    Classifier,
    Forked,
    backbone,
    chain,
    evaluating,
    image,
    randomise_norms,
    small,
    train,
)
from mmshared import (
    Bank,
    OrthogonalityLossHook,
    SharedLayer,
    SharingError,
    SharingMixin,
    TiedFilters,
    banks,
    named_banks,
    repeated_layers,
    share_layers,
)
from mmshared.analysis.sweep import Outcome, Sweep, backbones_of, build_part, count, tie
from mmshared.backbones import make_twins
from mmshared.backbones.mmdet import SharedResNet
from mmshared.engine.build import build_empty
from mmshared.engine.config import config_path, load_config, merge_options, plain_twin
from mmshared.engine.runner import check_config
from mmshared.sharing.deployment import relative_difference

# A config of each kind, and the size of its images where that matters.
DETECTORS = {
    'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py': {},
    'mask_rcnn/mask-rcnn_x101-32x4d_fpn_1x_coco.py': dict(with_mask=True),
    'cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py': {},
    'retinanet/retinanet_r18_fpn_1x_coco.py': {},
    'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py': {},
    'atss/atss_r50_fpn_1x_coco.py': {},
    'detr/detr_r50_8xb2-150e_coco.py': {},
    'panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py': dict(with_mask=True, with_semantic=True),
    'regnet/retinanet_regnetx-800MF_fpn_1x_coco.py': {},
    'res2net/faster-rcnn_res2net-101_fpn_2x_coco.py': {},
    'resnest/faster-rcnn_s50_fpn_syncbn-backbone+head_ms-range-1x_coco.py': {},
    'tridentnet/tridentnet_r50-caffe_1x_coco.py': {},
    'yolo/yolov3_mobilenetv2_8xb24-320-300e_coco.py': {},
    'swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py': {},
    'pvt/retinanet_pvtv2-b0_fpn_1x_coco.py': {},
    'rtmdet/rtmdet_s_8xb32-300e_coco.py': {},
}
CLASSIFIERS = [
    'resnet/resnet18_8xb16_cifar10.py',
    'resnet/resnetv1d50_8xb32_in1k.py',
    'resnext/resnext50-32x4d_8xb32_in1k.py',
    'regnet/regnetx-400mf_8xb128_in1k.py',
    'res2net/res2net50-w14-s8_8xb32_in1k.py',
    'seresnet/seresnet50_8xb32_in1k.py',
    'mobilenet_v2/mobilenet-v2_8xb32_in1k.py',
    'shufflenet_v1/shufflenet-v1-1x_16xb64_in1k.py',
    'convnext/convnext-tiny_32xb128_in1k.py',
    'hrnet/hrnet-w18_4xb32_in1k.py',
]


def few_regions(cfg):
    """Of the regions of detectors in two stages, so many that the second one does not outweigh all other layers."""
    for settings in (cfg.get('train_cfg') or {}, cfg.get('test_cfg') or {}):
        for name in {'rpn', 'rpn_proposal'} & settings.keys():
            if 'max_per_img' in settings[name]:
                settings[name].max_per_img = 30
        stages = settings.get('rcnn', [])
        for stage in stages if isinstance(stages, list) else [stages]:
            if 'sampler' in stage:
                stage.sampler.num = 16


def tie_all(model: dict, scope: str) -> int:
    """Tie the repeated layers in all backbones of a model's config, in place; returns the number of groups."""
    found = [(each, repeated_layers(build_part(each, scope), own_blocks=0)) for each in backbones_of(model)]
    for each, groups in found:
        if groups:
            tie(each, groups)
    return sum(len(groups) for _, groups in found)


def swapped(name):
    cfg = Config.fromfile(config_path(name))
    init_default_scope(cfg.default_scope)
    for each in (cfg.model, cfg.model.get('backbone', {})):
        each.pop('init_cfg', None)  # no downloads
    few_regions(cfg.model)
    assert tie_all(cfg.model, cfg.default_scope)
    model = MODELS.build(cfg.model)
    for module in model.modules():
        if isinstance(module, TridentConv):  # whose weights are memory as it was found
            nn.init.kaiming_normal_(module.weight)
    return model


def gradients_reach_every_bank(model, losses):
    total, log = model.parse_losses(losses)
    assert total.isfinite() and log['loss'] > 0
    total.backward()
    assert banks(model)
    for bank in banks(model):
        assert all(not p.requires_grad or p.grad.abs().max() > 0 for p in bank.parameters())


@pytest.mark.parametrize('name', DETECTORS, ids=lambda name: name.split('/')[0])
@pytest.mark.slow
def test_a_stock_detector_trains_and_detects_with_its_backbone_swapped(name):
    model = swapped(f'mmdet::{name}')
    model.train()
    packed = demo_mm_inputs(
        2, [[3, 96, 96]] * 2, num_items=[3, 3], num_classes=4, sem_seg_output_strides=4, **DETECTORS[name]
    )
    data = model.data_preprocessor(packed, True)
    gradients_reach_every_bank(model, model(**data, mode='loss'))
    model.eval()
    with torch.no_grad():
        (found,) = model(**model.data_preprocessor(demo_mm_inputs(1, [[3, 96, 96]]), False), mode='predict')
    kinds = 'pred_instances', 'pred_panoptic_seg'
    assert any(kind in found for kind in kinds)


@pytest.mark.parametrize('name', CLASSIFIERS, ids=lambda name: name.split('/')[1][:-3])
@pytest.mark.slow
def test_a_stock_classifier_trains_with_its_backbone_swapped(name):
    from mmpretrain.structures import DataSample

    model = swapped(f'mmpretrain::{name}')
    model.train()
    samples = [DataSample().set_gt_label(label) for label in (1, 2)]
    gradients_reach_every_bank(model, model(image(64), samples, mode='loss'))


# Of each row of the table of patterns in the docs: the library, and what its first backbone needs.
ROWS = {
    'ResNet34': ('mmpretrain', dict(type='ResNet', depth=34)),
    'ResNet50': ('mmpretrain', dict(type='ResNet', depth=50)),
    'ResNet101': ('mmpretrain', dict(type='ResNet', depth=101)),
    'ResNeXt101': ('mmpretrain', dict(type='ResNeXt', depth=101)),
    'Res2Net50': ('mmpretrain', dict(type='Res2Net', depth=50, scales=4, base_width=26)),
    'ResNeSt50': ('mmpretrain', dict(type='ResNeSt', depth=50)),
    'MobileNetV2': ('mmpretrain', dict(type='MobileNetV2')),
    'ShuffleNetV1': ('mmpretrain', dict(type='ShuffleNetV1')),
    'Swin-S': ('mmpretrain', dict(type='SwinTransformer', arch='small')),
    'ViT-B': ('mmpretrain', dict(type='VisionTransformer', arch='b')),
    'ConvNeXt-S': ('mmpretrain', dict(type='ConvNeXt', arch='small')),
    'MLP-Mixer-B': ('mmpretrain', dict(type='MlpMixer', arch='b')),
    'HRNet-W18': ('mmpretrain', dict(type='HRNet', arch='w18')),
    'CSPDarknet-l': ('mmdet', dict(type='CSPDarknet', deepen_factor=1.0, widen_factor=1.0)),
    'PVTv2-B2': ('mmdet', dict(type='PyramidVisionTransformerV2', embed_dims=64, num_layers=[3, 4, 6, 3])),
}


@pytest.mark.slow
def test_the_patterns_of_the_docs_save_what_they_say():
    rows = dict(
        re.findall(r'^\| (\S+) \| (.*?) \|$', (ROOT / 'docs/en/choosing_groups_and_banks.md').read_text(), re.M)
    )
    for name, (library, network) in ROWS.items():
        patterns, saved, most = rows[name].split(' | ')
        network = build_empty(Config(dict(model=network, default_scope=library)))
        before = sum(p.numel() for p in network.parameters())
        repeated = sum((len(group.layers) - 1) * group.parameters for group in repeated_layers(network, own_blocks=0))
        share_layers(network, groups=re.findall('`(.*?)`', patterns), bank=TIED)
        after = sum(p.numel() for p in network.parameters())
        assert (saved, most) == (f'{1 - after / before:.0%}', f'{repeated / before:.0%}'), name


@pytest.mark.parametrize(
    'name, module',
    [
        ('SharedFPN', 'mmdet'),
        ('SharedRetinaHead', 'mmdet'),
        ('SharedFasterRCNN', 'mmdet'),
        ('SharedDINO', 'mmdet'),
        ('SharedSwinTransformer', 'mmdet'),
        ('SharedStandardRoIHead', 'mmdet'),
        ('SharedCSPDarknet', 'mmdet'),
        ('SharedDynamicMaskHead', 'mmdet'),
        ('SharedMultiInstanceBBoxHead', 'mmdet'),
        ('SharedQDTrack', 'mmdet'),
        ('SharedMaskTrackRCNN', 'mmdet'),
        ('SharedLinearReIDHead', 'mmdet'),
        ('SharedLinearRegressionHead', 'mmpretrain'),
        ('SharedImageClassifier', 'mmpretrain'),
        ('SharedVisionTransformer', 'mmpretrain'),
        ('SharedHRFuseScales', 'mmpretrain'),
        ('SharedStackedLinearClsHead', 'mmpretrain'),
    ],
)
def test_backbones_necks_heads_and_whole_models_have_twins(name, module):
    twin = getattr(import_module(f'mmshared.backbones.{module}'), name)
    assert import_module(module).registry.MODELS.get(name) is twin
    assert issubclass(twin, twin.plain) and name == f'Shared{twin.plain.__name__}'


class Head(BaseModule):
    """A head that is called by other methods than its forward, as mmdet's RoI heads are."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(16, 16, 1) for _ in range(3))

    def predict(self, x):
        return nn.Sequential(*self.convs)(x)


def test_a_momentum_encoder_follows_a_shared_backbone_and_a_whole_model_is_refused(mmpretrain):
    neck = dict(type='NonLinearNeck', in_channels=512, hid_channels=8, out_channels=8, with_avg_pool=True)
    predictor = dict(neck, in_channels=8, with_avg_pool=False)
    head = dict(type='LatentPredictHead', loss=dict(type='CosineSimilarityLoss'), predictor=predictor)
    sharing = dict(groups=['conv2'], bank=TIED, own_blocks=0)
    plain = dict(type='ResNet', depth=18)
    with pytest.raises(SharingError, match='SharedBYOL keeps a moving average .* share its backbone instead'):
        MODELS.build(dict(type='SharedBYOL', backbone=plain, neck=neck, head=head, sharing=sharing))
    shared = dict(plain, type='SharedResNet', sharing=sharing)
    model = MODELS.build(dict(type='BYOL', backbone=shared, neck=neck, head=head, base_momentum=0.25))
    inputs = [image(32, 2), image(32, 2)], [DataSample()] * 2
    model(*inputs, mode='loss')['loss'].backward()
    online = nn.Sequential(model.backbone, model.neck).state_dict()
    followed = model.target_net.avg_parameters
    filters = {key: tensor.clone() for key, tensor in followed.items() if key.endswith('bank.filters')}
    assert len(filters) == 4 and all(torch.equal(online[key], tensor) for key, tensor in followed.items())
    for bank in banks(model.backbone):
        bank.filters.data += 1
    MessageHub.get_current_instance().update_info('max_iters', 10**6)  # its momentum falls to 0 like a cosine
    model(*inputs, mode='loss')
    for key, before in filters.items():
        torch.testing.assert_close(followed[key], before + 0.25)


def test_a_head_generates_once_in_what_is_called_of_it(monkeypatch):
    registry = Registry('heads')
    registry.register_module(module=Head)
    head = make_twins([Head], registry, __name__)['SharedHead'](sharing=dict(layers='convs.*', bank=TIED))
    made = []
    monkeypatch.setattr(TiedFilters, 'generate', lambda bank: made.append(bank) or bank.filters)
    head.predict(torch.randn(1, 16, 4, 4))
    assert len(made) == 1
    head.convs[0](torch.randn(1, 16, 4, 4))
    assert len(made) == 2  # what was made is not kept


class Trained(BaseModule):
    """A network that has its weights from the start, as timm's, and which names them in its own way, as mmpretrain's
    classifiers of timm do."""

    def __init__(self, pretrained=False):
        super().__init__()
        self.model = chain(lambda: nn.Linear(4, 4))
        if pretrained:
            for number, block in enumerate(self.model):
                nn.init.constant_(block[0].weight, number)
        self._register_state_dict_hook(self._save)
        self._register_load_state_dict_pre_hook(self._load)

    @staticmethod
    def _save(self, state, *_):
        state.update({key.removeprefix('model.'): state.pop(key) for key in list(state)})

    @staticmethod
    def _load(state, *_):
        state.update({f'model.{key}': state.pop(key) for key in list(state)})


class Extra:
    """Something else beside a network."""


class SharedTrained(SharingMixin, Extra, Trained):
    pass


class Whole(BaseModule):
    def __init__(self):
        super().__init__()
        self.backbone = Trained(pretrained=True).model
        self.backbone._is_init = True  # as timm's backbones say it


class SharedWhole(SharingMixin, Whole):
    pass


@pytest.mark.parametrize('kind, plain', [(SharedResNet, ResNet), (SharedTrained, Trained)])
def test_a_class_in_a_config_is_a_twin_as_its_name_is(kind, plain):
    sharing = dict(groups=['conv2'], bank=TIED)
    model = dict(type='ImageClassifier', backbone=dict(type=kind, depth=50, sharing=sharing))
    assert plain_twin(model)['backbone'] == dict(type=plain, depth=50)


class Unfitted(TiedFilters):
    fit = Bank.fit


def test_weights_that_a_network_is_built_with_are_shared():
    sharing = dict(groups=['0'], bank=TIED, own_blocks=0)
    shared = SharedTrained(sharing=sharing, pretrained=True)
    wanted = sum(range(len(shared.model))) / len(shared.model)
    for network in (SharedWhole(sharing=sharing), shared):
        (bank,) = banks(network)
        assert bank.filters.eq(wanted).all()
        network.init_weights()
        assert bank.filters.eq(wanted).all()
    with torch.device('meta'):
        assert all(parameter.is_meta for parameter in SharedTrained(sharing=sharing, pretrained=True).parameters())
    with pytest.warns(
        UserWarning, match='lose the weights that SharedTrained begins with: Unfitted cannot be started'
    ):
        SharedTrained(sharing=dict(sharing, bank=dict(type=Unfitted)), pretrained=True)
    for state in (copy.deepcopy(shared.state_dict()), Trained(pretrained=True).state_dict()):
        nn.init.zeros_(bank.filters)
        shared.load_state_dict(state)
        assert bank.filters.eq(wanted).all()


def test_old_names_of_weights_are_those_of_the_plain_network(mmpretrain):
    """mmpretrain's SwinTransformer takes them only if it is of exactly its class."""
    options = dict(arch='tiny', img_size=64, sharing=dict(groups=['ffn.layers.1'], bank=TIED))
    network = MODELS.build(dict(type='SharedSwinTransformer', **options))
    state = {key.replace('norm3.', 'norm.'): tensor for key, tensor in network.state_dict().items()}
    state['norm.bias'] = torch.full_like(network.norm3.bias, 7)
    load_state_dict(network, state, strict=True)
    assert network.norm3.bias.eq(7).all() and type(network).__name__ == 'SharedSwinTransformer'


class TestSweep:
    def write(self, tmp_path, text):
        (tmp_path / 'config.py').write_text(text)
        return Sweep().config(tmp_path / 'config.py')

    @pytest.mark.slow
    def test_each_kind_of_outcome(self, tmp_path, monkeypatch):
        base = "_base_ = 'mmpretrain::resnet/resnet18_8xb16_cifar10.py'\n"
        built = self.write(tmp_path, base)
        assert built[:3] == ('built', '', 5) and round(built.saved, 3) == 0.284
        assert self.write(tmp_path, "_base_ = 'mmpretrain::lenet/lenet5_mnist.py'") == Outcome(
            'no repeated layer', 'LeNet5'
        )
        assert self.write(tmp_path, "_base_ = 'none.py'").result == 'not here'
        assert self.write(tmp_path, 'x = 1') == Outcome('no backbone')
        absent = self.write(tmp_path, base + "model = dict(head=dict(type='NoSuchHead'))")
        assert absent.result == 'not here' and 'NoSuchHead' in absent.reason
        monkeypatch.setattr(
            'mmshared.analysis.sweep.fold_layers',
            lambda network: network.apply(
                lambda module: nn.init.ones_(module.bias) if isinstance(module, nn.BatchNorm2d) else None
            ),
        )
        differs = self.write(tmp_path, base)
        assert differs.result == 'failed' and 'the folded network differs' in differs.reason
        monkeypatch.setattr('mmshared.backbones.twins.share_layers', lambda *_, **__: 1 / 0)
        assert self.write(tmp_path, base)[:2] == ('failed', 'ZeroDivisionError: division by zero')

    def test_the_totals_count_outcomes_and_reasons(self):
        outcomes = dict(
            a=Outcome('built'),
            b=Outcome('failed', 'x'),
            c=Outcome('built'),
            d=Outcome('failed', 'x'),
            e=Outcome('failed', 'y'),
        )
        assert count(outcomes) == dict(failed=[3, [('x', 2), ('y', 1)]], built=[2, []])

    @pytest.mark.slow
    def test_the_command_prints_config_by_config(self, tmp_path):
        tool = 'misc/sweep_configs.py', 'mmpretrain', '--match'
        result = Forked(tmp_path / 'found', *tool, 'resnet18_8xb16').result()
        lines = result.stdout.splitlines()
        built = [line for line in lines if line.startswith('built')]
        assert result.returncode == 0 and len(built) == 1, result.stdout
        assert built[0].startswith('built    mmpretrain::resnet/resnet18_8xb16_cifar10.py 28.4%')
        assert re.search(r'1 configs in \d+ s', result.stdout) and '    1 built' in lines
        nothing = Forked(tmp_path / 'nothing', *tool, 'nosuch').result()
        assert nothing.returncode == 1 and "has 'nosuch' in its name" in nothing.stderr


def test_a_swap_by_three_lines_and_one_by_options_are_the_same(tmp_path):
    (tmp_path / 'mine.py').write_text(
        "_base_ = ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py']\n"
        "custom_imports = dict(imports=['mmshared'])\n"
        "model = dict(backbone=dict(type='SharedResNet',\n"
        "    sharing=dict(groups=['conv2'], bank=dict(type='TiedFilters'))))"
    )
    mine, options = (
        load_config(str(each)) for each in (tmp_path / 'mine.py', 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
    )
    swap = {'type': 'SharedResNet', 'sharing.groups': ['conv2'], 'sharing.bank.type': 'TiedFilters'}
    merge_options(options, {f'model.backbone.{key}': value for key, value in swap.items()})
    networks = []
    for cfg in (mine, options):
        check_config(cfg)
        networks.append(build_empty(cfg))
    assert (
        list(named_banks(networks[0]))
        == list(named_banks(networks[1]))
        == [f'backbone.layer{i}.conv2' for i in range(1, 5)]
    )
    assert networks[0].state_dict().keys() == networks[1].state_dict().keys()


def test_accumulated_gradients_are_those_of_the_whole_batch(mmpretrain, tmp_path):
    states = []
    for name, batch, steps in (('halves', 2, 2), ('whole', 4, 1)):
        torch.manual_seed(0)
        network = small(norm_eval=True)
        for bank in banks(network):
            bank.filters.data += 0.1 * torch.randn_like(bank.filters)
        optimizer = dict(optimizer=dict(type='SGD', lr=0.1), accumulative_counts=steps)
        model, seen = train(
            network,
            tmp_path / name,
            [OrthogonalityLossHook()],
            iterations=steps,
            batch_size=batch,
            optim_wrapper=optimizer,
        )
        states.append(model.state_dict())
        assert seen[0]['loss_orth'] > 1
    for key, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][key], rtol=1e-4, atol=1e-6)


# Except for random filters, with which maps outgrow half precision where no norm holds them.
@pytest.mark.parametrize('name', [name for name in BANKS if 'random' not in name])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.half], ids=['bf16', 'fp16'])
@pytest.mark.slow
def test_mixed_precision_trains_towards_the_same(mmpretrain, name, dtype):
    model = evaluating(randomise_norms(small(BANKS[name])))
    x, grads = image(32), []
    for enabled in (False, True):
        with torch.autocast('cpu', dtype, enabled=enabled):
            # Scaled as a gradient scaler does: half precision ends at 65,504.
            (model(x)[-1].float().square().mean() / 64).backward()
        grads.append([p.grad.clone() for p in model.parameters()])
        assert all(grad.dtype == torch.float32 and grad.isfinite().all() for grad in grads[-1])
        model.zero_grad()
    # The first layer of a bank has its parameters. Those with which others start at zero have no gradients yet.
    shared = {id(p) for each in banks(model) for layer in each.layers for p in layer.parameters()}
    compared = [(a, b) for p, a, b in zip(model.parameters(), *grads) if id(p) in shared and (a.any() or b.any())]
    assert compared
    for a, b in compared:
        assert 0.98 * a.norm() * b.norm() < (a * b).sum() < 1.02 * a.norm() * b.norm()
        assert not torch.equal(a, b)


@pytest.mark.parametrize('bank', BANKS.values(), ids=BANKS)
def test_channels_last_is_the_same_network(mmpretrain, bank):
    model = evaluating(small(bank))
    x = image(32)
    before = model(x)
    after = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    assert relative_difference(after, before) < 1e-5
    assert all(each.is_contiguous(memory_format=torch.channels_last) for each in after)


@pytest.mark.parametrize('bank', [TIED, BASIS, BANKS['orthonormal']], ids=['tied', 'basis', 'orthonormal'])
@pytest.mark.slow
def test_a_compiled_model_takes_the_same_steps(mmpretrain, tmp_path, bank):
    states, hooks = [], [] if 'Orthonormal' in bank['type'] else [OrthogonalityLossHook()]
    for compiled in (False, dict(backend='aot_eager')):
        torch.manual_seed(0)
        model, seen = train(
            small(bank=bank), tmp_path / str(bool(compiled)), hooks, iterations=3, cfg=dict(compile=compiled)
        )
        states.append(model.state_dict())
        assert ('loss_orth' in seen[0]) is bool(hooks)
    assert states[0].keys() == states[1].keys()
    for key, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][key], rtol=1e-3, atol=1e-5)


def test_settings_by_name_hold_for_what_is_shared_once(mmpretrain):
    model = Classifier(backbone(depth=34, groups=['conv1', 'conv2'], bank=BASIS), 128)
    wrapper = build_optim_wrapper(
        model,
        dict(
            optimizer=dict(type='SGD', lr=1, weight_decay=1),
            paramwise_cfg=dict(
                custom_keys=dict(bank=dict(lr_mult=0.5, decay_mult=0), coefficients=dict(decay_mult=0))
            ),
        ),
    )
    groups = {id(p): group for group in wrapper.param_groups for p in group['params']}
    assert sum(len(group['params']) for group in wrapper.param_groups) == len(groups)
    assert all(id(p) in groups for p in model.parameters())
    convs = [module for module in model.modules() if isinstance(module, SharedLayer)]
    assert all(groups[id(conv.bank.filters)]['lr'] == 0.5 for conv in convs)
    assert all(groups[id(conv.coefficients)]['weight_decay'] == 0 for conv in convs)
    assert all(groups[id(conv.unique)]['weight_decay'] == 1 == groups[id(conv.unique)]['lr'] for conv in convs)
