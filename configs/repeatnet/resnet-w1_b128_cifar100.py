_base_ = ['../_base_/models/resnet16-w1.py', '../_base_/repeatnet_cifar100.py']
model = dict(head=dict(num_classes=100))
