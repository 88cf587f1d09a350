_base_ = [
    '../_base_/models/shared-resnet32-s16u1_cifar10.py',
    '../_base_/datasets/cifar10_b256.py',
    '../_base_/schedules/cifar_b256_300e.py',
    '../_base_/mmshared.py',
]
