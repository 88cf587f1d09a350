_base_ = './resnet-w1_2e_cifar10-jpeg.py'
model = dict(backbone=dict(base_channels=32), head=dict(in_channels=128))
