# The schedule of RepeatNet for Tiny-ImageNet: lr 0.1 / 10 after epochs 30 and 60, little weight decay.
_base_ = ['mmpretrain::_base_/schedules/cifar10_bs128.py', 'mmpretrain::_base_/default_runtime.py']
optim_wrapper = dict(clip_grad=dict(max_norm=1))
param_scheduler = dict(milestones=[30, 60])
train_cfg = dict(max_epochs=90)
randomness = dict(seed=42, deterministic=True)
