_base_ = ['mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', './_base_/mmshared.py', './_base_/orthogonality.py']
# Everything else, including the start from torchvision's plain ResNet-50, is the base config's.
model = dict(backbone=dict(type='SharedResNet', sharing=dict(groups=['conv2'], bank=dict(type='TiedFilters'))))
