"""Networks for 32x32 images that the libraries lack, plain and shared."""

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule, build_conv_layer, build_norm_layer
from mmpretrain.models.backbones import DenseNet, MobileNetV2, ResNet_CIFAR, ResNeXt
from mmpretrain.models.backbones.resnet import BasicBlock
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ..sharing import SharingError
from .twins import make_twins


class PadShortcut(nn.Module):
    """A shortcut without parameters: every ``stride``-th pixel, padded with channels of zeros on both sides.

    Args:
        extra_channels (int): Number of added channels, half of them in front.
        stride (int): Stride of the block.
    """

    def __init__(self, extra_channels: int, stride: int):
        super().__init__()
        self.extra_channels = extra_channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        half = self.extra_channels // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.extra_channels - half))


@MODELS.register_module()
class ResNetA_CIFAR(ResNet_CIFAR):
    """The ResNet paper's network of 6n+2 layers for CIFAR-10 (https://arxiv.org/abs/1512.03385, section 4.2).

    Three stages of n blocks with 16, 32 and 64 channels, and shortcuts without parameters (its option A). It has the
    keys of mmpretrain's ResNet.

    Args:
        depth (int): 6n+2, from {20, 32, 44, 56, 110}.
        **kwargs: Further arguments of mmpretrain's ``ResNet``.
    """

    arch_settings = {6 * n + 2: (BasicBlock, (n,) * 3) for n in (3, 5, 7, 9, 18)}

    def __init__(self, depth: int, **kwargs):
        settings = dict(
            stem_channels=16,
            base_channels=16,
            num_stages=3,
            strides=(1, 2, 2),
            dilations=(1, 1, 1),
            out_indices=(2,),
            zero_init_residual=False,
        )
        super().__init__(depth, **{**settings, **kwargs})

    def make_res_layer(self, **kwargs) -> nn.Module:
        stage = super().make_res_layer(**kwargs)
        if stage[0].downsample is not None:
            stage[0].downsample = PadShortcut(kwargs['out_channels'] - kwargs['in_channels'], kwargs['stride'])
        return stage


@MODELS.register_module()
class ResNeXt_CIFAR(ResNet_CIFAR, ResNeXt):
    """ResNeXt with the stem of ``ResNet_CIFAR``: a 3x3 conv of stride 1 and no pooling."""


class SplitConv2d(nn.Module):
    """Two 3x3 convs on the same input whose outputs are stacked: filters to keep, and filters to share.

    Args:
        in_channels (int): Number of input channels.
        unique (int): Number of output channels of the conv ``unique``.
        shared (int): Number of output channels of the conv ``shared``.
        unique_groups (int): Groups of the conv ``unique``.
        shared_groups (int): Groups of the conv ``shared``.
        dilation (int): Dilation of both.
    """

    def __init__(
        self, in_channels: int, unique: int, shared: int, unique_groups: int, shared_groups: int, dilation: int
    ):
        super().__init__()
        same = dict(kernel_size=3, padding=dilation, dilation=dilation, bias=False)
        self.unique = nn.Conv2d(in_channels, unique, groups=unique_groups, **same)
        self.shared = nn.Conv2d(in_channels, shared, groups=shared_groups, **same)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.unique(x), self.shared(x)], 1)


