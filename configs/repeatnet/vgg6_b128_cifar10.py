_base_ = './vgg11_b128_cifar10.py'
model = dict(backbone=dict(depth=6), head=dict(in_channels=256))
