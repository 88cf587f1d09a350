# Normalised by the statistics of CIFAR-10, as the authors of RepeatNet do.
_base_ = 'mmpretrain::_base_/datasets/cifar100_bs16.py'
data_preprocessor = dict(mean=[125.307, 122.961, 113.8575], std=[51.5865, 50.847, 51.255])
train_dataloader = dict(batch_size=128, drop_last=True)
val_dataloader = dict(batch_size=128)
test_dataloader = val_dataloader
