_base_ = './repeat-resnet-w2-swish_2e_cifar10-jpeg.py'
model = dict(backbone=dict(base_channels=64, sharing=dict(bank=dict(width=4))), head=dict(in_channels=256))
