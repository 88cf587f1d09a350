_base_ = './repeat-resnet-w2-linear_b128_cifar10.py'
model = dict(backbone=dict(sharing=dict(bank=dict(transform=dict(type='bireal')))))
