# The baseline of RepeatNet for rotated MNIST, initialised as PyTorch does.
model = dict(
    type='ImageClassifier',
    backbone=dict(type='RotMNISTCNN'),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='StackedLinearClsHead',
        num_classes=10,
        in_channels=90,
        mid_channels=[64],
        norm_cfg=dict(type='BN1d'),
        act_cfg=dict(type='ELU'),
        loss=dict(type='CrossEntropyLoss'),
    ),
)
