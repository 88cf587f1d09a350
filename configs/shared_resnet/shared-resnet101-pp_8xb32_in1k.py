_base_ = './shared-resnet50-pp_8xb32_in1k.py'
model = dict(backbone=dict(depth=101))
