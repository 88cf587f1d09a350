_base_ = [
    'mmpretrain::_base_/models/resnet34.py',
    'mmpretrain::_base_/datasets/imagenet_bs32.py',
    '../_base_/schedules/in1k_150e.py',
    '../_base_/mmshared.py',
    '../_base_/orthogonality.py',
]
model = dict(
    backbone=dict(
        type='SharedResNet',
        zero_init_residual=False,
        sharing=dict(groups=['conv[12]'], bank=dict(type='FilterBasis', shared_rank=48, unique_rank=1)),
    )
)
