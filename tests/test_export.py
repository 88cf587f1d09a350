"""A folded checkpoint is one of the stock classes, which know nothing of mmshared."""

import hashlib
import os
import re
import subprocess
import sys
from importlib import import_module

import pytest
import torch
from mmengine.config import Config
from torch import nn

from helpers import BASIS, ROOT, TEMPLATES, call, image, randomise_norms, small, train
from mmshared import SharingError
from mmshared.convert.fold import fold_model, stock_config, to_torchvision
from mmshared.convert.onnx import export_onnx, onnx_forms
from mmshared.convert.unpack import unpack
from mmshared.engine.build import build_model, feature_maps, inner
from mmshared.engine.checkpoint import load_checkpoint_file
from mmshared.engine.config import config_path
from mmshared.sharing.deployment import relative_difference
from mmshared.sharing.filter_basis import BasisLayer

# Narrow networks of each kind: classifiers of mmpretrain and a detector of mmdet.
NARROW = """
model = dict(backbone=dict(base_channels=16, stem_channels=16), head=dict(in_channels={}, num_classes=10, topk=(1, )))
"""
RANKS = "model['backbone']['sharing'] = dict(bank=dict(base_channels=16))"
CONFIGS = {
    'basis': ('shared_resnet/shared-resnet34-s32u1_8xb32_in1k.py', NARROW.format(128) + RANKS),
    'tied': ('shared_resnet/shared-resnet50-pp_8xb32_in1k.py', NARROW.format(512)),
    'mobilenet': ('shared_mobilenet_v2/shared-mobilenet-v2-pp_8xb32_in1k.py', ''),
    'detector': ('small/faster-rcnn_r50-narrow-shared_6e_digits.py', ''),
}
SMALL = ('shared_resnet/shared-resnet32-s8u1_b256_cifar10.py', 'model = dict(backbone=dict(depth=20))')
# What a user without mmshared does with the networks in some folders; mmcv's operators come from its file, since this
# test has none compiled.
STOCK = """
import sys, importlib.util, torch
from pathlib import Path
sys.modules['mmshared'] = None
spec = importlib.util.spec_from_file_location('mmcv_ops', {operators!r})
operators = importlib.util.module_from_spec(spec)
spec.loader.exec_module(operators)
operators.supply()
from mmdet.models.detectors import BaseDetector
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
for folder in map(Path, sys.argv[1:]):
    cfg = Config.fromfile(folder / 'plain.py')
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    model.load_state_dict(torch.load(folder / 'plain.pth', weights_only=True)['state_dict'], strict=True)
    model.eval()
    with torch.no_grad():
        maps = model.extract_feat(images) if 'Faster' in type(model).__name__ else (model(images), )
    torch.save(list(maps), folder / 'maps.pth')
"""


def fold(*arguments):
    return call('model_converters/fold.py', *arguments, '--shape', 64, 64)


def trained(name, folder):
    """Write a config and its checkpoint into a folder. Returns both, and the model."""
    base, text = SMALL if name == 'small' else CONFIGS[name]
    config, checkpoint = folder / 'shared.py', folder / 'shared.pth'
    folder.mkdir(exist_ok=True)
    config.write_text(f"_base_ = '{ROOT}/configs/{base}'\n{text}")
    model = randomise_norms(build_model(Config.fromfile(config)))
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=['a']), seed=3)), checkpoint)
    return config, checkpoint, model.eval()


@pytest.mark.slow
def test_stock_classes_load_a_folded_checkpoint(tmp_path):
    models = {}
    for name in CONFIGS:
        folder = tmp_path / name
        config, checkpoint, models[name] = trained(name, folder)
        result = fold(config, checkpoint, folder / 'plain.pth')
        assert result.returncode == 0, result.stderr
        assert float(re.search(r'relative difference of the outputs: (\S+)', result.stdout).group(1)) < 1e-4
        stock = (folder / 'plain.py').read_text()
        assert stock.count('mmshared') == stock.count("'mmshared.compat'") == int(name == 'detector')
        meta = load_checkpoint_file(str(folder / 'plain.pth'))['meta']
        assert meta == dict(dataset_meta=dict(classes=['a']), cfg=Config.fromfile(folder / 'plain.py').pretty_text)
    script = STOCK.format(operators=str(ROOT / 'mmshared/compat/mmcv_ops.py'))
    stock = subprocess.run([sys.executable, '-c', script, *CONFIGS], capture_output=True, text=True, cwd=tmp_path)
    assert stock.returncode == 0, stock.stderr
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    for name, model in models.items():
        with torch.no_grad():
            expected = feature_maps(model, images)
        assert relative_difference(torch.load(tmp_path / name / 'maps.pth', weights_only=True), expected) < 1e-4, name


