_base_ = './resnet-w1_2e_cifar10-jpeg.py'
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
