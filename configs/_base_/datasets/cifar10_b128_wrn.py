# Normalised as in https://github.com/lolemacs/soft-sharing (main.py).
_base_ = 'mmpretrain::_base_/datasets/cifar10_bs16.py'
data_preprocessor = dict(mean=[125.3, 123.0, 113.9], std=[63.0, 62.1, 66.7])
train_dataloader = dict(batch_size=128)
val_dataloader = dict(batch_size=128)
test_dataloader = val_dataloader
