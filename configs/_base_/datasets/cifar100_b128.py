# CIFAR-100, normalised by the statistics of CIFAR-10 as the authors of RepeatNet do.
_base_ = './cifar10_b128.py'
data_preprocessor = dict(num_classes=100)
train_dataloader = dict(dataset=dict(type='CIFAR100', data_root='data/cifar100'))
val_dataloader = dict(dataset=dict(type='CIFAR100', data_root='data/cifar100'))
test_dataloader = val_dataloader
