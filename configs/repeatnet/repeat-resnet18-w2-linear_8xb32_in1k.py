_base_ = [
    '../_base_/models/resnet18-w1.py',
    '../_base_/datasets/in1k_affine_b32.py',
    '../_base_/schedules/in1k_90e.py',
    '../_base_/mmshared.py',
]
model = dict(
    backbone=dict(
        type='SharedResNet',
        base_channels=128,
        sharing=dict(
            groups=['.*'], bank=dict(type='RepeatedKernel', transform=dict(type='linear'), width=2, input_channels=64)
        ),
    ),
    head=dict(in_channels=1024),
)
