_base_ = './repeat-vgg4-swish_b128_cifar10.py'
model = dict(
    backbone=dict(sharing=dict(layers=['.*conv(2_1|4_1)', '.*conv(2_2|4_2)', '.*conv(3_1|5_1)', '.*conv(3_2|5_2)']))
)
