_base_ = './repeat-resnet18-w2-swish_8xb32_in1k.py'
model = dict(backbone=dict(base_channels=64, sharing=dict(bank=dict(width=1))), head=dict(in_channels=512))
