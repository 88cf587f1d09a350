_base_ = './resnet56_3e_cifar10-jpeg.py'
model = dict(backbone=dict(depth=20))
