_base_ = './repeat-cnn-c4-linear_b128_rotmnist.py'
model = dict(
    backbone=dict(widen_factor=4 * 2**0.5, sharing=dict(bank=dict(width=4 * 2**0.5))), head=dict(in_channels=512)
)
