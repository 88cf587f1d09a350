_base_ = './shared-resnet32-s16u1_b256_cifar10.py'
model = dict(backbone=dict(sharing=dict(groups=['conv1', 'conv2'])))
