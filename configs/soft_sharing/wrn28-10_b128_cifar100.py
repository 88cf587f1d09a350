_base_ = [
    '../_base_/models/wrn28-10_cifar10.py',
    '../_base_/datasets/cifar100_b128_wrn.py',
    '../_base_/schedules/wrn_b128_200e.py',
    '../_base_/mmshared.py',
]
model = dict(head=dict(num_classes=100))
