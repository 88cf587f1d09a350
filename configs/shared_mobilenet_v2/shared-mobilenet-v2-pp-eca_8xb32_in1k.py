_base_ = './shared-mobilenet-v2_8xb32_in1k.py'
model = dict(backbone=dict(type='SharedECAMobileNetV2', sharing=dict(groups=['conv.0.conv', 'conv.2.conv'])))
