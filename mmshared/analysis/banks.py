"""Pictures of what banks hold."""
from pathlib import Path
from typing import Dict

import matplotlib
from torch import Tensor

from ..hooks import basis_health

matplotlib.use('Agg')
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.colors import LogNorm  # noqa: E402


def draw_gram_matrices(spaces: Dict[str, Tensor], out: Path) -> None:
    """Draw the absolute values of Gram matrices side by side: for orthonormal filters, the identity.

    Args:
        spaces (dict[str, Tensor]): N filters by the name of their space, (N, ...) each.
        out (Path): The picture to write.
    """
    columns = min(4, len(spaces))
    rows = -(-len(spaces) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.4 * columns + 0.8, 3.6 * rows), squeeze=False,
                                layout='constrained')
    for axis in axes.flat[len(spaces):]:
        axis.axis('off')
    for axis, (name, filters) in zip(axes.flat, spaces.items()):
        b = filters.flatten(1).float().cpu()
        image = axis.imshow((b @ b.T).abs(), norm=LogNorm(1e-3, 1, clip=True), interpolation='nearest')
        health = basis_health(filters)
        axis.set_title(f'{name}\n{len(b)} filters, cosines up to {health["cosine"]:.2g}', fontsize=9)
    figure.colorbar(image, ax=axes, label='absolute inner product of two filters', shrink=0.8)
    figure.savefig(out, dpi=110)
    plt.close(figure)
