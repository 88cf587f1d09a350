_base_ = [
    'mmpretrain::_base_/models/mobilenet_v2_1x.py',
    '../_base_/datasets/cifar100_b256.py',
    '../_base_/schedules/cifar_b256_300e.py',
    '../_base_/mmshared.py',
    '../_base_/orthogonality.py',
]
model = dict(
    backbone=dict(type='SharedMobileNetV2_CIFAR', sharing=dict(groups=['conv.0.conv'], bank=dict(type='TiedFilters'))),
    head=dict(num_classes=100, topk=(1,)),
)
