_base_ = './repeat-resnet18-w2-linear_8xb32_in1k.py'
model = dict(backbone=dict(sharing=dict(bank=dict(transform=dict(type='swish')))))
