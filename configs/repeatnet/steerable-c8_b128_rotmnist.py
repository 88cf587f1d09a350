_base_ = './steerable-c4_b128_rotmnist.py'
model = dict(backbone=dict(rotations=8), head=dict(in_channels=45))
