_base_ = './shared-resnet32-s16u1_4e_cifar10-jpeg.py'
model = dict(backbone=dict(sharing=dict(bank=dict(shared_rank=8))))
