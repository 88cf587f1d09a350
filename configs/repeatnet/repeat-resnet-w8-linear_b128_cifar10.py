_base_ = './repeat-resnet-w2-linear_b128_cifar10.py'
model = dict(backbone=dict(base_channels=128, sharing=dict(bank=dict(width=8))), head=dict(in_channels=512))
