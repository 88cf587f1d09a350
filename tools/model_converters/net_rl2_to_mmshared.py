"""Convert the authors' checkpoint of deeply shared filter bases (https://github.com/ssregibility/Net_RL2) to one of
mmshared, and print the config of the model it loads into."""

from mmshared.cli import convert_file
from mmshared.convert.net_rl2 import convert_checkpoint

if __name__ == '__main__':
    convert_file(__doc__, convert_checkpoint)
