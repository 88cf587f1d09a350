_base_ = ['../../../configs/_base_/models/resnet32_cifar10.py', './cifar10-jpeg_4e.py']
