_base_ = './resnet32_b256_cifar10.py'
model = dict(backbone=dict(depth=56))
