_base_ = ['../../../configs/_base_/models/resnet16-w1.py', './cifar10-jpeg_2e.py']
