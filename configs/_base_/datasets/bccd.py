# Blood cells (BCCD, MIT licence), https://github.com/Shenggan/BCCD_Dataset: its folder BCCD, in VOC layout.
_base_ = './small_coco.py'
data_root = 'data/bccd/'
metainfo = dict(classes=('RBC', 'WBC', 'Platelets'))
# Cells are large: images of half the size, 320x240, are enough on a CPU.
train_pipeline = _base_.train_pipeline
test_pipeline = _base_.test_pipeline
train_pipeline[2]['scale_factor'] = test_pipeline[1]['scale_factor'] = 0.5
train_dataloader = dict(
    dataset=dict(
        type='VOCDataset',
        data_root=data_root,
        ann_file='ImageSets/Main/trainval.txt',
        data_prefix=dict(_delete_=True, sub_data_root=''),
        metainfo=metainfo,
        pipeline=train_pipeline,
    )
)
val_dataloader = dict(
    dataset=dict(
        type='VOCDataset',
        data_root=data_root,
        ann_file='ImageSets/Main/test.txt',
        data_prefix=dict(_delete_=True, sub_data_root=''),
        metainfo=metainfo,
        pipeline=test_pipeline,
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(_delete_=True, type='mmdet.VOCMetric', metric='mAP', eval_mode='11points')
test_evaluator = val_evaluator
