_base_ = './swrn28-10-2_b128_cifar10.py'
model = dict(backbone=dict(widen_factor=4), head=dict(in_channels=256))
