_base_ = [
    '../_base_/models/faster-rcnn_r50-narrow_fpn.py',
    '../_base_/datasets/digits.py',
    '../_base_/schedules/adamw_12e.py',
    '../_base_/mmshared.py',
    '../_base_/orthogonality.py',
]
model = dict(
    backbone=dict(type='SharedResNet', sharing=dict(groups=['conv2'], bank=dict(type='TiedFilters'))),
    roi_head=dict(bbox_head=dict(num_classes=10)),
)
