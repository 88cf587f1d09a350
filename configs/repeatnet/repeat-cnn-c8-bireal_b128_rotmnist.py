_base_ = './repeat-cnn-c8-swish_b128_rotmnist.py'
model = dict(backbone=dict(sharing=dict(bank=dict(transform=dict(type='bireal')))))
