# The ResNet paper's ResNet of 6n+2 layers for CIFAR-10.
model = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNetA_CIFAR', depth=32),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=64, loss=dict(type='CrossEntropyLoss')),
)
