_base_ = ['../_base_/models/vgg11.py', '../_base_/repeatnet_cifar10.py']
