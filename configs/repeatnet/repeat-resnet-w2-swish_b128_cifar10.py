_base_ = ['../_base_/models/repeat-resnet16-w2-swish.py', '../_base_/repeatnet_cifar10.py']
