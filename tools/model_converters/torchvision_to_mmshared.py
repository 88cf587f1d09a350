"""Convert a classifier of torchvision or of timm (ResNet, ResNeXt, wide ResNet, MobileNetV2) to mmpretrain's keys, and
print the config of the network it loads into. From it, a network that shares can start."""

from mmshared.cli import convert_file
from mmshared.convert.torchvision import convert_checkpoint

if __name__ == '__main__':
    convert_file(__doc__, convert_checkpoint)
