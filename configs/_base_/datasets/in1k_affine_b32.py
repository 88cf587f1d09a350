# ImageNet with the affine augmentation of RepeatNet before the crop.
_base_ = 'mmpretrain::_base_/datasets/imagenet_bs32.py'
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='NumpyToPIL'),
    dict(type='torchvision/RandomAffine', degrees=20, scale=(0.8, 1.2), shear=20),
    dict(type='PILToNumpy'),
    dict(type='RandomResizedCrop', scale=224),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
train_dataloader = dict(drop_last=True, dataset=dict(pipeline=train_pipeline))
