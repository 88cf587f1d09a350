"""Shortest paths between two cells of a grid with obstacles: a generated data set, and its score."""

from collections.abc import Sequence

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.registry import DATASETS, METRICS
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from ..sharing import SharingError

Range = tuple[int, int]
ATTEMPTS = 1000


def grid_graph(free: np.ndarray) -> csr_array:
    """The graph of a grid's free cells, each connected to its neighbours above, below, left and right.

    Args:
        free (np.ndarray): Which cells have no obstacle, (H, W), bool.

    Returns:
        csr_array: The edges, (H W, H W), each in one direction.
    """
    cells = np.arange(free.size).reshape(free.shape)
    below, beside = free[:-1] & free[1:], free[:, :-1] & free[:, 1:]
    sources = np.concatenate([cells[:-1][below], cells[:, :-1][beside]])
    targets = np.concatenate([cells[1:][below], cells[:, 1:][beside]])
    return csr_array((np.ones(len(sources)), (sources, targets)), shape=(free.size, free.size))


@DATASETS.register_module()
class ShortestPaths(BaseDataset):
    """Grids with obstacles, two free cells in each, and the cells on the shortest paths between the two.

    Each step of a path goes from a free cell to one of its four neighbours; the distance is the number of steps. The
    distance of a sample is drawn uniformly from its range, then grids and starts are drawn until some cells are at
    that distance; the end is drawn from these. The target is every cell on any shortest path, including both ends.

    A sample depends only on the seed and its index. It is made when it is read, so the data set can be as long as the
    training, which then never sees a grid twice. Read in order, growing ranges are a curriculum.

    Args:
        num_samples (int): Number of samples.
        distances (Sequence[tuple[int, int]]): Ranges of distances, lowest and highest. Each range is used for an equal
            part of the data set, in this order.
        seed (int): Seed of all samples.
        size (int): Height and width of a grid. Defaults to 32.
        density (float): The probability of an obstacle. Defaults to 0.3.

    Raises:
        SharingError: If there is no sample or no range, if a range or the density is invalid, or if no grid with a
            path of some distance is found.
    """

    def __init__(self, num_samples: int, distances: Sequence[Range], seed: int, size: int = 32, density: float = 0.3):
        if num_samples < 1 or not distances or not 0 <= density < 1:
            raise SharingError(
                f'No data set has {num_samples} samples in {len(distances)} ranges of distances, and '
                f'obstacles of density {density:g}: give one sample and one range or more, and a '
                'density from 0 to below 1.'
            )
        for low, high in distances:
            if not 0 < low <= high:
                raise SharingError(
                    f'({low}, {high}) is not a range of distances: give the lowest, 1 or more, and the highest.'
                )
        self.num_samples = num_samples
        self.distances = distances
        self.seed = seed
        self.size = size
        self.density = density
        super().__init__(serialize_data=False)

    def load_data_list(self) -> list[dict]:
        ranges = np.array(self.distances)[np.arange(self.num_samples) * len(self.distances) // self.num_samples]
        rng = np.random.default_rng(self.seed)
        return [dict(distance=distance) for distance in rng.integers(*ranges.T, endpoint=True).tolist()]

    def get_data_info(self, idx: int) -> dict:
        """Make a sample.

        Returns:
            dict: ``inputs``, the free cells, the start and the end as float maps, (3, H, W); ``target``, the cells on
            shortest paths, (H, W), bool; ``distance``, the number of steps from start to end.
        """
        distance = super().get_data_info(idx)['distance']
        rng = np.random.default_rng((self.seed, idx % self.num_samples))
        for _ in range(ATTEMPTS):
            free, start = rng.random((self.size, self.size)) >= self.density, rng.integers(self.size**2)
            free.flat[start] = True
            graph = grid_graph(free)
            from_start = dijkstra(graph, directed=False, unweighted=True, indices=start)  # (H W, )
            ends = np.flatnonzero(from_start == distance)
            if len(ends):
                break
        else:
            raise SharingError(
                f'{ATTEMPTS} grids of {self.size}x{self.size} cells and density {self.density:g} have '
                f'no path of {distance} steps: give shorter distances.'
            )
        end = rng.choice(ends)
        from_end = dijkstra(graph, directed=False, unweighted=True, indices=end)  # (H W, )
        inputs = np.zeros((3, free.size), np.float32)
        inputs[0], inputs[1, start], inputs[2, end] = free.ravel(), 1, 1
        return dict(
            inputs=torch.from_numpy(inputs).view(3, self.size, self.size),
            target=torch.from_numpy(from_start + from_end == distance).view(self.size, self.size),
            distance=distance,
        )


@METRICS.register_module()
class PathScore(BaseMetric):
    """How well the cells on shortest paths are found, by distance: ``exact``, the share of grids without a wrong cell,
    and ``f1``, the mean F1 score of a grid's cells. Each has a value per range, such as ``paths/exact/5-8``.

    Args:
        distances (Sequence[tuple[int, int]]): Ranges of distances, lowest and highest.
    """

    default_prefix = 'paths'

    def __init__(self, distances: Sequence[Range]):
        super().__init__()
        self.distances = distances

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        for sample in data_samples:
            path, target = sample['path'], sample['target']
            f1 = 2 * (path & target).sum() / (path.sum() + target.sum())
            self.results.append((sample['distance'].item(), torch.equal(path, target), f1.item()))

    def compute_metrics(self, results: list[tuple]) -> dict[str, float]:
        scores = {}
        for low, high in self.distances:
            found = [scored for distance, *scored in results if low <= distance <= high]
            if found:
                exact, f1 = np.mean(found, axis=0)
                scores.update({f'exact/{low}-{high}': exact.item(), f'f1/{low}-{high}': f1.item()})
        return scores
