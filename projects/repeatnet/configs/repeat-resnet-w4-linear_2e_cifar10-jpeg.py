_base_ = './repeat-resnet-w4-swish_2e_cifar10-jpeg.py'
model = dict(backbone=dict(sharing=dict(bank=dict(transform=dict(type='linear')))))
