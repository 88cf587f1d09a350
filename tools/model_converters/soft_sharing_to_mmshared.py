"""Convert the authors' checkpoint of implicitly recurrent CNNs (https://github.com/lolemacs/soft-sharing) to one of
mmshared, and write the config of its model beside it: depth, width, templates and classes are inferred from the
tensors.

Nothing is read except weights and the numbers of their RecorderMeter. A checkpoint written by Python 2 must be reduced
to dict(state_dict=...) first.
"""

from mmshared.cli import convert_file
from mmshared.convert.soft_sharing import convert_checkpoint

if __name__ == '__main__':
    convert_file(__doc__, convert_checkpoint)
