_base_ = './resnet-w1_b128_tinyimagenet.py'
model = dict(backbone=dict(base_channels=64), head=dict(in_channels=256))
