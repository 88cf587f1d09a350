# Template banks on ImageNet, with mmpretrain's recipe: we could not find the paper's.
_base_ = ['mmpretrain::resnet/resnet50_8xb32_in1k.py', '../_base_/mmshared.py']
model = dict(
    backbone=dict(
        type='SharedResNet',
        sharing=dict(groups=['conv1', 'conv2', 'conv3'], bank=dict(type='TemplateBank', num_templates=2)),
    )
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(coefficients=dict(decay_mult=0))))
