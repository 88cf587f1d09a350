_base_ = [
    '../_base_/models/cnn_rotmnist.py',
    '../_base_/datasets/rotmnist_b128.py',
    '../_base_/schedules/rotmnist_b128_30e.py',
    '../_base_/mmshared.py',
]
