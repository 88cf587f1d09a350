"""Convert the authors' checkpoint of deeply shared filter bases to one of mmshared.

Theirs is of https://github.com/ssregibility/Net_RL2. Prints the config of the model that it loads into.
"""

from mmshared_cli import convert_file

if __name__ == '__main__':
    convert_file(__doc__, 'mmshared.convert.net_rl2')
