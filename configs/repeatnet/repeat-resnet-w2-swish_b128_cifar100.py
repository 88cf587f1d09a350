_base_ = [
    '../_base_/models/repeat-resnet16-w2.py',
    '../_base_/datasets/cifar100_b128.py',
    '../_base_/schedules/cifar_b128_160e.py',
    '../_base_/mmshared.py',
]
model = dict(backbone=dict(sharing=dict(bank=dict(transform=dict(type='swish')))), head=dict(num_classes=100))
