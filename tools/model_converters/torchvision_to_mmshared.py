"""Convert a classifier's checkpoint of torchvision or timm to one of mmpretrain.

Prints the config of the network that it loads into: a ResNet, ResNeXt, wide ResNet or MobileNetV2. From it, a network
that shares can start.
"""

from mmshared_cli import convert_file

if __name__ == '__main__':
    convert_file(__doc__, 'mmshared.convert.torchvision')