# What a user does in a process of its own, once in a fork of it: mmdet is imported before the
# config says where its operators come from.
INFERENCE = """
import os
import sys
import numpy as np
from mmdet.apis import DetInferencer
assert 'mmshared' not in sys.modules
def infer(*arguments):
    inferencer = DetInferencer(*arguments, device='cpu', show_progress=False)
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    found = inferencer(image, no_save_vis=True)['predictions'][0]
    print(arguments[0], inferencer.visualizer.dataset_meta['classes'], len(found['scores']), sep='; ', flush=True)
def forked(*arguments):
    child = os.fork()
    if not child:
        infer(*arguments)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
forked('plain.py', 'plain.pth')
os.remove('plain.py')
infer(None, 'plain.pth')
"""


@pytest.mark.slow
def test_a_folded_detector_runs_in_a_fresh_process_by_its_config_or_its_checkpoint(tmp_path):
    config, checkpoint, _ = trained('detector', tmp_path)
    assert fold(config, checkpoint, tmp_path / 'plain.pth').returncode == 0
    result = subprocess.run([sys.executable, '-c', INFERENCE], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    told = [line.split('; ') for line in result.stdout.splitlines() if line.count('; ') == 2]
    assert [config for config, _, _ in told] == ['plain.py', 'None']
    assert all(classes in ("['a']", "('a',)") and int(count) > 0 for _, classes, count in told)


@pytest.mark.slow
def test_what_is_written_is_for_whom_the_umask_says(tmp_path, monkeypatch):
    pytest.importorskip('safetensors')
    pytest.importorskip('onnxruntime')
    config, checkpoint, _ = trained('small', tmp_path)
    made = []  # it is the same network each time: it is made once, and written each time
    monkeypatch.setattr(
        'mmshared.convert.onnx.onnx_forms',
        lambda *given: made[0] if made else made.append(onnx_forms(*given)) or made[0],
    )
    for umask, mode in ((0o022, 0o644), (0o027, 0o640)):
        out = tmp_path / f'{umask:o}'
        before = os.umask(umask)
        try:
            fold(config, checkpoint, out / 'plain.pth', '--onnx', out / 'plain.onnx')
            fold(config, checkpoint, out / 'other.safetensors')
            call('model_converters/publish_model.py', out / 'plain.pth', out / 'published.pth')
        finally:
            os.umask(before)
        assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {mode}
        assert {path.suffix for path in out.iterdir()} == {'.pth', '.py', '.onnx', '.safetensors'}


@pytest.mark.slow
def test_onnx_is_one_conv_per_conv_and_takes_any_batch_and_size(tmp_path):
    onnx = pytest.importorskip('onnx')
    pytest.importorskip('onnxruntime')
    config, checkpoint, _ = trained('basis', tmp_path)
    result = fold(config, checkpoint, tmp_path / 'plain.pth', '--onnx', tmp_path / 'model.onnx')
    assert result.returncode == 0, result.stderr
    nodes = [node.op_type for node in onnx.load(tmp_path / 'model.onnx').graph.node]
    plain = build_model(Config.fromfile(tmp_path / 'plain.py'))
    assert nodes.count('Conv') == sum(isinstance(module, nn.Conv2d) for module in plain.modules())
    assert 'Concat' not in nodes and 'BatchNormalization' not in nodes
    assert 'ONNX against PyTorch, plain, 3x3x96x128: relative difference' in result.stdout


@pytest.mark.parametrize(
    'name, text, most, part',
    [
        ('shared_resnet/shared-resnet32-s16u1_b256_cifar10.py', 'model = dict(backbone=dict(depth=20))', 0.7, []),
        (
            'small/faster-rcnn_r50-narrow-shared_6e_digits.py',
            'model = dict(backbone=dict(depth=34), neck=dict(in_channels=[16, 32, 64, 128]))',
            0.9,
            ['--backbone'],
        ),
    ],
    ids=['classifier', 'detector'],
)
@pytest.mark.slow
def test_shared_filters_are_stored_once_in_onnx(name, text, most, part, tmp_path):
    pytest.importorskip('onnxruntime')
    config = tmp_path / 'shared.py'
    config.write_text(f"_base_ = '{ROOT}/configs/{name}'\n{text}")
    model = randomise_norms(build_model(Config.fromfile(config)))
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'shared.pth')
    out, onnx = tmp_path / 'plain.pth', tmp_path / 'model.onnx'
    result = fold(config, tmp_path / 'shared.pth', out, '--onnx', onnx, '--keep-shared', '--int8', *part)
    assert result.returncode == 0, result.stderr
    found = re.findall(r'ONNX, (.*): (\S+) MB, (.*); loads in \S+ s .*, runs in \S+ of the time', result.stdout)
    forms, sizes, nodes = zip(*found)
    plain, plain_int8, shared, shared_int8 = map(float, sizes)
    assert forms == ('plain', 'plain int8', 'shared', 'shared int8') and len(set(nodes)) == 1
    assert shared < most * plain and plain_int8 < 0.4 * plain and shared_int8 < 0.45 * shared
    assert shared_int8 == round(onnx.stat().st_size / 1e6, 2)
    # With a factor for each channel in place of the batch norms, and the graph.
    assert 1e6 * shared < 4.2 * sum(tensor.numel() for tensor in inner(model).state_dict().values())
    assert ('one of mmshared' in result.stdout) == ("'mmshared'," in (tmp_path / 'plain.py').read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    'options, part, error',
    [
        ('--keep-shared', 0.7, 1e-4),
        ('--half', 0.6, 1e-2),
        ('--int8', 0.4, 0.2),
        ('--keep-shared --int8', 0.3, 0.2),
    ],
)
def test_safetensors_are_as_small_as_asked_and_unpack_into_the_plain_network(options, part, error, tmp_path):
    pytest.importorskip('safetensors')
    config, checkpoint, model = trained('small', tmp_path)
    out, x = tmp_path / 'plain.safetensors', image(32)
    result = fold(config, checkpoint, out, *options.split())
    assert result.returncode == 0, result.stderr
    plain = build_model(Config.fromfile(tmp_path / 'plain.py')).eval()
    plain.load_state_dict({key: torch.tensor(each) for key, each in unpack(out).items()}, strict=True)
    with torch.no_grad():
        assert relative_difference(plain(x), model(x)) < error
    assert out.stat().st_size < part * sum(each.nbytes for each in plain.state_dict().values())
    loaded = load_checkpoint_file(str(out))
    (model if '--keep-shared' in options else plain).load_state_dict(loaded, strict=True)


