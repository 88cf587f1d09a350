# Blood cells (BCCD, MIT licence), https://github.com/Shenggan/BCCD_Dataset: its folder BCCD, in VOC layout.
_base_ = './small_coco.py'
data_root = 'data/bccd/'
metainfo = dict(classes=('RBC', 'WBC', 'Platelets'))
train_dataloader = dict(
    dataset=dict(
        type='VOCDataset',
        data_root=data_root,
        ann_file='ImageSets/Main/trainval.txt',
        data_prefix=dict(_delete_=True, sub_data_root=''),
        metainfo=metainfo))
val_dataloader = dict(
    dataset=dict(
        type='VOCDataset',
        data_root=data_root,
        ann_file='ImageSets/Main/test.txt',
        data_prefix=dict(_delete_=True, sub_data_root=''),
        metainfo=metainfo))
test_dataloader = val_dataloader
val_evaluator = dict(_delete_=True, type='mmdet.VOCMetric', metric='mAP', eval_mode='11points')
test_evaluator = val_evaluator
