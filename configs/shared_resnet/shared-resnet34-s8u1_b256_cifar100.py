_base_ = './shared-resnet34-s32u1_b256_cifar100.py'
model = dict(backbone=dict(sharing=dict(bank=dict(shared_rank=8))))
