# All convs after the stem repeat small kernels. For another width: base_channels, width and the head's in_channels.
_base_ = [
    '../_base_/models/resnet16-w1.py',
    '../_base_/datasets/cifar10_b128.py',
    '../_base_/schedules/cifar_b128_160e.py',
    '../_base_/mmshared.py',
]
model = dict(
    backbone=dict(
        type='SharedResNet_CIFAR',
        base_channels=32,
        sharing=dict(
            groups=['.*'], bank=dict(type='RepeatedKernel', transform=dict(type='linear'), width=2, input_channels=16)
        ),
    ),
    head=dict(in_channels=128),
)
