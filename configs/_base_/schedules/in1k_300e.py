# The same for MobileNetV2: lr 0.1 / 10 after epochs 150 and 225, halved after 285, little weight decay.
_base_ = './in1k_150e.py'
train_cfg = dict(max_epochs=300)
param_scheduler = [
    dict(type='MultiStepLR', by_epoch=True, milestones=[150, 225], gamma=0.1),
    dict(type='MultiStepLR', by_epoch=True, milestones=[285], gamma=0.5),
]
optim_wrapper = dict(optimizer=dict(weight_decay=1e-5))
