_base_ = './repeat-vgg4-swish_b128_cifar10.py'
model = dict(backbone=dict(sharing=dict(layers=['.*conv(2_1|[345]_1)', '.*conv(2_2|[345]_2)'])))
