_base_ = './repeat-vgg4-swish_b128_cifar10.py'
model = dict(backbone=dict(sharing=dict(layers=['.*conv(3_1|4_2)', '.*conv(3_2|5_1)', '.*conv(4_1|5_2)'])))
