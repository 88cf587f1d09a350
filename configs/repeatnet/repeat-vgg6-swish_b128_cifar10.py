_base_ = ['../_base_/models/repeat-vgg6-swish.py', '../_base_/repeatnet_cifar10.py']
