"""The algorithmic task: grids whose targets are right and always the same, a curriculum, scores by distance."""

import json
import shutil

import networkx as nx
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import METRICS
from mmengine.runner import Runner
from PIL import Image
from torch.utils.data import DataLoader

from helpers import ROOT, call
from mmshared import SharingError, ShortestPaths, banks
from mmshared.analysis.complexity import parameter_count
from mmshared.engine.build import build_model, build_plain

pytestmark = pytest.mark.slow  # trainings

CONFIGS = {
    name: ROOT / f'projects/soft_sharing/configs/{name}_shortest-paths.py'
    for name in ('flat-resnet33', 'shared-flat-resnet33-t4', 'shared-flat-resnet33-recurrent')
}


def tiny(name, tmp_path, **changes):
    """A config of the comparison with a small network, few samples and one phase for each iteration."""
    cfg = Config.fromfile(CONFIGS[name])
    data = dict(num_samples=10, size=8)
    cfg.merge_from_dict(
        dict(
            work_dir=str(tmp_path),
            model=dict(backbone=dict(depth=7, width=4)),
            train_dataloader=dict(batch_size=2, dataset=dict(data, distances=[(d, d) for d in range(1, 6)])),
            val_dataloader=dict(dataset=dict(data, distances=[(1, 2), (3, 4)])),
            val_evaluator=dict(distances=[(1, 2), (3, 4)]),
            train_cfg=dict(max_iters=2, val_interval=2),
            default_hooks=dict(checkpoint=dict(interval=1)),
            experiment_name=f'{tmp_path.name}-{len(list(tmp_path.iterdir()))}',
            **changes,
        )
    )
    return cfg


def test_the_target_is_the_union_of_all_shortest_paths():
    dataset = ShortestPaths(40, [(1, 9)], seed=3, size=6)
    several = 0
    for sample in dataset:
        (free, start, end), target = sample['inputs'].numpy(), sample['target'].numpy()
        graph = nx.grid_2d_graph(6, 6)
        graph.remove_nodes_from(map(tuple, np.argwhere(free == 0).tolist()))
        ends = [tuple(np.argwhere(cell)[0].tolist()) for cell in (start, end)]
        assert start.sum() == end.sum() == 1
        paths = list(nx.all_shortest_paths(graph, *ends))
        assert {len(path) - 1 for path in paths} == {sample['distance']}
        assert {cell for path in paths for cell in path} == set(map(tuple, np.argwhere(target).tolist()))
        several += len(paths) > 1
    assert several > 5


def test_the_end_is_any_of_the_cells_at_its_distance():
    places = []
    for sample in ShortestPaths(200, [(4, 4)], seed=0, size=8):
        free, start, end = sample['inputs'].numpy()
        graph = nx.grid_2d_graph(8, 8)
        graph.remove_nodes_from(map(tuple, np.argwhere(free == 0).tolist()))
        (origin,), (target,) = (map(tuple, np.argwhere(cell).tolist()) for cell in (start, end))
        steps = nx.single_source_shortest_path_length(graph, origin)
        ends = sorted(cell for cell, distance in steps.items() if distance == 4)
        if len(ends) > 1:
            places.append(ends.index(target) / (len(ends) - 1))
    assert len(places) > 100
    assert np.mean(places) == pytest.approx(0.5, abs=0.1)
    assert {0, 1} < set(places)


def test_each_part_of_the_data_has_its_range_of_distances():
    distances = np.array([sample['distance'] for sample in ShortestPaths(300, [(1, 3), (4, 9), (10, 40)], seed=0)])
    for part, (low, high) in zip(distances.reshape(3, 100), [(1, 3), (4, 9), (10, 40)]):
        assert low <= part.min() and part.max() <= high
        assert abs(part.mean() - (low + high) / 2) < (high - low) / 8


def test_the_obstacles_have_their_density():
    for density in (0.1, 0.3):
        free = torch.stack([sample['inputs'][0] for sample in ShortestPaths(50, [(1, 4)], seed=0, density=density)])
        assert free.mean().item() == pytest.approx(1 - density, abs=0.01)


