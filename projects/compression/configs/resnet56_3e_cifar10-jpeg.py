# The ResNet-56 of https://github.com/akamaster/pytorch_resnet_cifar10 on every fifth training image. The learning rate
# is the one it was trained at; README.md has those of the short trainings.
_base_ = [
    '../../../configs/_base_/models/resnet32_cifar10.py',
    '../../../configs/_base_/cifar10-jpeg_4e.py',
    '../../../configs/_base_/mmshared.py',
]
model = dict(backbone=dict(depth=56))
train_dataloader = dict(dataset=dict(indices=list(range(0, 50000, 5))))
train_cfg = dict(max_epochs=3)
optim_wrapper = dict(optimizer=dict(weight_decay=1e-4))
param_scheduler = dict(_delete_=True, type='CosineAnnealingLR', T_max=3, convert_to_iter_based=True)
