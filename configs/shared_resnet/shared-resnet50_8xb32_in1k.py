_base_ = [
    'mmpretrain::_base_/models/resnet50.py',
    'mmpretrain::_base_/datasets/imagenet_bs32.py',
    '../_base_/schedules/in1k_150e.py',
    '../_base_/mmshared.py',
    '../_base_/orthogonality.py',
]
model = dict(
    backbone=dict(
        type='SharedResNet', zero_init_residual=False, sharing=dict(groups=['conv2'], bank=dict(type='TiedFilters'))
    )
)
optim_wrapper = dict(optimizer=dict(weight_decay=4e-5))
