# As wide as the network that is equivariant under four rotations.
_base_ = './cnn_b128_rotmnist.py'
model = dict(
    backbone=dict(
        type='SharedRotMNISTCNN',
        widen_factor=2 * 2**0.5,
        sharing=dict(
            layers='.*',
            bank=dict(type='RepeatedKernel', transform=dict(type='swish'), width=2 * 2**0.5, input_channels=1),
        ),
    ),
    head=dict(in_channels=256),
)
