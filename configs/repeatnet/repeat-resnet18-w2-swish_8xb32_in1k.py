_base_ = './resnet18-w2_8xb32_in1k.py'
model = dict(
    backbone=dict(
        type='SharedResNet',
        sharing=dict(
            groups=['.*'], bank=dict(type='RepeatedKernel', transform=dict(type='swish'), width=2, input_channels=64)
        ),
    )
)