@pytest.mark.slow
def test_weights_of_four_bits_are_stored_as_such_in_onnx(tmp_path):
    onnx = pytest.importorskip('onnx')
    pytest.importorskip('onnxruntime')
    config, checkpoint, _ = trained('small', tmp_path)
    result = fold(config, checkpoint, tmp_path / 'plain.pth', '--onnx', tmp_path / 'small.onnx', '--int4')
    assert result.returncode == 0, result.stderr
    model = onnx.load(tmp_path / 'small.onnx')
    assert onnx.TensorProto.INT4 in {each.data_type for each in model.graph.initializer}
    onnx.checker.check_model(model, full_check=True)


@pytest.mark.slow
def test_torchvision_and_safetensors(tmp_path):
    safetensors = pytest.importorskip('safetensors.torch')
    from torchvision.models import resnet34

    config = ROOT / 'configs/shared_resnet/shared-resnet34-s32u1_8xb32_in1k.py'
    model = randomise_norms(build_model(Config.fromfile(config))).eval()
    # Shared tensors are stored once: safetensors has nothing to complain of.
    safetensors.save_file(model.state_dict(), tmp_path / 'shared.safetensors')
    model.load_state_dict(safetensors.load_file(tmp_path / 'shared.safetensors'), strict=True)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'shared.pth')
    result = fold(config, tmp_path / 'shared.pth', tmp_path / 'plain.safetensors', '--torchvision')
    assert result.returncode == 0, result.stderr
    twin = resnet34().eval()
    twin.load_state_dict(load_checkpoint_file(str(tmp_path / 'plain.safetensors')), strict=True)
    x = image(96)
    with torch.no_grad():
        assert relative_difference([twin(x)], [model(x)]) < 1e-4


@pytest.mark.parametrize('name', ['wrn/wide-resnet50_8xb32_in1k.py', 'resnext/resnext50-32x4d_8xb32_in1k.py'])
@pytest.mark.slow
def test_torchvision_keys_of_wide_and_grouped_networks(name):
    plain = randomise_norms(build_model(Config.fromfile(config_path(f'mmpretrain::{name}')))).eval()
    keys = to_torchvision(plain)  # which compares the outputs
    assert len(keys) == len(plain.state_dict()) and 'layer4.2.bn3.running_var' in keys


