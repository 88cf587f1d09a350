# RepeatNet's VGG: ten convs, global average pooling and one linear layer, initialised as PyTorch does.
model = dict(
    type='ImageClassifier',
    backbone=dict(type='VGG_CIFAR', depth=11),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead', num_classes=10, in_channels=512, loss=dict(type='CrossEntropyLoss'), init_cfg=None
    ),
)
