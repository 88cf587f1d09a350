_base_ = './shared-resnet32-s16u1_b256_cifar10.py'
model = dict(backbone=dict(depth=56, sharing=dict(groups=['conv1', 'conv2'])))
