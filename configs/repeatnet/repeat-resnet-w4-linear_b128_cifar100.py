_base_ = './repeat-resnet-w4-swish_b128_cifar100.py'
model = dict(backbone=dict(sharing=dict(bank=dict(transform=dict(type='linear')))))
