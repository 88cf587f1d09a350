_base_ = './shared-resnet50_8xb32_in1k.py'
model = dict(backbone=dict(depth=101, sharing=dict(groups=['conv2', 'conv3'])))
optim_wrapper = dict(optimizer=dict(weight_decay=1e-4))
