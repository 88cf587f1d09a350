"""Train a detector or a classifier.

Takes a config file, or the name of one of mmdet or mmpretrain (mmdet::retinanet/retinanet_r50_fpn_1x_coco.py), and
all options of that library's own train.py: --work-dir, --resume, --amp, --auto-scale-lr, --cfg-options, --launcher.
--cfg-options data_root=FOLDER says where the data set is. (--help shows mmpretrain's, which are more than mmdet's.)
"""

from mmshared.cli import run_tool

if __name__ == '__main__':
    run_tool('train.py', __doc__, ['train_dataloader', 'val_dataloader'])
