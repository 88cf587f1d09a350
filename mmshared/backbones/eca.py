"""MobileNetV2 with channel attention."""

from mmpretrain.models.backbones import MobileNetV2
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from .twins import make_twins


class ECALayer(nn.Module):
    """Efficient channel attention (https://arxiv.org/abs/1910.03151): each channel is weighted by the sigmoid of a 1D
    conv over the channels' means.

    Args:
        kernel_size (int): Number of channels that a weight depends on.
    """

    def __init__(self, kernel_size: int):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.conv(x.mean((2, 3)).unsqueeze(1)).sigmoid()  # (N, 1, C)
        return x * weights.transpose(1, 2).unsqueeze(-1)


@MODELS.register_module()
class ECAMobileNetV2(MobileNetV2):
    """MobileNetV2 with channel attention after the projections of the blocks that can share: all but the first block
    of stages with three or more. As in models/ilsvrc/mobilenetv2.py of https://github.com/ssregibility/Net_RL2.

    Args:
        **kwargs: The arguments of ``MobileNetV2``.
    """

    def make_layer(self, out_channels: int, num_blocks: int, stride: int, expand_ratio: int) -> nn.Module:
        stage = super().make_layer(out_channels, num_blocks, stride, expand_ratio)
        for block in stage[1:] if num_blocks > 2 else ():
            block.conv.append(ECALayer(1 if out_channels < 96 else 3))
        return stage


globals().update(make_twins([ECAMobileNetV2], MODELS, __name__))