@pytest.mark.parametrize('bank', [BASIS, dict(TEMPLATES, num_templates=1)], ids=['basis', 'template'])
@pytest.mark.slow
def test_a_training_checkpoint_is_as_small_as_its_parameters_and_is_published(mmpretrain, tmp_path, bank):
    sizes, counts = {}, {}
    for name, each in (('plain', None), ('shared', bank)):
        checkpoints = dict(checkpoint=dict(type='CheckpointHook', interval=2, by_epoch=False))
        model, _ = train(
            small(each),
            tmp_path / name,
            [],
            default_hooks=checkpoints,
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9)),
        )
        sizes[name] = (tmp_path / name / 'iter_2.pth').stat().st_size
        counts[name] = sum(parameter.numel() for parameter in model.parameters())
        checkpoint = load_checkpoint_file(str(tmp_path / name / 'iter_2.pth'))
        momentum = [state['momentum_buffer'].numel() for state in checkpoint['optimizer']['state'].values()]
        weights = {key: tensor.numel() for key, tensor in checkpoint['state_dict'].items()}
        stored = sum(weights.values()) - sum(buffer.numel() for buffer in model.buffers())
        assert stored == sum(momentum) == counts[name]
    result = call('model_converters/publish_model.py', tmp_path / 'shared/iter_2.pth', tmp_path / 'out/model.pth')
    assert sizes['shared'] < 0.8 * sizes['plain'] and counts['shared'] < 0.8 * counts['plain']
    (published,) = (tmp_path / 'out').iterdir()
    assert published.name == f'model-{hashlib.sha256(published.read_bytes()).hexdigest()[:8]}.pth', result.stderr
    checkpoint = torch.load(published, weights_only=True)
    assert set(checkpoint) == {'meta', 'state_dict'} and published.stat().st_size < 0.6 * sizes['shared']
    model.load_state_dict(checkpoint['state_dict'], strict=True)
    wrong = call('model_converters/publish_model.py', published, tmp_path / 'other.pth', '--save-keys', 'ema')
    assert 'has no ema: it holds meta, state_dict' in wrong.stderr and wrong.returncode


def test_the_difference_of_outputs_is_the_largest_and_no_number_is_one():
    ones = [torch.ones(3), torch.full((2,), 10.0)]
    for place, change, expected in ((0, 0.5, 0.5), (1, 2.0, 0.2), (1, -20.0, 2.0)):
        found = [each.clone() for each in ones]
        found[place][-1] += change
        assert relative_difference(found, ones) == pytest.approx(expected)
    found[0][0] = float('nan')
    assert not relative_difference(found, ones) < 1e9
    none = torch.zeros(3)
    assert relative_difference([none, ones[0]], [none, ones[0]]) == 0 and relative_difference([ones[0]], [none]) > 1e9


@pytest.mark.slow
def test_onnx_of_a_classifier_that_takes_one_size_is_for_that_size(tmp_path):
    pytest.importorskip('onnxruntime')
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 16**2, 5)).eval()
    with pytest.warns(UserWarning, match='The ONNX model is only for images of 16x16'):
        lines = list(export_onnx(network, network, tmp_path / 'model.onnx', (3, 16, 16), False, None))
    assert lines[1].startswith('ONNX against PyTorch, plain, 3x3x16x16: relative difference')


@pytest.mark.slow
def test_what_onnx_cannot_compute_is_a_sentence(tmp_path):
    class Eigenvalues(nn.Module):
        def forward(self, x):
            return torch.linalg.eigvals(x).real

    with pytest.raises(SharingError, match='Eigenvalues cannot be exported to ONNX: .*linalg_eig'):
        list(export_onnx(nn.Identity(), Eigenvalues(), tmp_path / 'model.onnx', (3, 16, 16), False, None))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_onnx_that_differs_is_not_written(tmp_path, monkeypatch):
    pytest.importorskip('onnxruntime')
    network, other = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)
    forms = onnx_forms(other, other, (3, 8, 8), keep_shared=False, bits=None)
    monkeypatch.setattr('mmshared.convert.onnx.onnx_forms', lambda *arguments: forms)
    lines = export_onnx(network, network, tmp_path / 'model.onnx', (3, 8, 8), keep_shared=False, bits=None)
    with pytest.raises(SharingError, match='differs from the network: it was not written'):
        list(lines)
    assert not list(tmp_path.iterdir())


