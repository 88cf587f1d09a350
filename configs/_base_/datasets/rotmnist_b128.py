# Rotated MNIST, made from the MNIST files or read from the original ones, at 29x29 pixels from 0 to 1. Augmented as in
# main.py of https://github.com/transmuteAI/RepeatNet: rotated and flipped at three times the size.
data_preprocessor = dict(num_classes=10, mean=[0.0], std=[255.0], to_rgb=False)
train_pipeline = [
    dict(type='NumpyToPIL'),
    dict(type='torchvision/Pad', padding=(0, 0, 1, 1)),
    dict(type='torchvision/Resize', size=87),
    dict(type='torchvision/RandomRotation', degrees=180, interpolation='bilinear'),
    dict(type='torchvision/RandomVerticalFlip'),
    dict(type='torchvision/RandomHorizontalFlip'),
    dict(type='torchvision/Resize', size=29),
    dict(type='PILToNumpy'),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='NumpyToPIL'),
    dict(type='torchvision/Pad', padding=(0, 0, 1, 1)),
    dict(type='PILToNumpy'),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=128,
    num_workers=2,
    drop_last=True,
    persistent_workers=True,
    dataset=dict(type='RotatedMNIST', data_root='data/mnist', split='train', pipeline=train_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=True),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=2,
    persistent_workers=True,
    dataset=dict(type='RotatedMNIST', data_root='data/mnist', split='test', pipeline=test_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
val_evaluator = dict(type='Accuracy', topk=(1,))
test_dataloader = val_dataloader
test_evaluator = val_evaluator
