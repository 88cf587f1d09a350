_base_ = './swrn28-1-2_2e_cifar10-jpeg.py'
custom_hooks = [*_base_.custom_hooks, dict(type='RecurrenceLossHook', loss_weight=0.01)]
