_base_ = [
    '../../../configs/_base_/models/shared-resnet32-s16u1_cifar10.py',
    '../../../configs/_base_/cifar10-jpeg_4e.py',
]
monitors = [dict(type='BasisHealthHook'), dict(type='GradientFlowHook')]
custom_hooks = [*_base_.custom_hooks, *monitors]
