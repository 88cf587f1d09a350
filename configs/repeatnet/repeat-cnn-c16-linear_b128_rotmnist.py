_base_ = './repeat-cnn-c16-swish_b128_rotmnist.py'
model = dict(backbone=dict(sharing=dict(bank=dict(transform=dict(type='linear')))))
