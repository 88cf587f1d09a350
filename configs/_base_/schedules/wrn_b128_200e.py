# The schedule of wide ResNets and of implicitly recurrent CNNs: batch 128, lr 0.1, times 0.2 after epochs 60, 120 and
# 160, no weight decay on coefficients (https://github.com/lolemacs/soft-sharing, main.py).
_base_ = ['mmpretrain::_base_/schedules/cifar10_bs128.py', 'mmpretrain::_base_/default_runtime.py']
optim_wrapper = dict(
    optimizer=dict(weight_decay=5e-4, nesterov=True),
    paramwise_cfg=dict(custom_keys=dict(coefficients=dict(decay_mult=0))),
)
param_scheduler = dict(milestones=[60, 120, 160], gamma=0.2)
