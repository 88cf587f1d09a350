_base_ = [
    'mmpretrain::_base_/models/resnet50_cifar.py',
    '../_base_/datasets/cifar100_b256.py',
    '../_base_/schedules/cifar_b256_300e.py',
    '../_base_/mmshared.py',
]
model = dict(backbone=dict(type='ResNeXt_CIFAR', zero_init_residual=False), head=dict(num_classes=100))
