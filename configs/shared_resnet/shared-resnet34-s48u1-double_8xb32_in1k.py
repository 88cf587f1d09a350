_base_ = './shared-resnet34-s48u1_8xb32_in1k.py'
model = dict(backbone=dict(sharing=dict(groups=['conv1', 'conv2'])))
