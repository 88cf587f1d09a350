_base_ = [
    'mmpretrain::_base_/models/mobilenet_v2_1x.py',
    'mmpretrain::_base_/datasets/imagenet_bs32_pil_resize.py',
    '../_base_/schedules/in1k_300e.py',
    '../_base_/mmshared.py',
    '../_base_/orthogonality.py',
]
# conv.0 of a block is its expansion, conv.2 its projection.
model = dict(
    backbone=dict(type='SharedMobileNetV2', sharing=dict(groups=['conv.0.conv'], bank=dict(type='TiedFilters')))
)
