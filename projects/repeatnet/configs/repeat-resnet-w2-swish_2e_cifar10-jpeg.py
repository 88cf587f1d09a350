_base_ = ['../../../configs/_base_/models/repeat-resnet16-w2-swish.py', './cifar10-jpeg_2e.py']
