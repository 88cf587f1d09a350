_base_ = [
    'mmpretrain::_base_/models/resnet18.py',
    '../_base_/datasets/in1k_affine_bs32.py',
    '../_base_/schedules/in1k_90e.py',
    '../_base_/mmshared.py',
]
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
