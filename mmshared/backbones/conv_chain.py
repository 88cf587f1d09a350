"""Networks that are a single chain of convs: VGG for 32x32 images and the CNN for rotated MNIST, plain and shared."""

from collections.abc import Sequence

from mmpretrain.models.backbones.base_backbone import BaseBackbone
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ..sharing import SharingError
from .twins import make_twins


class ConvChain(BaseBackbone):
    """A sequence of convs, each with a batch norm and an activation. Share them by their full names:
    ``layers=['.*conv2_1']``.

    Args:
        convs (dict[str, nn.Conv2d]): The convs by their names, which begin with ``conv``.
        pooled (Sequence[str]): Names of the convs whose activation is followed by a 2x2 max pooling.
        activation (type): The class of the activations.
        init_cfg (dict, optional): Config of the initialisation. Defaults to PyTorch's own.
    """

    def __init__(
        self, convs: dict[str, nn.Conv2d], pooled: Sequence[str], activation: type, init_cfg: dict | None = None
    ):
        super().__init__(init_cfg)
        block = nn.Sequential()
        for name, conv in convs.items():
            block.add_module(name, conv)
            block.add_module(name.replace('conv', 'bn'), nn.BatchNorm2d(conv.out_channels))
            block.add_module(name.replace('conv', 'act'), activation(inplace=True))
            if name in pooled:
                block.add_module(name.replace('conv', 'pool'), nn.MaxPool2d(2))
        self.features = nn.Sequential(block)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.features(x),)


@MODELS.register_module()
class VGG_CIFAR(ConvChain):
    """VGG for CIFAR as in models/vgg_rep.py of https://github.com/transmuteAI/RepeatNet: stages of two 3x3 convs with
    64, 128, 256, 512 and 512 channels, each followed by a max pooling. A head with a single linear layer completes it.

    Args:
        depth (int): Number of convs plus the linear layer: it has the first ``depth - 1`` convs. From 4 to 11.
        init_cfg (dict, optional): Config of the initialisation.
    """

    def __init__(self, depth: int = 11, init_cfg: dict | None = None):
        if not 4 <= depth <= 11:
            raise SharingError(f'VGG_CIFAR has a depth from 4 to 11, not {depth}.')
        names = [f'conv{stage}_{i}' for stage in range(1, 6) for i in (1, 2)][: depth - 1]
        widths = [3] + [64 * 2 ** min(i // 2, 3) for i in range(depth - 1)]
        convs = {name: nn.Conv2d(*channels, 3, padding=1) for name, *channels in zip(names, widths, widths[1:])}
        super().__init__(convs, {*names[1::2], names[-1]}, nn.ReLU, init_cfg)


@MODELS.register_module()
class RotMNISTCNN(ConvChain):
    """The CNN for rotated MNIST in models/group_equivariant.py of https://github.com/transmuteAI/RepeatNet: a 7x7 conv
    and five 5x5 convs, with ELUs.

    Args:
        widen_factor (float): How much wider it is than the baseline of 22, 33, 45, 45, 67 and 90 channels; channels
            are rounded down, as in that code. Defaults to 1.
        init_cfg (dict, optional): Config of the initialisation.
    """

    def __init__(self, widen_factor: float = 1.0, init_cfg: dict | None = None):
        widths = [1] + [int(width / 2**0.5 * widen_factor) for width in (32, 48, 64, 64, 96, 128)]
        if min(widths) < 1:
            raise SharingError(f'widen_factor={widen_factor} leaves convs without channels: give a larger one.')
        geometry = [dict(kernel_size=7, padding=1), *[dict(kernel_size=5, padding=2)] * 4, dict(kernel_size=5)]
        convs = {
            f'conv{i}': nn.Conv2d(*channels, bias=False, **kwargs)
            for i, (*channels, kwargs) in enumerate(zip(widths, widths[1:], geometry), 1)
        }
        super().__init__(convs, ('conv2', 'conv4'), nn.ELU, init_cfg)


globals().update(make_twins([VGG_CIFAR, RotMNISTCNN], MODELS, __name__))
