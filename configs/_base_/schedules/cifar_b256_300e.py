# The CIFAR schedule of deeply shared filter bases: batch 256, lr 0.1 / 10 after epochs 150 and 225
# (https://github.com/ssregibility/Net_RL2, train_cifar10.py).
_base_ = ['mmpretrain::_base_/schedules/cifar10_bs128.py', 'mmpretrain::_base_/default_runtime.py']
train_cfg = dict(max_epochs=300)
param_scheduler = dict(milestones=[150, 225])
optim_wrapper = dict(optimizer=dict(weight_decay=5e-4))
auto_scale_lr = dict(base_batch_size=256)
