"""Evaluate a checkpoint of a detector or a classifier.

Takes a config as train.py does, a checkpoint, and all options of that library's own test.py: --work-dir, --out,
--show-dir, --tta, --cfg-options, --launcher. --cfg-options data_root=FOLDER says where the data set is. (--help shows
mmpretrain's, which are more than mmdet's.)
"""

from mmshared.cli import run_tool

if __name__ == '__main__':
    run_tool('test.py', __doc__, ['test_dataloader'])
