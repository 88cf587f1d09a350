_base_ = './repeat-cnn-c4-linear_b128_rotmnist.py'
model = dict(
    backbone=dict(widen_factor=4, sharing=dict(bank=dict(transform=dict(type='swish'), width=4))),
    head=dict(in_channels=362),
)
