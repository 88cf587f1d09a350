_base_ = ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', '../_base_/mmshared.py', '../_base_/orthogonality.py']
model = dict(backbone=dict(type='SharedResNet', sharing=dict(groups=['conv2'], bank=dict(type='TiedFilters'))))
