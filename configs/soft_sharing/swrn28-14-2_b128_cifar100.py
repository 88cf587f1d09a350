_base_ = './wrn28-10_b128_cifar100.py'
model = dict(
    backbone=dict(
        type='SharedWideResNet_CIFAR',
        widen_factor=14,
        sharing=dict(groups=['conv[12]'], bank=dict(type='TemplateBank', num_templates=2)),
    ),
    head=dict(in_channels=896),
)
