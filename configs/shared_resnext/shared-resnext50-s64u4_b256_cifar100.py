_base_ = ['./resnext50-32x4d_b256_cifar100.py', '../_base_/orthogonality.py']
model = dict(
    backbone=dict(
        type='SharedBasisResNeXt_CIFAR',
        shared_rank=64,
        unique_rank=4,
        sharing=dict(groups=['conv2.shared'], bank=dict(type='TiedFilters')),
    )
)
