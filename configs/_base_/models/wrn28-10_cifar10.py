model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='WideResNet_CIFAR',
        depth=28,
        widen_factor=10,
        init_cfg=[
            dict(type='Kaiming', layer='Conv2d', mode='fan_in'),
            dict(type='Constant', val=1, layer='_BatchNorm'),
        ],
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=640,
        loss=dict(type='CrossEntropyLoss'),
        init_cfg=dict(type='Kaiming', layer='Linear', mode='fan_in'),
    ),
)
