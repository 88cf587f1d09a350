_base_ = './repeat-resnet-w2-linear_b128_cifar10.py'
model = dict(
    backbone=dict(base_channels=64, sharing=dict(bank=dict(transform=dict(type='bireal'), width=4))),
    head=dict(in_channels=256),
)
