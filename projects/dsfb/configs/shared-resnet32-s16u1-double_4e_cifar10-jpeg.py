_base_ = './shared-resnet32-s16u1_4e_cifar10-jpeg.py'
model = dict(backbone=dict(sharing=dict(groups=['conv1', 'conv2'])))
