"""Laws of loading: a plain checkpoint is converted, one that fits neither way is refused, nothing is half-loaded."""

import copy
import pickle

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.optim.scheduler import lr_scheduler as param_scheduler
from mmengine.runner.checkpoint import load_checkpoint, load_state_dict
from torch import nn

from helpers import (
    BANKS,
    BASIS,
    REPEATED,
    TIED,
    TWO_STAGES,
    backbone,
    chain,
    evaluating,
    image,
    randomise_norms,
    refuses,
    small,
    stage_banks,
)
from mmshared import SharingError, fold_layers, share_layers
from mmshared.engine.checkpoint import load_checkpoint_file
from mmshared.sharing.deployment import relative_difference
from mmshared.sharing.state_dict import share_state_dict


@pytest.mark.parametrize('bank', BANKS.values(), ids=BANKS)
def test_a_shared_checkpoint_loads_as_it_is(library, bank):
    models = [randomise_norms(small(bank)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict(), strict=True)
    x = image(32)
    assert relative_difference(*[evaluating(model)(x) for model in models]) == 0


@pytest.mark.parametrize(
    'bank',
    [
        dict(bank, shared_rank=384) if bank.get('shared_rank') else bank
        for bank in (BANKS[name] for name in BANKS if name not in ('basis-without-shared', 'repeated-swish'))
    ],
)
def test_a_folded_network_loads_back_without_loss(library, bank):
    # What was shared once lies in the span of a basis of its rank, its tied kernels and its plain copies agree.
    torch.manual_seed(0)
    shared = evaluating(randomise_norms(backbone(depth=34, bank=bank, **TWO_STAGES)))
    x = image(32)
    before = shared(x)
    fold_layers(shared)
    torch.manual_seed(0)  # what is dropped and what is random is drawn as it was
    again = backbone(depth=34, bank=bank, **TWO_STAGES)
    for name, parameter in again.named_parameters():
        if '.transform.' not in name:
            torch.nn.init.normal_(parameter)
    again.load_state_dict(shared.state_dict(), strict=True)
    assert relative_difference(evaluating(again)(x), before) < 1e-4


def test_a_group_of_layers_at_several_depths_of_its_blocks_is_converted(mmpretrain):
    """As in the feed-forward networks of mmcv, whose first linear is one module deeper than the second."""
    inner = [nn.Sequential(nn.Sequential(nn.Linear(8, 16)), nn.Linear(16, 8)) for _ in range(3)]
    plain = nn.ModuleDict(dict(backbone=nn.ModuleDict(dict(layers=nn.ModuleList(inner)))))
    shared = copy.deepcopy(plain)
    share_layers(shared['backbone'], ['.*'], REPEATED)
    for network, state, stage in (
        (shared, plain.state_dict(), 'backbone.layers'),
        (shared['backbone'], plain['backbone'].state_dict(), 'layers'),
    ):
        (conversion,) = share_state_dict(network, state)
        assert conversion.name == stage and conversion.layers[0] == '0.0.0'
        network.load_state_dict(state)


def test_what_a_data_set_decides_in_a_shared_stage_is_left_to_the_loader():
    """As the classifiers of a cascade's heads, and the tables of relative positions of Swin Transformer V2."""

    def heads(classes, size, width=8):
        blocks = [nn.ModuleDict(dict(fc=nn.Linear(8, 8), classify=nn.Linear(width, classes))) for _ in range(3)]
        for block in blocks:
            block.register_buffer('table', torch.zeros(1, size, size))
        return nn.Sequential(*blocks)

    plain, shared = heads(80, 15), heads(4, 47)
    (bank,) = share_layers(shared, ['fc'], TIED, own_blocks=0)
    before = shared[1]['classify'].weight.clone()
    load_state_dict(shared, plain.state_dict(), strict=False)
    torch.testing.assert_close(bank.filters, torch.stack([block['fc'].weight for block in plain]).mean(0))
    assert torch.equal(shared[1]['classify'].weight, before)
    refuses(shared, heads(80, 15, 6).state_dict(), 'classify.weight has the shape (80, 6) there and (4, 8) here')


def test_what_is_no_tensor_outside_the_stages_is_left_to_the_loader():
    network = nn.Sequential(chain(lambda: nn.Linear(8, 8)), nn.Linear(8, 3))
    share_layers(network, groups=['0'], bank=TIED)
    with pytest.raises(RuntimeError, match='1.weight'):
        network.load_state_dict({**network.state_dict(), '1.weight': 3})


@pytest.mark.parametrize('kind', ['tied', 'basis', 'orthonormal', 'templates', 'relaxed', 'repeated-linear'])
def test_a_network_without_values_is_fitted_as_one_with_them(kind):
    plain = chain(lambda: nn.Conv2d(16, 16, 3))
    shared, empty = copy.deepcopy(plain), copy.deepcopy(plain).to('meta')
    for network in (shared, empty):
        share_layers(network, groups=['0'], bank=BANKS[kind])
        network.load_state_dict(plain.state_dict(), assign=True)
    assert all(torch.equal(empty.state_dict()[key], tensor) for key, tensor in shared.state_dict().items())


@pytest.mark.parametrize('kind', ['repeated-bireal', 'repeated-static-drop'])
def test_random_masks_are_not_made_of_nothing(kind):
    plain = chain(lambda: nn.Conv2d(16, 16, 3))
    empty = copy.deepcopy(plain).to('meta')
    share_layers(empty, groups=['0'], bank=BANKS[kind])
    with pytest.raises(SharingError, match='on the meta device'):
        empty.load_state_dict(plain.state_dict(), assign=True)


def test_an_orthonormal_basis_takes_no_other(mmpretrain):
    models = [backbone(depth=34, bank=BANKS[name]) for name in ('basis', 'orthonormal')]
    for model, other in (models, reversed(models)):
        refuses(model, other.state_dict(), 'neither as a plain nor as a shared network', 'layer1.1.conv2.bank.')


def test_a_plain_checkpoint_is_converted_with_its_error_in_the_log(library, caplog):
    plain, shared = backbone(bank=None), backbone()
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    load_state_dict(shared, dict(plain.state_dict(), **{'fc.weight': torch.zeros(3, 2)}), logger='current')
    logger.removeHandler(caplog.handler)
    for stage in range(1, 5):
        kernels = [block.conv2.weight for block in list(plain.get_submodule(f'layer{stage}'))[1:]]
        mean = sum(kernels) / len(kernels)
        error = (sum((k - mean).square().sum() for k in kernels) / sum(k.square().sum() for k in kernels)).sqrt()
        assert f'layer{stage}: the weights of 1.conv2, 2.conv2' in caplog.text
        assert f'became one TiedFilters, relative error {error:.4f}' in caplog.text
        bank = stage_banks(shared)[f'layer{stage}'][0]
        torch.testing.assert_close(bank.filters, mean)
    for key, tensor in plain.state_dict().items():
        if key in shared.state_dict():
            assert torch.equal(shared.state_dict()[key], tensor)


def test_a_half_shared_checkpoint_gives_what_it_has(mmpretrain):
    source = backbone(groups=['conv2'])
    target = backbone(groups=['conv2', 'conv3'])
    load_state_dict(target, source.state_dict())
    for stage, banks in stage_banks(target).items():
        assert torch.equal(banks[0].filters, stage_banks(source)[stage][0].filters)
        kernels = [block.conv3.weight for block in list(source.get_submodule(stage))[1:]]
        torch.testing.assert_close(banks[1].filters, sum(kernels) / len(kernels))


@pytest.mark.parametrize('prefix', ['', 'backbone.'])
def test_a_pretrained_init_cfg_is_converted(library, tmp_path, prefix):
    plain = randomise_norms(backbone(bank=None))
    path = str(tmp_path / 'plain.pth')
    torch.save(dict(state_dict={prefix + key: tensor for key, tensor in plain.state_dict().items()}), path)
    init_cfg = dict(type='Pretrained', checkpoint=path, **(dict(prefix=prefix) if prefix else {}))
    shared = backbone(init_cfg=init_cfg)
    shared.init_weights()
    assert torch.equal(shared.layer3[0].conv2.weight, plain.layer3[0].conv2.weight)
    kernels = [block.conv2.weight for block in list(plain.layer3)[1:]]
    torch.testing.assert_close(stage_banks(shared)['layer3'][0].filters, sum(kernels) / len(kernels))


def without(state, *parts):
    return {key: tensor for key, tensor in state.items() if not any(part in key for part in parts)}


def test_a_checkpoint_of_another_network_is_refused(library):
    model, plain = backbone(), backbone(bank=None).state_dict()
    refuses(model, backbone(depth=34, bank=None).state_dict(), 'of another network', 'layer1.0.conv1.weight')
    refuses(model, backbone(base_channels=32, stem_channels=16, bank=None).state_dict(), 'of another network')
    for bank in (None, TIED):
        deeper = backbone(depth=101, bank=bank)
        refuses(model, deeper.state_dict(), 'layer3 has 23 blocks there and 6 here')
        refuses(
            deeper if bank else backbone(depth=101),
            backbone(bank=bank).state_dict(),
            'layer3 has 6 blocks there and 23 here',
        )
    refuses(model, without(plain, 'layer1.'), 'layer1 has 0 blocks there and 3 here')
    refuses(model, without(plain, 'layer2.1.bn1.weight'), 'it has no layer2.1.bn1.weight')
    refuses(
        model,
        without(plain, 'layer3.4.conv2'),
        'neither as a plain nor as a shared network',
        'layer3.4.conv2.weight',
        'layer3.1.conv2.bank.filters',
    )
    refuses(
        model,
        dict(plain, **{'layer2.1.conv2.weight': plain['layer2.1.conv2.weight'] * float('nan')}),
        'not finite in layer2.1.conv2.weight',
    )


def test_a_checkpoint_that_is_shared_in_another_way_is_refused(library):
    small = dict(BASIS, shared_rank=16)
    refuses(
        backbone(depth=34, bank=BASIS),
        backbone(depth=34, bank=small).state_dict(),
        'shared in another way',
        '(16, 5, 1, 1) there and (16, 9, 1, 1) here',
    )
    refuses(backbone(), backbone(bank=BASIS).state_dict(), 'shared in another way', 'layer1.1.conv2.bank.filters')
    # Where the tensors that are needed are all there, what is too many tells.
    refuses(
        backbone(),
        backbone(bank=dict(BASIS, shared_rank=64, unique_rank=0)).state_dict(),
        'shared in another way',
        'layer1.1.conv2.unique',
    )
    for bank in (TIED, BASIS):
        double = backbone(depth=34, groups=['conv1', 'conv2'], bank=bank)
        single = backbone(depth=34, groups=['conv[12]'], bank=bank)
        refuses(single, double.state_dict(), 'shared in another way', 'layer1.1.conv2.bank.filters')
        refuses(double, single.state_dict(), 'neither as a plain nor as a shared network')


def test_keys_that_sharing_does_not_touch_may_lack(mmdet):
    # A plain checkpoint starts a network with deformable convs, whose offsets it does not know.
    model = backbone(dcn=dict(type='DCN', deform_groups=1), stage_with_dcn=(False, True, True, True))
    plain = backbone(bank=None).state_dict()
    load_state_dict(model, plain)
    assert torch.equal(model.layer2[1].conv2.weight, plain['layer2.1.conv2.weight'])


class _Payload:
    def __reduce__(self):
        return print, ('a checkpoint ran code',)


@pytest.mark.parametrize(
    'content, words',
    [
        (None, 'There is no checkpoint'),
        (b'', 'damaged or cut off'),
        (b'no checkpoint at all', 'damaged or cut off'),
        ('cut', 'damaged or cut off'),
        ('payload', 'holds more than weights'),
        ('list', 'holds a list and no state dict'),
    ],
)
def test_a_damaged_or_foreign_file_is_refused_and_runs_nothing(tmp_path, capsys, content, words):
    path = tmp_path / 'checkpoint.pth'
    if content == 'cut':
        torch.save(dict(state_dict=dict(weight=torch.zeros(1000))), path)
        path.write_bytes(path.read_bytes()[:1500])
    elif content == 'payload':
        path.write_bytes(pickle.dumps(_Payload(), protocol=2))
    elif content == 'list':
        torch.save([1, 2], path)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(SharingError, match=words):
        load_checkpoint_file(str(path))
    assert 'ran code' not in capsys.readouterr().out


def test_the_state_of_every_schedule_can_be_loaded(tmp_path):
    schedules = [kind for name, kind in vars(param_scheduler).items() if name.endswith('LR')]
    assert len(schedules) > 8
    settings = dict(
        MultiStepLR=dict(milestones=[1]),
        StepLR=dict(step_size=1),
        CosineAnnealingLR=dict(T_max=2),
        ExponentialLR=dict(gamma=0.5),
        OneCycleLR=dict(eta_max=1, total_steps=5),
        CosineRestartLR=dict(periods=[2], eta_min=0),
        ReduceOnPlateauLR={},
    )
    for kind in schedules:
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
        state = kind(optimizer, **settings.get(kind.__name__, {})).state_dict()
        torch.save(dict(param_schedulers=[state]), tmp_path / 'checkpoint.pth')
        assert load_checkpoint_file(str(tmp_path / 'checkpoint.pth'))['param_schedulers'][0].keys() == state.keys()


def test_a_checkpoint_on_disk_has_the_ratio_of_the_parameters(mmpretrain, tmp_path):
    sizes, counts = [], []
    for bank in (TIED, None):
        model = backbone(base_channels=32, stem_channels=32, groups=['conv2', 'conv3'], bank=bank)
        path = tmp_path / 'model.pth'
        torch.save(model.state_dict(), path)
        sizes.append(path.stat().st_size)
        counts.append(sum(tensor.numel() for tensor in model.state_dict().values()))
        load_checkpoint(model, str(path), strict=True)
    assert sizes[0] / sizes[1] == pytest.approx(counts[0] / counts[1], rel=0.02)
