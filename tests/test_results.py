"""Tables and plots of results: means, intervals, verdicts."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image

from mmshared import SharingError
from mmshared.analysis.plots import draw_tradeoff
from mmshared.analysis.results import claims_table, result_table, tradeoff_of, tradeoffs_of
from mmshared.analysis.tables import put_tables


def test_tables_and_plots_of_results_have_means_with_intervals_of_n_minus_1_degrees(tmp_path):
    for seed, score in enumerate((80, 81, 85)):
        networks = dict(
            plain=dict(parameters=1000, metrics=dict(top1=90)),
            converted=dict(parameters=400, metrics=dict(top1=72)),
            finetuned=dict(parameters=400, multiply_adds=2_500_000, metrics=dict(top1=score)),
            float32=dict(bytes=9000, metrics=dict(top1=score)),
            int8=dict(bytes=3000, metrics=dict(top1=score - 1)),
        )
        for epochs, steps in ((0, 0), (0, 60), (3, 60)):
            run = dict(method='planned', keep=0.4, steps=steps, epochs=epochs, seed=seed, plain=networks['plain'])
            shorter = dict(converted=dict(parameters=400, metrics=dict(top1=71)), int8=networks['float32'])
            run |= networks if epochs else shorter
            (tmp_path / f'{epochs}-{steps}-{seed}.json').write_text(json.dumps(run))
    lines = result_table(tmp_path).splitlines()
    assert lines[0] == '| kept | method | multiply-adds | fitted | 60 steps | 3 epochs | kB | int8 | kB |'
    trained, rounded = '82.00 ± 6.57', '81.00 ± 6.57'  # one network was trained with three seeds
    assert lines[2] == f'| 0.400 | planned | 2.5 M | 71.00 | 72.00 | {trained} | 9 | {rounded} | 3 |'
    tradeoff = tradeoff_of(tmp_path)
    ((size, mean, width),) = tradeoff.methods['planned']['int8']
    assert (size, mean) == (3000, 81) and width == pytest.approx(6.57, abs=0.01)
    draw_tradeoff({'one': tradeoff, 'other': tradeoff}, tmp_path / 'plot.png')
    drawn = np.asarray(Image.open(tmp_path / 'plot.png').convert('RGB')).reshape(-1, 3)
    assert (drawn == (31, 119, 180)).all(1).sum() > 50  # C0
    for other, words in (
        (dict(steps=240), '2 results of planned at 0.4 with seed 2: keep one'),
        (dict(steps=240, seed=3), 'results of planned at 0.4 after 2 numbers of steps: keep one'),
        (dict(plain=networks['converted'], seed=3), 'results of 2 plain networks: keep those of one'),
    ):
        (tmp_path / 'other.json').write_text(json.dumps({**run, **other}))
        with pytest.raises(SharingError, match=words):
            result_table(tmp_path)


def test_methods_without_steps_of_blocks_have_onnx_models_beside_one_with_them(tmp_path):
    plain = dict(parameters=9, metrics=dict(top1=90))
    for method, steps, size in (('planned', 0, 1000), ('planned', 60, 2000), ('pruned', 0, 3000)):
        run = dict(method=method, keep=0.4, steps=steps, epochs=0, seed=0, plain=plain, converted=plain)
        run['int8'] = dict(bytes=size, metrics=dict(top1=80))
        (tmp_path / f'{method}-{steps}.json').write_text(json.dumps(run))
    assert [line.split(' | ')[-1] for line in result_table(tmp_path).splitlines()[2:4]] == ['3 |', '2 |']


def test_a_panel_has_the_heading_of_its_table_and_the_place(tmp_path):
    run = dict(method='planned', keep=0.4, steps=0, epochs=0, seed=0, plain=dict(parameters=9, metrics=dict(top1=90)))
    for name in ('a', 'b', 'c'):
        (tmp_path / name).mkdir()
        model = dict(float32=dict(bytes=9000, metrics=dict(top1=80))) if name != 'c' else {}
        (tmp_path / name / 'run.json').write_text(json.dumps(run | model))
    marks = '## Second\n<!-- b -->\n### Of it\n## First\ntext\n<!-- a -->\n## None\n<!-- c -->'
    (tmp_path / 'README.md').write_text(f'# Title\n{marks}')
    assert list(tradeoffs_of(tmp_path / 'README.md', tmp_path)) == ['Second', 'First']


def test_a_readme_without_the_marks_of_a_table_is_named(tmp_path):
    (tmp_path / 'README.md').write_text('a <!-- models --> old <!-- end of models --> b')
    text = put_tables(tmp_path / 'README.md', dict(models='new'))
    assert text == 'a <!-- models -->\nnew\n<!-- end of models --> b'
    with pytest.raises(SharingError, match='README.md lacks the marks <!-- claims -->'):
        put_tables(tmp_path / 'README.md', dict(models='new', claims='new'))


@pytest.mark.parametrize(
    'scores, difference, verdict',
    [
        ([(80, 82), (81, 83), (85, 87.5)], '2.17 ± 0.72', 'holds'),  # t of 2 degrees: 4.30 * 0.289 / sqrt(3)
        ([(82, 80), (83, 81), (87.5, 85)], '-2.17 ± 0.72', 'does not hold'),
        ([(80, 83), (81, 80), (85, 87)], '1.33 ± 5.17', 'open at this budget'),
        ([(80, 82)], '2.00', 'open at this budget'),
    ],
)
def test_claims_are_judged_by_the_interval_of_paired_differences(scores, difference, verdict, tmp_path):
    (tmp_path / 'table').mkdir()
    for seed, pair in enumerate(scores):
        for name, score, size in zip(('plain', 'shared'), pair, (1000, 300)):
            network = dict(parameters=size, multiply_adds=2_500_000, metrics=dict(top1=score))
            run = dict(method=name, keep=1, steps=0, epochs=2, seed=seed, trained=network)
            (tmp_path / 'table' / f'{name}-{seed}.json').write_text(json.dumps(run))
    claim = dict(claim='better', table='table', better='shared', than='plain', epochs=2)
    (tmp_path / 'claims.yaml').write_text(yaml.safe_dump([claim, {**claim, 'epochs': 3}]))
    *_, judged, without = claims_table(tmp_path / 'claims.yaml', tmp_path).splitlines()
    assert judged == f'| better | shared − plain | 2 | {len(scores)} | {difference} | {verdict} |'
    assert without == '| better | shared − plain | 3 | 0 |  | not run |'
    first = result_table(tmp_path / 'table').splitlines()[2]
    assert first.startswith(f'| plain | 1,000 | 2.5 M | 2 | {len(scores)} | 8')
