# Two epochs on every third image of the JPEG copy of CIFAR-10, for a CPU.
_base_ = [
    '../../../configs/_base_/models/resnet16-w1.py',
    '../../../configs/_base_/cifar10-jpeg_4e.py',
    '../../../configs/_base_/mmshared.py',
]
train_dataloader = dict(drop_last=True, dataset=dict(indices=list(range(0, 50000, 3))))
optim_wrapper = dict(optimizer=dict(weight_decay=1e-3), clip_grad=dict(max_norm=1))
train_cfg = dict(max_epochs=2)
param_scheduler = dict(total_steps=2)
