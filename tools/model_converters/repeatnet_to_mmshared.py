"""Convert the authors' checkpoint of RepeatNet (https://github.com/transmuteAI/RepeatNet) to one of mmshared, and
print the config of the model it loads into."""

from mmshared.cli import convert_file
from mmshared.convert.repeatnet import convert_checkpoint

if __name__ == '__main__':
    convert_file(__doc__, convert_checkpoint)
