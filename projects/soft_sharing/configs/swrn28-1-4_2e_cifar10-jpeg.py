_base_ = './swrn28-1-1_2e_cifar10-jpeg.py'
model = dict(backbone=dict(sharing=dict(bank=dict(num_templates=4))))
