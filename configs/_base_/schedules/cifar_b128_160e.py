# The CIFAR schedule of RepeatNet: batch 128, lr 0.1 / 10 after epochs 80 and 120, all parameters decayed alike
# (https://github.com/transmuteAI/RepeatNet, main.py). The authors train in mixed precision: train.py --amp.
_base_ = ['mmpretrain::_base_/schedules/cifar10_bs128.py', 'mmpretrain::_base_/default_runtime.py']
optim_wrapper = dict(optimizer=dict(weight_decay=1e-3), clip_grad=dict(max_norm=1))
param_scheduler = dict(milestones=[80, 120])
train_cfg = dict(max_epochs=160)
randomness = dict(seed=42, deterministic=True)
