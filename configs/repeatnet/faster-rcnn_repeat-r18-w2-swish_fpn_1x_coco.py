# A double-width ResNet-18 as the backbone. There is no checkpoint to start from unless you have trained the
# classifier: --cfg-options load_from=FILE
_base_ = ['mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', '../_base_/mmshared.py']
model = dict(
    backbone=dict(
        type='SharedResNet',
        depth=18,
        base_channels=128,
        stem_channels=64,
        sharing=dict(
            groups=['.*'], bank=dict(type='RepeatedKernel', transform=dict(type='swish'), width=2, input_channels=64)
        ),
        # With random weights there are no statistics to keep.
        frozen_stages=-1,
        norm_eval=False,
        init_cfg=None,
    ),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
