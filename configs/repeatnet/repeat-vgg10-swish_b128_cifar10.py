_base_ = './repeat-vgg6-swish_b128_cifar10.py'
model = dict(backbone=dict(sharing=dict(groups=['conv5_[12]'])))
