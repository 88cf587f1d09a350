"""Turn a checkpoint of the authors of RepeatNet (https://github.com/transmuteAI/RepeatNet) into one of mmshared, and
print the config whose model it loads into."""

from mmshared.cli import convert_file
from mmshared.convert.repeatnet import convert_checkpoint

if __name__ == '__main__':
    convert_file(__doc__, convert_checkpoint)
