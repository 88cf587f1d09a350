"""Rotation-equivariant networks, the baseline that RepeatNet compares itself to."""

import math

from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from torch import Tensor

from ..compat.escnn import import_escnn
from ..sharing import SharingError


@MODELS.register_module()
class SteerableCNN(BaseModule):
    """The equivariant network for rotated MNIST: six convs whose features rotate and shift along with the image,
    then the mean over space and the maximum over rotations (https://arxiv.org/abs/1911.08251, with the sizes of
    models/group_equivariant.py of https://github.com/transmuteAI/RepeatNet). Needs escnn.

    Its output does not change when the image is rotated by a multiple of 90 degrees, if each max pooling divides its
    input evenly, as at 28x28. At 29x29, where the papers train it, the first pooling leaves out the last row and
    column. For the other angles of its group the output changes a little, because pixels lie on a grid.

    Args:
        rotations (int): Number of rotations in the group: 4, 8 or 16 in the paper. More rotations mean fewer fields,
            so that the number of parameters stays about the same.
    """

    def __init__(self, rotations: int):
        super().__init__()
        if not isinstance(rotations, int) or rotations < 1:
            raise SharingError(f'rotations={rotations!r} is not a number of rotations: give 1 or more.')
        escnn = import_escnn()
        enn = escnn.nn
        space = escnn.gspaces.rot2dOnR2(rotations)
        self.in_type = before = enn.FieldType(space, [space.trivial_repr])
        layers = []
        for index, (fields, kernel_size, padding) in enumerate(
            [(32, 7, 1), (48, 5, 2), (64, 5, 2), (64, 5, 2), (96, 5, 2), (128, 5, 0)]
        ):
            # A field has a channel for each rotation.
            after = enn.FieldType(space, [space.regular_repr] * round(fields / math.sqrt(rotations)))
            # The rings of the filters are narrower at the rim.
            sigma = [0.6] * (kernel_size // 2) + [0.4]
            layers += [
                enn.R2Conv(before, after, kernel_size, padding=padding, bias=False, sigma=sigma),
                enn.InnerBatchNorm(after),
                enn.ELU(after, inplace=True),
            ]
            if index in (1, 3):
                layers.append(enn.PointwiseMaxPool2D(after, 2, stride=2))
            before = after
        self.layers = enn.SequentialModule(*layers, enn.PointwiseAdaptiveAvgPool2D(after, 1), enn.GroupPooling(after))
        self.convs = [layer for layer in layers if isinstance(layer, enn.R2Conv)]
        self.register_load_state_dict_post_hook(self._forget_filters)
        self.train()  # escnn's convs start with zero filters in eval mode

    def forward(self, x: Tensor) -> tuple[Tensor]:
        from escnn.nn import GeometricTensor

        return (self.layers(GeometricTensor(x, self.in_type)).tensor.flatten(1),)  # (N, fields)

    def train(self, mode: bool = True) -> 'SteerableCNN':
        super().train(mode)
        if not mode:
            for conv in self.convs:
                # The filters that eval mode computes from the weights must not be in a checkpoint.
                conv.register_buffer('filter', conv.filter.detach(), persistent=False)
        return self

    @staticmethod
    def _forget_filters(network: 'SteerableCNN', _) -> None:
        """Make eval mode compute its filters from the loaded weights."""
        if not network.training:
            network.train().eval()
