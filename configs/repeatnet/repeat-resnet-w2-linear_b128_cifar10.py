_base_ = [
    '../_base_/models/repeat-resnet16-w2.py',
    '../_base_/datasets/cifar10_b128.py',
    '../_base_/schedules/cifar_b128_160e.py',
    '../_base_/mmshared.py',
]
