_base_ = ['./faster-rcnn_r50-narrow_12e_chess.py', '../_base_/orthogonality.py']
model = dict(backbone=dict(type='SharedResNet', sharing=dict(groups=['conv2'], bank=dict(type='TiedFilters'))))
