_base_ = './wrn28-10_b128_cifar10.py'
train_dataloader = dict(dataset=dict(pipeline=_base_.cutout_pipeline))
