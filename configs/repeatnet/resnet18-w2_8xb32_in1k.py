_base_ = './resnet18-w1_8xb32_in1k.py'
model = dict(backbone=dict(base_channels=128), head=dict(in_channels=1024))
