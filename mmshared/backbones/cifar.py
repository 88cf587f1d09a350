"""Networks for 32x32 pictures that the libraries lack, plain and shared."""
import torch.nn.functional as F
from mmpretrain.models.backbones import ResNet_CIFAR
from mmpretrain.models.backbones.resnet import BasicBlock
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from .shared_backbone import share_backbones


class PadShortcut(nn.Module):
    """A shortcut without parameters: every ``stride``-th pixel, and channels of zeros on both sides.

    Args:
        extra_channels (int): Number of channels that are added, half of them in front.
        stride (int): Stride of the block.
    """

    def __init__(self, extra_channels: int, stride: int):
        super().__init__()
        self.extra_channels = extra_channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        half = self.extra_channels // 2
        return F.pad(x[:, :, ::self.stride, ::self.stride], (0, 0, 0, 0, half, self.extra_channels - half))


@MODELS.register_module()
class ResNetA_CIFAR(ResNet_CIFAR):
    """The ResNet of 6n+2 layers for CIFAR-10 of the ResNet paper (https://arxiv.org/abs/1512.03385, section 4.2).

    Three stages of n blocks with 16, 32 and 64 channels, and shortcuts without parameters (its option A). Its keys
    are those of mmpretrain's ResNet.

    Args:
        depth (int): 6n+2, from {20, 32, 44, 56, 110}.
        **kwargs: Further arguments of mmpretrain's ``ResNet``.
    """

    arch_settings = {6 * n + 2: (BasicBlock, (n, ) * 3) for n in (3, 5, 7, 9, 18)}

    def __init__(self, depth: int, **kwargs):
        settings = dict(stem_channels=16, base_channels=16, num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1),
                        out_indices=(2, ), zero_init_residual=False)
        super().__init__(depth, **{**settings, **kwargs})

    def make_res_layer(self, **kwargs) -> nn.Module:
        stage = super().make_res_layer(**kwargs)
        if stage[0].downsample is not None:
            stage[0].downsample = PadShortcut(kwargs['out_channels'] - kwargs['in_channels'], kwargs['stride'])
        return stage


globals().update(share_backbones([ResNetA_CIFAR], MODELS, __name__))
