# The ImageNet schedule of deeply shared filter bases for MobileNetV2: batch 256, lr 0.1 / 10 after epochs 150 and 225,
# halved after 285, little weight decay (https://github.com/ssregibility/Net_RL2, train_ilsvrc.py).
_base_ = ['mmpretrain::_base_/schedules/imagenet_bs256.py', 'mmpretrain::_base_/default_runtime.py']
train_cfg = dict(max_epochs=300)
param_scheduler = [
    dict(type='MultiStepLR', by_epoch=True, milestones=[150, 225], gamma=0.1),
    dict(type='MultiStepLR', by_epoch=True, milestones=[285], gamma=0.5),
]
optim_wrapper = dict(optimizer=dict(weight_decay=1e-5))
