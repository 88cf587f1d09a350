# The ImageNet schedule of RepeatNet: lr 0.1 / 10 after epochs 30 and 60
# (https://github.com/transmuteAI/RepeatNet, main.py). The authors train in mixed precision, train.py --amp, and their
# scripts have four processes of batch 128.
_base_ = ['mmpretrain::_base_/schedules/imagenet_bs256.py', 'mmpretrain::_base_/default_runtime.py']
optim_wrapper = dict(clip_grad=dict(max_norm=1))
param_scheduler = dict(milestones=[30, 60])
train_cfg = dict(max_epochs=90)
randomness = dict(seed=42, deterministic=True)
