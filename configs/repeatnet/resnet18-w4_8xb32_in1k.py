_base_ = './resnet18-w1_8xb32_in1k.py'
model = dict(backbone=dict(base_channels=256), head=dict(in_channels=2048))
