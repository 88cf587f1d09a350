"""Convert the authors' checkpoint of implicitly recurrent CNNs to one of mmshared.

Theirs is of https://github.com/lolemacs/soft-sharing. The config of its model is written beside it: depth, width,
templates and classes are inferred from the tensors.

Nothing is read except weights and the numbers of their RecorderMeter. A checkpoint written by Python 2 must be reduced
to dict(state_dict=...) first.
"""

from mmshared_cli import convert_file

if __name__ == '__main__':
    convert_file(__doc__, 'mmshared.convert.soft_sharing')
