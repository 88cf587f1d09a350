# Tiny-ImageNet (200 classes, 64x64): one folder per class under train/ and val/. As distributed, the images of val/
# lie in one folder: sort them into folders by val/val_annotations.txt.
data_preprocessor = dict(num_classes=200, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='NumpyToPIL'),
    dict(type='torchvision/RandomAffine', degrees=20, scale=(0.8, 1.2), shear=20),
    dict(type='PILToNumpy'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
train_dataloader = dict(
    batch_size=128,
    num_workers=4,
    drop_last=True,
    dataset=dict(
        type='CustomDataset', data_root='data/tiny-imagenet-200', data_prefix='train', pipeline=train_pipeline
    ),
    sampler=dict(type='DefaultSampler', shuffle=True),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=4,
    dataset=dict(type='CustomDataset', data_root='data/tiny-imagenet-200', data_prefix='val', pipeline=test_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_dataloader = val_dataloader
test_evaluator = val_evaluator
