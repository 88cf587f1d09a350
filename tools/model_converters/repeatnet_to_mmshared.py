"""Convert the authors' checkpoint of RepeatNet to one of mmshared.

Theirs is of https://github.com/transmuteAI/RepeatNet. Prints the config of the model that it loads into.
"""

from mmshared_cli import convert_file

if __name__ == '__main__':
    convert_file(__doc__, 'mmshared.convert.repeatnet')
