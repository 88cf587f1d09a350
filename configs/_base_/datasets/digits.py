# Digit scenes, written by tools/dataset_converters/digit_scenes.py. No flip: a mirrored digit is not a digit.
_base_ = './small_coco.py'
data_root = 'data/digits/'
metainfo = dict(classes=('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine'))
train_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        ann_file='instances_train.json',
        data_prefix=dict(img='JPEGImages/'),
        metainfo=metainfo,
        pipeline=[step for step in _base_.train_pipeline if step['type'] != 'RandomFlip'],
    )
)
val_dataloader = dict(
    dataset=dict(
        data_root=data_root, ann_file='instances_val.json', data_prefix=dict(img='JPEGImages/'), metainfo=metainfo
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'instances_val.json')
test_evaluator = val_evaluator
