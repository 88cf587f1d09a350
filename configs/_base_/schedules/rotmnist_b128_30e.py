# The schedule of RepeatNet for rotated MNIST: Adam at 1e-3, times 0.8 per epoch from epoch 10 on, counted from 0
# (https://github.com/transmuteAI/RepeatNet, main.py). The authors train in mixed precision: train.py --amp.
_base_ = 'mmpretrain::_base_/default_runtime.py'
optim_wrapper = dict(optimizer=dict(type='Adam', lr=1e-3, weight_decay=1e-7), clip_grad=dict(max_norm=1))
param_scheduler = dict(type='MultiStepLR', by_epoch=True, milestones=list(range(10, 30)), gamma=0.8)
train_cfg = dict(by_epoch=True, max_epochs=30, val_interval=1)
val_cfg = dict()
test_cfg = dict()
randomness = dict(seed=42, deterministic=True)
auto_scale_lr = dict(base_batch_size=128)
