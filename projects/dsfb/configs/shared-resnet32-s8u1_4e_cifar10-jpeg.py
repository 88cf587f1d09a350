_base_ = [
    '../../../configs/_base_/models/resnet32_cifar10.py',
    '../../../configs/_base_/cifar10-jpeg_4e.py',
    '../../../configs/_base_/mmshared.py',
]
model = dict(
    backbone=dict(
        type='SharedResNetA_CIFAR',
        sharing=dict(
            groups=['conv[12]'], bank=dict(type='FilterBasis', shared_rank=8, unique_rank=1, base_channels=16)
        ),
    )
)
custom_hooks = [
    dict(type='OrthogonalityLossHook', include_unique=True),
    dict(type='BasisHealthHook'),
    dict(type='GradientFlowHook'),
]
