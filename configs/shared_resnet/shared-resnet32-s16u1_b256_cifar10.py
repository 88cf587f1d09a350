# In the paper's experiments on CIFAR-10, the orthogonality loss includes each conv's own filters.
_base_ = [
    '../_base_/models/resnet32_cifar10.py',
    '../_base_/datasets/cifar10_b256.py',
    '../_base_/schedules/cifar_b256_300e.py',
    '../_base_/mmshared.py',
]
model = dict(
    backbone=dict(
        type='SharedResNetA_CIFAR',
        sharing=dict(
            groups=['conv[12]'], bank=dict(type='FilterBasis', shared_rank=16, unique_rank=1, base_channels=16)
        ),
    )
)
custom_hooks = [dict(type='OrthogonalityLossHook', include_unique=True)]
