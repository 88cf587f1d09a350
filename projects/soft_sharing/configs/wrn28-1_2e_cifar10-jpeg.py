_base_ = [
    '../../../configs/_base_/models/wrn28-10_cifar10.py',
    '../../../configs/_base_/cifar10-jpeg_4e.py',
    '../../../configs/_base_/mmshared.py',
]
model = dict(backbone=dict(widen_factor=1), head=dict(in_channels=64))
optim_wrapper = dict(
    optimizer=dict(nesterov=True), paramwise_cfg=dict(custom_keys=dict(coefficients=dict(decay_mult=0)))
)
train_cfg = dict(max_epochs=2)
param_scheduler = dict(total_steps=2)
