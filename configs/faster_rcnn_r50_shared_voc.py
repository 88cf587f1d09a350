_base_ = ['mmdet::pascal_voc/faster-rcnn_r50_fpn_1x_voc0712.py', './_base_/mmshared.py', './_base_/orthogonality.py']
model = dict(backbone=dict(type='SharedResNet', sharing=dict(groups=['conv2'], bank=dict(type='TiedFilters'))))
