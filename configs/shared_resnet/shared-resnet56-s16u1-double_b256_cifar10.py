_base_ = './shared-resnet32-s16u1-double_b256_cifar10.py'
model = dict(backbone=dict(depth=56))
