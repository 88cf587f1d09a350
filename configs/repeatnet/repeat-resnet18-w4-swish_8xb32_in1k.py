_base_ = './repeat-resnet18-w2-swish_8xb32_in1k.py'
model = dict(backbone=dict(base_channels=256, sharing=dict(bank=dict(width=4))), head=dict(in_channels=2048))
