_base_ = [
    '../_base_/models/repeat-resnet16-w2.py',
    '../_base_/datasets/tinyimagenet_b128.py',
    '../_base_/schedules/tinyimagenet_b128_90e.py',
    '../_base_/mmshared.py',
]
model = dict(backbone=dict(sharing=dict(bank=dict(transform=dict(type='swish')))), head=dict(num_classes=200))
