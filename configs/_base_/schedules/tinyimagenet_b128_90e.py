# The schedule of RepeatNet for Tiny-ImageNet: lr 0.1 / 10 after epochs 30 and 60, little weight decay.
_base_ = './cifar_b128_160e.py'
optim_wrapper = dict(optimizer=dict(weight_decay=1e-4))
param_scheduler = dict(milestones=[30, 60])
train_cfg = dict(max_epochs=90)
