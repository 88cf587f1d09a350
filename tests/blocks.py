"""A network with a stage for each bank, of convs and of linears; towers that have convs in common."""

import torch
from mmcv.cnn import ConvModule
from torch import Tensor, nn

from helpers import BANKS, evaluating, randomise_norms
from mmshared import Bank, SharedLayer, share_layers

WIDTH, DEPTH, SIZE = 16, 2, 64  # channels, layers of a group, image


class TurnedLayer(SharedLayer):
    """A layer of a bank that is nobody's: its own mixture of the filters and their mirror images."""

    def __init__(self, layer, bank, norm=None):
        super().__init__(layer, bank, norm)
        self.mix = nn.Parameter(torch.rand(self.shape[0]))

    def dense(self):
        mix = torch.tanh(self.mix).view(-1, *[1] * (len(self.shape) - 1))
        return torch.lerp(self.bank(), self.bank().flip(-1), mix), self.bias


class TurnedFilters(Bank):
    layer_class = TurnedLayer

    def __init__(self, layers):
        super().__init__()
        self.filters = nn.Parameter(layers[0].weight.detach().clone())

    def generate(self):
        return self.filters


CONVS = {
    **BANKS,
    'templates': dict(type='TemplateBank', num_templates=1),
    'looped': dict(type='LoopedTemplates', kernels=[0, 0], num_templates=1),
    'of-a-third-party': dict(type=TurnedFilters),
}
LINEARS = {
    f'linear-{name}': CONVS[name] for name in ('tied', 'templates', 'relaxed', 'repeated-swish', 'of-a-third-party')
}
LINEARS['linear-basis'] = dict(type='FilterBasis', shared_rank=16, unique_rank=4)


class Blocks(nn.Module):
    """For each bank a stage of its own: of convs with batch norms on the image, or of linears on its rows."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 1)
        self.convs = nn.ModuleDict({name: nn.Sequential(*map(self.conv, range(DEPTH))) for name in CONVS})
        self.linears = nn.ModuleDict({name: nn.Sequential(*map(self.linear, range(DEPTH))) for name in LINEARS})

    def conv(self, index: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU())

    def linear(self, index: int) -> nn.Module:
        return nn.Sequential(nn.Linear(SIZE, SIZE), nn.ReLU())

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        return [stage(x) for stage in (*self.convs.values(), *self.linears.values())]


def shared_blocks() -> Blocks:
    """Blocks that share, with random norms, in eval mode."""
    torch.manual_seed(0)
    shared = Blocks()
    for kind, stages in (('convs', CONVS), ('linears', LINEARS)):
        for name, bank in stages.items():
            share_layers(shared, ['0'], bank, stages=f'{kind}.{name}', own_blocks=0)
    for each in shared.modules():
        if type(each).__name__ == 'RelaxedLayer':
            nn.init.normal_(each.up)
    return evaluating(randomise_norms(shared))


def conv_modules(depth=4, bias=False):
    return nn.Sequential(
        *[ConvModule(16, 16, 3, padding=1, bias=bias, norm_cfg=dict(type='BN')) for _ in range(depth)]
    )


class Towers(nn.Module):
    """Towers for three levels, whose convs are the same and whose norms are their own, as in RTMDet's head."""

    def __init__(self):
        super().__init__()
        self.towers = nn.ModuleList(conv_modules(3) for _ in range(3))
        for tower in self.towers[1:]:
            for block, first in zip(tower, self.towers[0]):
                block.conv = first.conv

    def forward(self, x):
        return [tower(x) for tower in self.towers]
