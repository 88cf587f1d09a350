# As wide as the network that is equivariant under four rotations.
_base_ = [
    '../_base_/models/cnn_rotmnist.py',
    '../_base_/datasets/rotmnist_b128.py',
    '../_base_/schedules/rotmnist_b128_30e.py',
    '../_base_/mmshared.py',
]
model = dict(
    backbone=dict(
        type='SharedRotMNISTCNN',
        widen_factor=2 * 2**0.5,
        sharing=dict(
            layers='.*',
            bank=dict(type='RepeatedKernel', transform=dict(type='linear'), width=2 * 2**0.5, input_channels=1),
        ),
    ),
    head=dict(in_channels=256),
)
