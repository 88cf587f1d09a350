_base_ = [
    '../_base_/models/resnet18-w1.py',
    '../_base_/datasets/in1k_affine_b32.py',
    '../_base_/schedules/in1k_90e.py',
    '../_base_/mmshared.py',
]
