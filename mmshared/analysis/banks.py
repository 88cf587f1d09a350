"""Pictures of what banks hold."""
from pathlib import Path
from typing import Dict, List, Optional

import matplotlib
from torch import Tensor

from ..hooks import basis_health

matplotlib.use('Agg')
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.colors import LogNorm, Normalize  # noqa: E402


def draw_gram_matrices(spaces: Dict[str, Tensor], out: Path) -> None:
    """Draw the absolute values of Gram matrices side by side: for orthonormal filters, the identity.

    Args:
        spaces (dict[str, Tensor]): N filters by the name of their space, (N, ...) each.
        out (Path): The picture to write.
    """
    matrices = {}
    for name, filters in spaces.items():
        b = filters.flatten(1).float().cpu()
        cosine = basis_health(filters)['cosine']
        matrices[f'{name}\n{len(b)} filters, cosines up to {cosine:.2g}'] = (b @ b.T).abs()
    _draw_heat_maps(matrices, LogNorm(1e-3, 1, clip=True), 'absolute inner product of two filters', out)


def draw_similarities(similarities: Dict[str, Tensor], layers: Dict[str, List[str]], out: Path) -> None:
    """Draw layer similarity matrices side by side.

    Args:
        similarities (dict[str, Tensor]): The matrix of each bank, (convs, convs), by its name.
        layers (dict[str, list[str]]): The names of each bank's convs.
        out (Path): The picture to write.
    """
    _draw_heat_maps(similarities, Normalize(0, 1), 'absolute cosine of the coefficients', out, layers)


def _draw_heat_maps(matrices: Dict[str, Tensor], norm: Normalize, label: str, out: Path,
                    ticks: Optional[Dict[str, List[str]]] = None) -> None:
    """Draw matrices side by side under their titles, in one scale of colours; rows and columns named where wanted."""
    columns = min(4, len(matrices))
    rows = -(-len(matrices) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.4 * columns + 0.8, 3.6 * rows), squeeze=False,
                                layout='constrained')
    for axis in axes.flat[len(matrices):]:
        axis.axis('off')
    for axis, (title, matrix) in zip(axes.flat, matrices.items()):
        image = axis.imshow(matrix, norm=norm, interpolation='nearest')
        axis.set_title(title, fontsize=9)
        if ticks:
            places = range(len(ticks[title]))
            axis.set_xticks(places, ticks[title], fontsize=7, rotation=90)
            axis.set_yticks(places, ticks[title], fontsize=7)
    figure.colorbar(image, ax=axes, label=label, shrink=0.8)
    figure.savefig(out, dpi=110)
    plt.close(figure)
