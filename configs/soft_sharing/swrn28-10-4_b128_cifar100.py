_base_ = './swrn28-10-1_b128_cifar100.py'
model = dict(backbone=dict(sharing=dict(bank=dict(num_templates=4))))
