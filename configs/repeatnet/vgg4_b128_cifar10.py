_base_ = './vgg11_b128_cifar10.py'
model = dict(backbone=dict(depth=4), head=dict(in_channels=128))
