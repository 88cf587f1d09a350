_base_ = [
    '../_base_/datasets/cifar10_b256.py', '../_base_/schedules/cifar_b256_300e.py', '../_base_/mmshared.py'
]
model = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNetA_CIFAR', depth=32),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=64, loss=dict(type='CrossEntropyLoss')))
