_base_ = [
    'mmpretrain::_base_/models/resnet34_cifar.py',
    '../_base_/datasets/cifar100_b256.py',
    '../_base_/schedules/cifar_b256_300e.py',
    '../_base_/mmshared.py',
    '../_base_/orthogonality.py',
]
model = dict(
    backbone=dict(
        type='SharedResNet_CIFAR',
        zero_init_residual=False,
        sharing=dict(groups=['conv[12]'], bank=dict(type='FilterBasis', shared_rank=32, unique_rank=1)),
    ),
    head=dict(num_classes=100),
)
