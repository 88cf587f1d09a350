_base_ = './shared-resnet32-s8u1_b256_cifar10.py'
model = dict(backbone=dict(depth=56))
