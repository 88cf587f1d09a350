"""The share of a gain that a model has, and how sure it is."""

import json
import math
import re

import pytest

from helpers import call
from mmshared.analysis.gain import compare


def test_the_share_of_a_gain_and_its_uncertainty():
    runs = dict(baseline=[95.0, 95.2, 95.1], model=[95.5, 95.7, 95.6], better=[96.2, 96.0, 96.1])
    found = compare(**runs)
    assert found.share.value == pytest.approx(0.5) and found.gain.value == pytest.approx(1.0)
    assert found.share.low < 0.5 < found.share.high
    for model, share in (('baseline', 0), ('better', 1)):
        assert compare(runs['baseline'], runs[model], runs['better']).share.value == pytest.approx(share)
    # The more runs of the same spread, the surer: by Student's 95 % quantiles for 2 and 11 degrees of freedom.
    more = compare(*(4 * each for each in runs.values()))
    errors = [(each.gain.high - each.gain.low) / 2 for each in (found, more)]
    assert 4.30 * 0.1 / math.sqrt(3) < errors[0] < 2 * 4.30 * 0.1 / math.sqrt(3)
    assert errors[1] == pytest.approx(math.sqrt(2) * 2.2 * 0.1 * math.sqrt(8 / 11 / 12), rel=0.1)
    # A single run has no spread to tell of, that of the model or another.
    single = compare(runs['baseline'], [95.6], runs['better'])
    assert single.gain == found.gain and str(single.share) == '0.50' and math.isnan(single.share.low)
    assert str(compare([90.0], runs['model'], runs['better']).gain) == '6.10'
    assert compare([90.0], [91.0], [90.0]).share is None
    noisy = compare([90.0, 92.0, 94.0], runs['model'], runs['better'])
    assert noisy.gain.low < 0 < noisy.gain.high and noisy.share is None


def test_an_interval_is_that_of_n_minus_1_degrees_of_freedom():
    # Of two runs the deviation is their difference over the root of 2; Student's 95 % quantile for one degree is 12.7.
    gain = compare([90.0, 92.0], [95.0, 95.0], [99.0, 99.0]).gain
    assert (gain.high - gain.low) / 2 == pytest.approx(12.7, rel=0.1)


def test_the_shares_of_a_suite_are_printed(tmp_path):
    for name, accuracies in dict(
        cnn=[95.0, 95.1, 95.2], repeat=[95.4, 95.5, 95.6], c4=[96.0, 96.1, 96.2], alike=[95.0, 95.1, 95.3]
    ).items():
        for seed, accuracy in enumerate(accuracies):
            (tmp_path / name / f'seed_{seed}').mkdir(parents=True)
            (tmp_path / name / f'seed_{seed}/result.json').write_text(
                json.dumps(dict(metric_name='accuracy/top1', metric=accuracy))
            )
    tool = 'analysis_tools/gain_share.py'
    told = call(tool, tmp_path, 'repeat', '--baseline', 'cnn', '--better', 'c4').stdout
    assert '| cnn | 3 | 95.10 | 0 |' in told and '| c4 | 3 | 96.10 | 1 |' in told
    assert '| repeat | 3 | 95.50 | 0.40 (' in told and 'gain of c4 over cnn: 1.00 (' in told
    for better, words in (
        ('alike', 'The shares are not defined'),
        ('none', 'has no finished run'),
        ('cnn', '--baseline and --better must be two models'),
    ):
        result = call(tool, tmp_path, 'repeat', '--baseline', 'cnn', '--better', better)
        assert words.lower() in (result.stdout + result.stderr).lower()
    for content, words in (
        (json.dumps(dict(metric_name='loss', metric=1)), 'The runs in .* by loss'),
        ('{"metric', 'result.json is damaged'),
    ):
        (tmp_path / 'c4/seed_0/result.json').write_text(content)
        result = call(tool, tmp_path, 'repeat', '--baseline', 'cnn', '--better', 'c4')
        assert result.returncode == 1 and re.search(f'Error: .*{words}', result.stderr)
