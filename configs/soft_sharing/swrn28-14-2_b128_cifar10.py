_base_ = './swrn28-10-2_b128_cifar10.py'
model = dict(backbone=dict(widen_factor=14), head=dict(in_channels=896))
