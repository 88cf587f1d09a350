# Chess Pieces (Roboflow, public domain), https://public.roboflow.com/object-detection/chess-full
_base_ = './small_coco.py'
data_root = 'data/chess/'
metainfo = dict(
    classes=(
        'black-bishop',
        'black-king',
        'black-knight',
        'black-pawn',
        'black-queen',
        'black-rook',
        'white-bishop',
        'white-king',
        'white-knight',
        'white-pawn',
        'white-queen',
        'white-rook',
    )
)
train_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='train/'),
        metainfo=metainfo,
    )
)
val_dataloader = dict(
    dataset=dict(
        data_root=data_root, ann_file='annotations/instances_val.json', data_prefix=dict(img='val/'), metainfo=metainfo
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val.json')
test_evaluator = val_evaluator