def test_a_bias_that_the_stock_class_lacks_is_named():
    cfg = Config.fromfile(ROOT / 'configs/shared_resnet/shared-resnet32-s8u1_b256_cifar10.py')
    cfg.model.backbone.norm_cfg = dict(type='GN', num_groups=4)
    shared = randomise_norms(build_model(cfg)).eval()
    with pytest.raises(SharingError, match='Folding adds backbone.layer1.1.conv1.bias, which no batch norm behind it'):
        fold_model(cfg, shared, image(32))


@pytest.mark.slow
def test_what_cannot_be_folded_is_refused_and_nothing_written(tmp_path, monkeypatch):
    shared = ROOT / 'configs/shared_resnet/shared-resnet32-s8u1_b256_cifar10.py'
    plain = shared.with_name('resnet32_b256_cifar10.py')
    for config in (shared, plain):
        torch.save(dict(state_dict=build_model(Config.fromfile(config)).state_dict()), tmp_path / f'{config.stem}.pth')
    out = tmp_path / 'out.pth'
    for arguments, words in [
        ((plain, tmp_path / f'{plain.stem}.pth', out), 'shares nothing: there is nothing to fold'),
        ((shared, tmp_path / 'none.pth', out), 'There is no checkpoint'),
        ((shared, tmp_path / f'{shared.stem}.pth', out, '--torchvision'), 'with the layers of a ResNet'),
        ((shared, tmp_path / 'none.pth', out, '--shape', '0'), 'give height and width'),
        ((shared, tmp_path / f'{shared.stem}.pth', out, '--keep-shared'), '--keep-shared needs --onnx'),
        ((shared, tmp_path / f'{shared.stem}.pth', out, '--int8'), '--int8 needs --onnx'),
        ((shared, tmp_path / f'{shared.stem}.pth', out, '--backbone'), '--backbone needs --onnx'),
        ((shared, out.with_name('in.pth'), out.with_name('in.pth')), 'must be different files'),
        ((tmp_path / 'out.py', out.with_name('in.pth'), out), 'must be different files'),
    ]:
        result = fold(*arguments)
        assert result.returncode and words in result.stderr and not out.exists()
    # A fold that is wrong by a little.
    monkeypatch.setattr(BasisLayer, 'dense', lambda conv, dense=BasisLayer.dense: (1.001 * dense(conv)[0], None))
    result = fold(shared, tmp_path / f'{shared.stem}.pth', out)
    assert 'The outputs of the folded network differ by a relative' in result.stderr and not out.exists()


def test_the_stock_config_keeps_the_hooks_and_imports_of_others(tmp_path):
    base = ROOT / 'configs/shared_resnet/shared-resnet34-s32u1_8xb32_in1k.py'
    (tmp_path / 'mine.py').write_text(
        f"_base_ = '{base}'\n"
        "custom_hooks = [*_base_.custom_hooks, dict(type='EMAHook')]\n"
        "custom_imports = dict(imports=['mmshared', 'json'])\n"
    )
    stock = stock_config(Config.fromfile(tmp_path / 'mine.py'))
    assert [hook['type'] for hook in stock.custom_hooks] == ['EMAHook'] and stock.custom_imports['imports'] == ['json']
    assert stock.model.backbone.type == 'ResNet' and 'sharing' not in stock.model.backbone


def test_the_stock_config_needs_no_module_of_banks(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, 'path', [str(tmp_path), *sys.path])
    (tmp_path / 'a_bank.py').write_text('from mmshared import TiedFilters\nclass Mine(TiedFilters): pass\n')
    (tmp_path / 'both.py').write_text('from a_bank import *\nclass More(Mine): pass\nclass Transform: pass\n')
    cfg = Config.fromfile(ROOT / 'configs/shared_resnet/shared-resnet34-s32u1_8xb32_in1k.py')
    for name in ('a_bank', 'both'):
        import_module(name)
        cfg.custom_imports.imports.append(name)
    assert stock_config(cfg).custom_imports['imports'] == ['both']


def test_the_stock_config_forgets_the_training_it_comes_from():
    cfg = Config.fromfile(ROOT / 'configs' / CONFIGS['detector'][0])
    cfg.update(load_from='old.pth', resume=True, work_dir='work_dirs/old')
    assert not {'load_from', 'resume', 'work_dir', 'runner_type'} & set(stock_config(cfg))
