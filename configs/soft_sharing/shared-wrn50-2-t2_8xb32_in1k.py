_base_ = './shared-resnet50-t2_8xb32_in1k.py'
model = dict(backbone=dict(base_channels=128, expansion=2))
