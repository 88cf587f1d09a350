# The authors' code also takes the batch norm between the two convs of a block away (bn1).
_base_ = '../../../configs/shared_resnet/shared-resnet34-s16u1_b256_cifar100.py'
model = dict(backbone=dict(sharing=dict(bank=dict(with_norm=False))))