def test_a_sample_depends_on_seed_and_index_alone():
    def samples(seed, workers=0):
        batches = list(DataLoader(ShortestPaths(12, [(6, 6)], seed, size=8), 4, num_workers=workers))
        return {key: torch.cat([batch[key] for batch in batches]) for key in ('inputs', 'target')}

    data, here, other = ShortestPaths(12, [(6, 6)], seed=5, size=8), samples(5), samples(6)
    backwards = [data[i] for i in reversed(range(12))][::-1]
    for key, value in samples(5, workers=2).items():
        assert torch.equal(value, here[key]) and torch.equal(value, torch.stack([one[key] for one in backwards]))
        assert not torch.equal(value, other[key])
    assert len({sample['inputs'].numpy().tobytes() for sample in data}) == 12


def test_what_cannot_be_is_said():
    with pytest.raises(SharingError, match=r'\(4, 2\) is not a range'):
        ShortestPaths(1, [(4, 2)], seed=0)
    with pytest.raises(SharingError, match='no path of 12 steps: give shorter'):
        ShortestPaths(1, [(12, 12)], seed=0, size=2)[0]
    for changes in (dict(num_samples=0), dict(distances=[]), dict(density=1.0)):
        with pytest.raises(SharingError, match='give one sample and one range or more'):
            ShortestPaths(**dict(dict(num_samples=1, distances=[(1, 2)], seed=0), **changes))


def test_the_last_sample_is_that_of_index_minus_one():
    data = ShortestPaths(3, [(1, 4)], seed=0, size=8)
    assert all(torch.equal(data[-1][key], data[2][key]) for key in ('inputs', 'target'))


def test_the_score_is_that_of_made_predictions_and_leaves_empty_ranges_out(mmpretrain):
    target = torch.zeros(4, 4, dtype=bool)
    target[0] = True
    half, none = target.clone(), torch.zeros_like(target)
    half[0, :2] = False
    wrong = target.clone()
    wrong[3] = True
    metric = METRICS.build(dict(type='PathScore', distances=[(1, 4), (5, 8), (9, 9)]))
    for distance, path in [(1, target), (4, half), (5, wrong), (8, none), (8, target), (8, target)]:
        metric.process({}, [dict(path=path, target=target, distance=torch.tensor(distance))])
    assert metric.evaluate(6) == pytest.approx(
        {
            'paths/exact/1-4': 1 / 2,
            'paths/f1/1-4': (1 + 2 / 3) / 2,
            'paths/exact/5-8': 2 / 4,
            'paths/f1/5-8': (2 / 3 + 0 + 1 + 1) / 4,
        }
    )


def test_the_three_networks_differ_in_what_they_share_alone():
    models = {name: build_model(Config.fromfile(path)) for name, path in CONFIGS.items()}
    plain, templates, recurrent = models.values()
    assert [len({bank.stage for bank in banks(model)}) for model in models.values()] == [0, 1, 1]
    for model, name in ((templates, 'shared-flat-resnet33-t4'), (recurrent, 'shared-flat-resnet33-recurrent')):
        convs = [conv for bank in banks(model) for conv in bank.layers]
        assert len(convs) == 30  # all but those of the stem and the first block
        twin = build_plain(Config.fromfile(CONFIGS[name]))
        assert {key: value.shape for key, value in twin.state_dict().items()} == {
            key: value.shape for key, value in plain.state_dict().items()
        }
    kernel = 16 * 16 * 9
    assert parameter_count(plain) - parameter_count(templates) == 30 * kernel - 4 * kernel - 30 * 4
    assert parameter_count(plain) - parameter_count(recurrent) == 30 * kernel - 2 * kernel


def test_a_network_sees_as_many_cells_far_as_it_has_3x3_convs():
    model = build_model(Config.fromfile(CONFIGS['flat-resnet33'])).double().eval()
    inputs = torch.randn(1, 3, 1, 81, dtype=torch.double, requires_grad=True)
    model(inputs)[0, 0, 40].backward()
    seen = inputs.grad.abs().sum((0, 1, 2)).nonzero()
    assert (seen.min(), seen.max()) == (40 - 33, 40 + 33)


