# VGG-11 with the kernels of the first five convs: each of the others repeats one of them.
_base_ = './vgg11.py'
model = dict(
    backbone=dict(
        type='SharedVGG_CIFAR',
        sharing=dict(
            layers=['.*conv(2_1|3_2)', '.*conv(2_2|4_1|5_1)', '.*conv(3_1|4_2|5_2)'],
            bank=dict(type='RepeatedKernel', mode='inter', transform=dict(type='swish')),
        ),
    )
)
