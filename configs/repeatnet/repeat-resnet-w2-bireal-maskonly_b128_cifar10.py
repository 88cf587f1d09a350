# Kernels stay as drawn, or as loaded by --cfg-options load_from=FILE; only signs and norms are learned. The file is a
# checkpoint of a network like this, or what tools/model_converters/rescale.py makes of one of plain copies. Recipe of
# https://github.com/transmuteAI/RepeatNet (main.py, freeze_weights); it names no number of epochs, so that is ours.
# The authors load all of a checkpoint except norms, downsample and fc, which start afresh; here all of it is loaded.
_base_ = './repeat-resnet-w2-linear_b128_cifar10.py'
model = dict(backbone=dict(sharing=dict(bank=dict(transform=dict(type='bireal')))))
custom_hooks = [dict(type='TrainOnlyHook', keys=['bn', 'downsample', 'fc', 'transform.mask'])]
optim_wrapper = dict(optimizer=dict(weight_decay=1e-4))
param_scheduler = dict(milestones=[6, 12])
train_cfg = dict(max_epochs=18)
