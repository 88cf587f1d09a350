_base_ = './swrn28-10-6_b128_cifar10.py'
train_dataloader = dict(dataset=dict(pipeline=_base_.cutout_pipeline))
