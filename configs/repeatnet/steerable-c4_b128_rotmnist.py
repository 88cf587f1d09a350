_base_ = ['../_base_/datasets/rotmnist_b128.py', '../_base_/schedules/rotmnist_b128_30e.py', '../_base_/mmshared.py']
model = dict(
    type='ImageClassifier',
    backbone=dict(type='SteerableCNN', rotations=4),
    head=dict(
        type='StackedLinearClsHead',
        num_classes=10,
        in_channels=64,
        mid_channels=[64],
        norm_cfg=dict(type='BN1d'),
        act_cfg=dict(type='ELU'),
        loss=dict(type='CrossEntropyLoss'),
    ),
)
