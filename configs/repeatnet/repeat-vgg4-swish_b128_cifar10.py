# VGG-11 with the kernels of the first three convs: each conv after them repeats the third.
_base_ = [
    '../_base_/models/vgg11.py',
    '../_base_/datasets/cifar10_b128.py',
    '../_base_/schedules/cifar_b128_160e.py',
    '../_base_/mmshared.py',
]
model = dict(
    backbone=dict(
        type='SharedVGG_CIFAR',
        sharing=dict(
            layers=['.*conv(2_[12]|[345]_[12])'],
            bank=dict(type='RepeatedKernel', mode='inter', transform=dict(type='swish')),
        ),
    )
)
