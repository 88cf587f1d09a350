_base_ = './shared-resnet32-s16u1_4e_cifar10-jpeg.py'
custom_hooks = _base_.monitors
