_base_ = './shared-mobilenet-v2-pp_8xb32_in1k.py'
model = dict(backbone=dict(type='SharedECAMobileNetV2'))
