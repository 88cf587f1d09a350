_base_ = './shared-mobilenet-v2_b256_cifar100.py'
model = dict(backbone=dict(sharing=dict(groups=['conv.0.conv', 'conv.2.conv'])))