@MODELS.register_module()
class BasisResNeXt_CIFAR(ResNeXt_CIFAR):
    """A ResNeXt whose 3x3 convs are bases of few filters, followed by batch norm, ReLU and the last 1x1 conv of the
    block, as in the paper's ResNeXt50 (models/cifar100/resnext.py of https://github.com/ssregibility/Net_RL2).
    The first block of a stage is that of ResNeXt.

    Args:
        depth (int): Network depth, from {50, 101, 152}.
        shared_rank (int): Number of filters in ``conv2.shared`` of a block of the first stage. It grows with the
            width; its number of groups, ``shared_rank / width_per_group``, does not.
        unique_rank (int): Number of filters in ``conv2.unique`` of a block of the first stage. It grows with the
            width, and so does its number of groups, ``unique_rank / width_per_group``.
        **kwargs: Further arguments of ``ResNeXt``.

    Raises:
        SharingError: If a rank is not a multiple of ``width_per_group``.
    """

    def __init__(self, depth: int, shared_rank: int, unique_rank: int, **kwargs):
        width = kwargs.get('width_per_group', 4)
        if min(shared_rank, unique_rank) < 1 or shared_rank % width or unique_rank % width:
            raise SharingError(
                f'shared_rank={shared_rank} and unique_rank={unique_rank} make groups of {width} '
                f'filters: give multiples of {width}.'
            )
        self.shared_rank = shared_rank
        self.unique_rank = unique_rank
        super().__init__(depth, **kwargs)

    def make_res_layer(self, **kwargs) -> nn.Module:
        stage = super().make_res_layer(**kwargs)
        for block in list(stage)[1:]:
            factor = block.mid_channels // (self.groups * self.width_per_group)
            unique, shared = factor * self.unique_rank, factor * self.shared_rank
            block.conv2 = SplitConv2d(
                block.mid_channels,
                unique,
                shared,
                unique // self.width_per_group,
                self.shared_rank // self.width_per_group,
                block.dilation,
            )
            setattr(block, block.norm2_name, build_norm_layer(self.norm_cfg, unique + shared)[1])
            block.conv3 = build_conv_layer(self.conv_cfg, unique + shared, block.out_channels, 1, bias=False)
        return stage


@MODELS.register_module()
class DenseNet_CIFAR(DenseNet):
    """DenseNet with a 3x3 conv of stride 1 as its stem.

    Args:
        *args, **kwargs: The arguments of ``DenseNet``.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.stem = nn.Conv2d(self.stem[0].in_channels, self.init_channels, 3, padding=1, bias=False)
        self._freeze_stages()


class ShortcutBlock(nn.Module):
    """A block with a parallel shortcut of a 1x1 conv and a batch norm.

    Args:
        block (nn.Module): The block.
        in_channels (int): Number of its input channels.
        out_channels (int): Number of its output channels.
        **kwargs: Further arguments of the ``ConvModule``.
    """

    def __init__(self, block: nn.Module, in_channels: int, out_channels: int, **kwargs):
        super().__init__()
        self.block = block
        self.shortcut = ConvModule(in_channels, out_channels, 1, act_cfg=None, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x) + self.shortcut(x)


@MODELS.register_module()
class MobileNetV2_CIFAR(MobileNetV2):
    """MobileNetV2 for 32x32 images, as in models/cifar100/mobilenetv2.py of
    https://github.com/ssregibility/Net_RL2: three strides of 2, a padded 1x1 conv as the stem, and shortcuts with a
    1x1 conv in blocks that change only the width.

    Args:
        **kwargs: The arguments of ``MobileNetV2``.
    """

    arch_settings = [
        [1, 16, 1, 1],
        [6, 24, 2, 2],
        [6, 32, 3, 2],
        [6, 64, 4, 2],
        [6, 96, 3, 1],
        [6, 160, 3, 1],
        [6, 320, 1, 1],
    ]

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv1 = ConvModule(
            3,
            self.conv1.out_channels,
            1,
            padding=1,
            conv_cfg=self.conv_cfg,
            norm_cfg=self.norm_cfg,
            act_cfg=self.act_cfg,
        )

    def make_layer(self, out_channels: int, num_blocks: int, stride: int, expand_ratio: int) -> nn.Module:
        in_channels = self.in_channels
        stage = super().make_layer(out_channels, num_blocks, stride, expand_ratio)
        if stride == 1 and in_channels != out_channels:
            stage[0] = ShortcutBlock(
                stage[0], in_channels, out_channels, conv_cfg=self.conv_cfg, norm_cfg=self.norm_cfg
            )
        return stage


globals().update(
    make_twins([ResNetA_CIFAR, ResNeXt_CIFAR, BasisResNeXt_CIFAR, DenseNet_CIFAR, MobileNetV2_CIFAR], MODELS, __name__)
)
