_base_ = './repeat-resnet-w2-swish_b128_cifar10.py'
model = dict(backbone=dict(base_channels=16, sharing=dict(bank=dict(width=1))), head=dict(in_channels=64))
