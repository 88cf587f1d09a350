_base_ = '../../../configs/shared_resnet/shared-resnet34-s16u1_b256_cifar100.py'
model = dict(backbone=dict(sharing=dict(bank=dict(type='OrthonormalFilterBasis'))))
custom_hooks = []
