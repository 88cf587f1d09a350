# ResNet-18, initialised as the authors of RepeatNet do.
_base_ = 'mmpretrain::_base_/models/resnet18.py'
model = dict(
    backbone=dict(
        zero_init_residual=False,
        init_cfg=[
            dict(type='Kaiming', layer='Conv2d'),
            dict(type='Constant', val=1, bias=0.01, layer='_BatchNorm'),
        ],
    ),
    head=dict(init_cfg=None),
)
