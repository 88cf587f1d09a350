_base_ = [
    '../_base_/models/faster-rcnn_r50-narrow_fpn.py',
    '../_base_/datasets/digits.py',
    '../_base_/schedules/adamw_12e.py',
    '../_base_/mmshared.py',
]
model = dict(roi_head=dict(bbox_head=dict(num_classes=10)))
