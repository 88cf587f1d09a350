"""Turn a checkpoint of the authors of implicitly recurrent CNNs (https://github.com/lolemacs/soft-sharing) into one of
mmshared, and write beside it the config of its model: depth, width, templates and classes are read off the tensors.

Nothing is read except weights and the numbers of their RecorderMeter. A checkpoint that Python 2 wrote has to be
reduced to dict(state_dict=...) first.
"""

from mmshared.cli import convert_file
from mmshared.convert.soft_sharing import convert_checkpoint

if __name__ == '__main__':
    convert_file(__doc__, convert_checkpoint)