@pytest.mark.parametrize('name', CONFIGS)
def test_a_network_trains_and_is_scored(name, tmp_path):
    runner = Runner.from_cfg(tiny(name, tmp_path))
    before = {key: value.clone() for key, value in runner.model.state_dict().items()}
    runner.train()
    after = runner.model.state_dict()
    for key in ('backbone.conv1.weight', 'head.weight', *(key for key in before if 'bank' in key)):
        assert not torch.equal(before[key], after[key])
    scores = {key for key in runner.message_hub.log_scalars if key.startswith('val/paths/')}
    assert scores == {f'val/paths/{key}' for key in ('exact/1-2', 'f1/1-2', 'exact/3-4', 'f1/3-4')}
    model, batch = runner.model.eval(), next(iter(runner.val_dataloader))
    model.head.bias.data -= model(**batch).median()  # half of the cells
    found = model(**batch, mode='predict')
    assert torch.equal(torch.stack([sample['path'] for sample in found]), model(**batch) > 0)
    assert torch.equal(torch.stack([sample['target'] for sample in found]), batch['target'])
    assert torch.equal(torch.stack([sample['distance'] for sample in found]), batch['distance'])


def test_the_curriculum_goes_on_in_its_phase_when_a_run_is_resumed(tmp_path):
    seen = []

    class Watch(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            seen.append(data_batch)

    for iterations, resume in ((3, False), (5, True)):
        cfg = tiny('flat-resnet33', tmp_path, resume=resume)
        cfg.train_cfg.max_iters = iterations
        runner = Runner.from_cfg(cfg)
        runner.register_hook(Watch())
        runner.train()
    assert [batch['distance'].tolist() for batch in seen] == [[d, d] for d in range(1, 6)]
    dataset = runner.train_dataloader.dataset
    assert torch.equal(torch.cat([batch['inputs'] for batch in seen]), torch.stack([s['inputs'] for s in dataset]))


def test_the_tool_prints_and_draws_the_last_scores_by_distance(tmp_path):
    for run, exact in (('plain', 0.25), ('tied', 0.5)):
        logs = tmp_path / run / 'now/vis_data'
        logs.mkdir(parents=True)
        records = [
            {f'paths/{score}/{ends}': value, 'step': step}
            for step, value in ((1, 0.1), (2, exact))
            for score in ('exact', 'f1')
            for ends in ('1-4', '5-8', '9-12')
        ]
        (logs / 'scalars.json').write_text('\n'.join(map(json.dumps, [dict(iter=1, step=1), *records])))
        (logs / 'config.py').write_text('train_dataloader = dict(dataset=dict(distances=[(1, 2), (1, 8)]))')
    shutil.copytree(tmp_path / 'tied/now', tmp_path / 'tied/tested')  # of a test, with another config
    (tmp_path / 'tied/tested/vis_data/scalars.json').write_text(json.dumps(records[-1]))
    (tmp_path / 'tied/tested/vis_data/config.py').write_text('')
    runs = [tmp_path / 'plain', tmp_path / 'tied']
    result = call(
        'analysis_tools/extrapolation.py', *runs, '--legend', 'plain', 'one kernel', '--out', tmp_path / 'x.png'
    )
    assert '| distance | **1-4** | **5-8** | 9-12 |' in result.stdout, result.stderr
    assert '| plain | 25.0 | 25.0 | 25.0 |\n| one kernel | 50.0 | 50.0 | 50.0 |' in result.stdout
    assert np.array(Image.open(tmp_path / 'x.png')).std() > 10
    (tmp_path / 'tied/now/vis_data/config.py').write_text('train_dataloader = dict(dataset=dict(distances=[(1, 4)]))')
    result = call('analysis_tools/extrapolation.py', *runs)
    assert result.returncode == 1 and 'trained up to distances of [4, 8] steps' in result.stderr
    result = call('analysis_tools/extrapolation.py', tmp_path)
    assert result.returncode == 1 and 'is not the work dir of a run that was scored' in result.stderr
