_base_ = './repeat-cnn-c4-linear_b128_rotmnist.py'
model = dict(backbone=dict(sharing=dict(bank=dict(transform=dict(type='swish')))))
