_base_ = './resnet-w1_b128_cifar10.py'
model = dict(backbone=dict(base_channels=32), head=dict(in_channels=128))
