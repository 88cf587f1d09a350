_base_ = './vgg11_b128_cifar10.py'
model = dict(backbone=dict(depth=8))
