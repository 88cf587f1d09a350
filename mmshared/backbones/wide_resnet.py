"""Pre-activation wide ResNets for 32x32 images, which mmpretrain lacks (https://arxiv.org/abs/1605.07146)."""

import torch.utils.checkpoint as cp
from mmcv.cnn import build_conv_layer, build_norm_layer
from mmengine.model import BaseModule
from mmpretrain.models.backbones import ResNet_CIFAR
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from .twins import make_twins


class PreActBlock(BaseModule):
    """Batch norm, ReLU and a 3x3 conv, twice, and a shortcut, which is a 1x1 conv if the shape changes.

    Args:
        in_channels (int): Number of input channels.
        out_channels (int): Number of output channels.
        stride (int): Stride of the first conv.
        dilation (int): Dilation of the first conv.
        downsample (nn.Sequential, optional): A conv and a norm for the shortcut. Only the conv is used, on the output
            of the first batch norm and ReLU.
        with_cp (bool): Whether to recompute the block in the backward pass.
        conv_cfg (dict, optional): Config of the convs.
        norm_cfg (dict): Config of the norms.
        **kwargs: Arguments that the block does not use.
    """

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        dilation: int = 1,
        downsample: nn.Sequential | None = None,
        with_cp: bool = False,
        conv_cfg: dict | None = None,
        norm_cfg: dict = dict(type='BN'),
        **kwargs,
    ):
        super().__init__()
        self.out_channels = out_channels
        self.with_cp = with_cp
        self.norm1 = build_norm_layer(norm_cfg, in_channels)[1]
        self.conv1 = build_conv_layer(
            conv_cfg, in_channels, out_channels, 3, stride=stride, padding=dilation, dilation=dilation, bias=False
        )
        self.norm2 = build_norm_layer(norm_cfg, out_channels)[1]
        self.conv2 = build_conv_layer(conv_cfg, out_channels, out_channels, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None if downsample is None else downsample[0]

    def _forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.norm1(x))
        shortcut = x if self.downsample is None else self.downsample(out)
        return self.conv2(self.relu(self.norm2(self.conv1(out)))) + shortcut

    def forward(self, x: Tensor) -> Tensor:
        if self.with_cp and x.requires_grad:
            return cp.checkpoint(self._forward, x, use_reentrant=True)
        return self._forward(x)


@MODELS.register_module()
class WideResNet_CIFAR(ResNet_CIFAR):
    """The wide ResNet of 6n+4 layers: three stages of n blocks with 16, 32 and 64 times ``widen_factor`` channels.

    Args:
        depth (int): 6n+4, from {10, 16, 22, 28, 34, 40}.
        widen_factor (int): How much wider it is than a ResNet.
        **kwargs: Further arguments of mmpretrain's ``ResNet``.
    """

    arch_settings = {6 * n + 4: (PreActBlock, (n,) * 3) for n in range(1, 7)}

    def __init__(self, depth: int, widen_factor: int, **kwargs):
        settings = dict(
            stem_channels=16,
            base_channels=16 * widen_factor,
            num_stages=3,
            strides=(1, 2, 2),
            dilations=(1, 1, 1),
            out_indices=(2,),
        )
        super().__init__(depth, **{**settings, **kwargs})
        self.norm = build_norm_layer(self.norm_cfg, self.feat_dim)[1]

    def _make_stem_layer(self, in_channels: int, stem_channels: int) -> None:
        super()._make_stem_layer(in_channels, stem_channels)
        # The blocks begin with a norm and a ReLU.
        setattr(self, self.norm1_name, nn.Identity())
        self.relu = nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        maps = super().forward(x)
        if self.num_stages - 1 in self.out_indices:
            maps = (*maps[:-1], self.norm(maps[-1]).relu())
        return maps


globals().update(make_twins([WideResNet_CIFAR], MODELS, __name__))
