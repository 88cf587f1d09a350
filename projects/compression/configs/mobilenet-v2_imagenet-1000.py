# MobileNetV2 of ImageNet on https://github.com/EliSchwartz/imagenet-sample-images, an image of each class. The labels
# are what the plain network predicts, by predictions.py: top-1 is the share of images on which both agree.
_base_ = ['mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py', '../../../configs/_base_/mmshared.py']
dataset = dict(
    _delete_=True,
    type='CustomDataset',
    data_root='data/imagenet_1000',
    ann_file='predictions.txt',
    pipeline=[
        dict(type='LoadImageFromFile'),
        dict(type='ResizeEdge', scale=256, edge='short', backend='pillow'),
        dict(type='CenterCrop', crop_size=224),
        dict(type='PackInputs'),
    ],
)
train_dataloader = dict(num_workers=1, dataset=dataset)
val_dataloader = dict(num_workers=1, dataset=dataset)
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1,))
test_evaluator = val_evaluator
