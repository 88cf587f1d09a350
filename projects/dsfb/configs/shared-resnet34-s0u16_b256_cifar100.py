# Each conv has a basis of its own: nothing to keep orthogonal.
_base_ = '../../../configs/shared_resnet/shared-resnet34-s16u1_b256_cifar100.py'
model = dict(backbone=dict(sharing=dict(bank=dict(shared_rank=0, unique_rank=16))))
custom_hooks = []
