_base_ = './wrn28-10_b128_cifar10.py'
model = dict(
    backbone=dict(
        type='SharedWideResNet_CIFAR',
        sharing=dict(groups=['conv[12]'], bank=dict(type='TemplateBank', num_templates=6)),
    )
)
