_base_ = './repeat-vgg4-swish_b128_cifar10.py'
model = dict(backbone=dict(sharing=dict(layers=['.*conv5_[12]'])))
