_base_ = [
    '../_base_/models/faster-rcnn_r50-narrow_fpn.py',
    '../_base_/datasets/digits.py',
    '../_base_/schedules/adamw_12e.py',
    '../_base_/mmshared.py',
]
model = dict(
    roi_head=dict(bbox_head=dict(num_classes=10)),
    # An image has at most six digits: a quarter of the usual samples takes a quarter of the time.
    train_cfg=dict(rpn_proposal=dict(nms_pre=500, max_per_img=300), rcnn=dict(sampler=dict(num=128))),
)
