# The ImageNet schedule of deeply shared filter bases: batch 256, lr 0.1 / 10 after epochs 60, 100 and 140
# (https://github.com/ssregibility/Net_RL2, train_ilsvrc.py).
_base_ = ['mmpretrain::_base_/schedules/imagenet_bs256.py', 'mmpretrain::_base_/default_runtime.py']
train_cfg = dict(max_epochs=150)
param_scheduler = dict(milestones=[60, 100, 140])
