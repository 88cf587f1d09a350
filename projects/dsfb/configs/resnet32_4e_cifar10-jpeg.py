_base_ = [
    '../../../configs/_base_/models/resnet32_cifar10.py',
    '../../../configs/_base_/cifar10-jpeg_4e.py',
    '../../../configs/_base_/mmshared.py',
]
