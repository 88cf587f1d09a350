"""Convert a checkpoint of a classifier of torchvision or timm to one of mmpretrain, for shared networks to start from.

Prints the config of the network that it loads into: a ResNet, ResNeXt, wide ResNet or MobileNetV2.
"""

from mmshared_cli import convert_file

if __name__ == '__main__':
    convert_file(__doc__, 'mmshared.convert.torchvision')
