_base_ = './wrn28-1_2e_cifar10-jpeg.py'
model = dict(
    backbone=dict(
        type='SharedWideResNet_CIFAR',
        sharing=dict(groups=['conv[12]'], bank=dict(type='TemplateBank', num_templates=2)),
    )
)
custom_hooks = [dict(type='LayerSimilarityHook')]
