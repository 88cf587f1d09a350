_base_ = [
    '../_base_/datasets/cifar100_b256.py',
    '../_base_/schedules/cifar_b256_300e.py',
    '../_base_/mmshared.py',
    '../_base_/orthogonality.py',
]
# The 3x3 convs of all stages have 128 input channels and, with the ranks of the authors' code, 16 + 1 filters.
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='SharedDenseNet_CIFAR',
        arch='121',
        # The transitions change width and resolution, and all layers between them share.
        sharing=dict(
            groups=['conv2'],
            own_blocks=0,
            bank=dict(type='FilterBasis', shared_rank=16, unique_rank=1, base_channels=128),
        ),
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=100, in_channels=1024, loss=dict(type='CrossEntropyLoss')),
)
