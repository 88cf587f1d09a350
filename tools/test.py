"""Evaluate a checkpoint of a detector or a classifier.

Takes a config as train.py does, a checkpoint, and all options of that library's own test.py: --work-dir, --out,
--show-dir, --tta, --cfg-options, --launcher.
"""
from mmshared.cli import run_tool

if __name__ == '__main__':
    run_tool('test.py', ['test_dataloader'])
