"""Plans: what they count is what is built, they keep their budget, and a measurement is made once."""

import json
from functools import cache
from itertools import product
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import nn

from helpers import ROOT, TIED
from mmshared import SharingError, banks, share_layers
from mmshared.compress.costs import CostMeter, _set, fit_bank
from mmshared.compress.outputs import Outputs, difference, outputs_of
from mmshared.compress.plan import (
    Group,
    Option,
    Plan,
    Size,
    check_plan,
    choose,
    find_groups,
    make_plan,
    make_plans,
    predict_costs,
    size_of,
    smallest,
    whole_groups,
)
from mmshared.engine.build import build_model
from mmshared.engine.config import load_config


class Network(BaseModel):
    """Two convs in each of four blocks, one that is used by nobody, and a linear that does not repeat."""

    def __init__(self, width=8):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.Conv2d(width, width, 1))
            for _ in range(4)
        )
        self.fc = nn.Linear(width, 40)
        self.spare = nn.Linear(width, 40)

    def forward(self, inputs, mode='tensor'):
        x = self.stem(inputs)
        for block in self.blocks:
            x = x + block(x).relu()
        return self.fc(x.mean((2, 3)))


def test_tied_weights_stay_as_they_are():
    network = Network()
    alone = {group.layers for group in find_groups(network)}
    assert {('fc',), ('spare',)} <= alone
    network.spare.weight = network.fc.weight
    assert alone - {group.layers for group in find_groups(network)} == {('fc',), ('spare',)}


def batches(number=2):
    generator = torch.Generator().manual_seed(0)
    return [dict(inputs=torch.randn(4, 3, 8, 8, generator=generator)) for _ in range(number)]


def rank_cost(layers, bank):
    """A cost that falls with the rank."""
    return 1 / (1 + bank.get('shared_rank', 0) + 2 * bank.get('unique_rank', 0))


@cache
def groups_of(width=8):
    return find_groups(Network(width))


def planned(kept, unit='parameters'):
    groups, plain = groups_of(), size_of(Network())
    return make_plan(groups, predict_costs(groups, rank_cost), plain, kept * getattr(plain, unit), unit)


class TestGroups:
    def test_layers_that_repeat_are_groups_and_others_may_have_a_low_rank(self):
        groups = groups_of()
        whole = [('', 'stem', 1), ('blocks', '0', 4), ('blocks', '2', 4), ('', 'fc', 1), ('', 'spare', 1)]
        assert [(each.stage, each.group, len(each.layers)) for each in whole_groups(groups)] == whole
        parts = [(each.group, each.layers) for each in groups if each.stage == 'blocks' and len(each.layers) == 1]
        assert parts == [(f'{i}.{name}', (f'blocks.{i}.{name}',)) for name in (0, 2) for i in range(4)]
        assert len(groups) == len(whole) + len(parts)

    def test_every_option_is_smaller_than_the_plain_layers(self):
        for group in groups_of():
            options = [option for ladder in group.ladders for option in ladder]
            assert options and all(0 < option.size.parameters < group.size.parameters for option in options)

    def test_small_layers_stay_as_they_are(self):
        network = Network()
        network.fc = nn.Linear(8, 40000)
        groups = find_groups(network)
        assert [each.group for each in whole_groups(groups)] == ['0', 'fc']
        alone = [each.layers[0] for each in groups if len(each.layers) == 1]
        assert alone == [f'blocks.{i}.0' for i in range(4)] + ['fc']


class TestChoice:
    options = st.lists(st.tuples(st.integers(1, 10**6), st.floats(1e-6, 10)), min_size=1, max_size=3)
    # The options of a group, and those of each of its layers.
    groups = st.lists(st.tuples(options, st.lists(options, max_size=2)), min_size=1, max_size=3)

    @staticmethod
    def made(groups):
        """Groups and their options, plain ones first; for each group of layers all that these could become."""
        found, options, choices = [], [], []
        for number, (whole, parts) in enumerate(groups):
            names = tuple(f'{number}.{part}' for part in range(max(len(parts), 1)))
            layers = [names, *((name,) for name in names[: len(parts)] if len(parts) > 1)]
            some = [whole, *(parts if len(parts) > 1 else [])]
            plain = 1 + max(size for each in some for size, _ in each)
            each = [
                [Option(None, Size(plain * len(own), 0), 0.0)]
                + [Option({}, Size(size, 0), cost) for size, cost in ones]
                for own, ones in zip(layers, some)
            ]
            found += [Group('', str(number), own, kind[0].size, []) for own, kind in zip(layers, each)]
            options += each
            choices.append([(one,) for one in each[0]] + ([*product(*each[1:])] if len(each) > 1 else []))
        whole = [options[i] for i, group in enumerate(found) if group in whole_groups(found)]
        return found, options, choices, Size(100 + sum(each[0].size.parameters for each in whole), 0)

    @settings(max_examples=40, derandomize=True, deadline=None, database=None)
    @given(groups=groups, share=st.floats(0, 0.999))
    def test_it_keeps_the_budget_at_the_least_cost_of_all_choices(self, groups, share):
        found, options, choices, plain = self.made(groups)
        totals = [
            (
                100 + sum(one.size.parameters for each in choice for one in each),
                sum(one.cost for each in choice for one in each),
            )
            for choice in product(*choices)
        ]
        least = min(size for size, _ in totals)
        limit = least + share * (plain.parameters - least)
        chosen = choose(found, options, plain, limit)
        assert 100 + sum(option.size.parameters for _, option in chosen) <= limit
        layers = [layer for group, _ in chosen for layer in group.layers]
        assert sorted(layers) == sorted({layer for group in found for layer in group.layers})
        best = min(cost for size, cost in totals if size <= limit)
        assert sum(option.cost for _, option in chosen) == pytest.approx(best, abs=1e-6)

    def test_a_larger_budget_never_costs_more(self):
        costs = [planned(kept).cost for kept in (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.999)]
        assert costs == sorted(costs, reverse=True) and costs[0] > costs[-1]

    def test_a_budget_that_cannot_be_met_is_refused_with_the_smallest_that_can(self):
        network = Network()
        least = smallest(groups_of(), size_of(network)).parameters
        with pytest.raises(SharingError, match=rf'has {least:,} parameters.* budget is {least - 1:,}:'):
            planned((least - 1) / size_of(network).parameters)
        assert planned(least / size_of(network).parameters).parameters == least


class TestCosts:
    def test_some_ranks_are_measured_and_the_cost_of_those_between_lies_between(self):
        measured = {}

        def cost(layers, bank):
            return measured.setdefault(json.dumps([layers, bank]), rank_cost(layers, bank))

        groups = groups_of(16)
        options = predict_costs(groups, cost)
        assert len(measured) < sum(map(len, options)) - len(options)
        for group, (plain, *found) in zip(groups, options):
            assert plain.bank is None and plain.cost == 0
            known = [measured.get(json.dumps([group.layers, option.bank])) for option in found]
            assert all(cost is None or cost == pytest.approx(option.cost) for cost, option in zip(known, found))
            for ladder in group.ladders:
                costs = [option.cost for option in found if option.bank in [each.bank for each in ladder]]
                assert costs == sorted(costs, reverse=True)

    def test_a_measured_cost_that_rises_with_the_rank_does_not_make_a_larger_bank_cost_more(self):
        options = predict_costs(groups_of(), lambda layers, bank: 1 + bank.get('shared_rank', 0) % 3)
        bases = [option for option in options[1] if option.bank and option.bank['unique_rank'] == 0]
        assert len(bases) > 3 and [each.cost for each in bases] == sorted((each.cost for each in bases), reverse=True)

    def test_the_cost_is_the_change_of_the_outputs_and_the_network_stays_as_it_was(self):
        network, data = Network(), batches()
        before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
        found = {group.group: group for group in find_groups(network)}
        meter = CostMeter(network, data, {})
        measured = meter(found['2'].layers, TIED)
        assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())

        plain = [network(**batch).log_softmax(1) for batch in data]
        kernels = {f'{name}.weight': before[f'{name}.weight'] for name in found['2'].layers}
        mean = torch.stack(list(kernels.values())).mean(0)
        network.load_state_dict({**before, **dict.fromkeys(kernels, mean)})
        tied = [network(**batch).log_softmax(1) for batch in data]
        expected = sum((p.exp() * (p - q)).sum() for p, q in zip(plain, tied)) / 8
        assert measured == pytest.approx(expected.item(), rel=1e-4)

    def test_banks_are_fitted_on_the_cpu_wherever_the_network_is(self):
        class Elsewhere(nn.Conv2d):
            def cpu(self):
                return self.here

        layers = [Elsewhere(4, 4, 3, device='meta') for _ in range(2)]
        for layer in layers:
            layer.here = nn.Conv2d(4, 4, 3)
        moments = [torch.eye(36, dtype=torch.float64)] * 2
        found, expected = (fit_bank(TIED, each, moments) for each in (layers, [layer.here for layer in layers]))
        for layer, *each in zip(layers, found, expected):
            assert torch.equal(each[0].weight, each[1].weight) and torch.equal(each[0].bias, each[1].bias)
            _set(layer, each[0])
            assert layer.weight.is_meta and layer.bias.is_meta

    def test_what_no_output_depends_on_stays_plain(self):
        network = Network()
        groups = find_groups(network)
        options = predict_costs(groups, CostMeter(network, batches(), {}))
        assert [group.group for group, each in zip(groups, options) if len(each) == 1] == ['spare']

    def test_an_output_that_is_the_same_for_all_images_says_nothing(self):
        class Several(Network):
            names = ('logits', 'dead')

            def forward(self, *args, **kwargs):
                y = super().forward(*args, **kwargs)[:, None]
                parts = dict(logits=y, dead=0 * y)
                return {name: parts[name] for name in self.names}

        network, layers, costs = Several(), ['blocks.0.2', 'blocks.1.2'], []
        for names in (('logits',), ('logits', 'dead')):
            network.names = names
            costs.append(CostMeter(network, batches(), {})(layers, TIED))
        assert costs[0] == costs[1] > 0
        network.names = ('dead',)
        with pytest.raises(SharingError, match='the same for all calibration images'):
            CostMeter(network, batches(), {})(layers, TIED)

    def test_each_is_measured_once_also_by_a_later_process(self, tmp_path):
        network, groups = Network(), groups_of()
        costs = predict_costs(groups, CostMeter(network, batches(), {}, tmp_path / 'costs.json'))
        again = CostMeter(network, batches(), {}, tmp_path / 'costs.json')
        with patch.object(again, 'change', side_effect=AssertionError):
            assert predict_costs(groups, again) == costs

    def test_what_was_measured_of_other_weights_images_or_moments_does_not_count(self, tmp_path):
        network, cache = Network(), tmp_path / 'costs.json'
        layers = ['blocks.0.2', 'blocks.1.2']
        CostMeter(network, batches(), {}, cache)(layers, TIED)
        moments = {name: torch.eye(8) for name in layers}
        others = (Network(), batches(), {}), (network, batches(3), {}), (network, batches(), moments)
        for meter in [CostMeter(*each, cache) for each in others]:
            with patch.object(meter, 'change', wraps=meter.change) as change:
                assert meter(layers, TIED) > 0 and change.call_count == 1

    def test_damage_to_the_file_costs_only_time(self, tmp_path):
        (tmp_path / 'costs.json').write_text('{"digest"')
        meter = CostMeter(Network(), batches(), {}, tmp_path / 'costs.json')
        assert meter(['blocks.0.2', 'blocks.1.2'], TIED) > 0


class TestPlan:
    @pytest.mark.parametrize('kept', [0.4, 0.6, 0.8])
    @pytest.mark.parametrize('unit', ['parameters', 'bytes'])
    def test_what_it_counts_is_what_is_built(self, kept, unit):
        network = Network()
        plain = size_of(network)
        plan = planned(kept, unit=unit)
        for sharing in plan.sharing():
            share_layers(network, **sharing)
        assert size_of(network).parameters == plan.parameters
        assert getattr(size_of(network), unit) <= kept * getattr(plain, unit)
        assert [list(bank.names) for bank in banks(network)] == [row.layers for row in plan.rows if row.bank]

    def test_layers_of_a_group_may_each_have_what_suits_them(self):
        """Where sharing costs much, some of them have bases of their own, and some stay plain."""
        network, groups = Network(), groups_of()
        plain = size_of(network)

        def cost(layers, bank):
            return rank_cost(layers, bank) * (1000 if len(layers) > 1 or layers[0] == 'blocks.1.0' else 1)

        plan = make_plan(groups, predict_costs(groups, cost), plain, 0.5 * plain.parameters)
        rows = {tuple(row.layers): row.bank for row in plan.rows}
        assert rows['blocks.1.0',] is None and rows['blocks.2.0',] and len(rows) == len(plan.rows) > 5
        for sharing in plan.sharing():
            share_layers(network, **sharing)
        assert size_of(network).parameters == plan.parameters <= 0.5 * plain.parameters
        assert Plan.from_json(plan.to_json(), 'plan.json') == plan == check_plan(plan, Network(), 'plan.json')

    def test_the_smallest_network_by_some_options_can_be_planned(self):
        groups, plain = groups_of(), size_of(Network())
        options = predict_costs(groups, lambda layers, bank: 0.0 if 'spare' in layers else rank_cost(layers, bank))
        least = smallest(groups, plain, options)
        assert least.parameters > smallest(groups, plain).parameters
        assert make_plan(groups, options, plain, least.parameters).parameters == least.parameters
        with pytest.raises(SharingError, match='give a larger one'):
            make_plan(groups, options, plain, least.parameters - 1)

    @pytest.mark.parametrize('factor, names', [(1000, ['apart', 'whole']), (0.001, ['apart'])])
    def test_there_are_two_plans_if_groups_would_be_taken_apart(self, factor, names):
        groups, plain = groups_of(), size_of(Network())

        def cost(layers, bank):
            return rank_cost(layers, bank) * (factor if len(layers) > 1 else 1)

        plans = make_plans(groups, predict_costs(groups, cost), plain, 0.5 * plain.parameters)
        assert [*plans] == names and all(plan.parameters <= 0.5 * plain.parameters for plan in plans.values())
        whole = {each.layers for each in whole_groups(groups)}
        assert {tuple(row.layers) for row in plans[names[-1]].rows} == whole
        assert ({tuple(row.layers) for row in plans['apart'].rows} == whole) == (len(names) == 1)

    def test_it_reads_what_it_writes(self):
        plan = planned(0.5)
        assert Plan.from_json(plan.to_json(), 'plan.json') == plan == check_plan(plan, Network(), 'plan.json')

    def test_rows_may_be_dropped_and_ranks_changed(self):
        plan = planned(0.5)
        content = json.loads(plan.to_json())
        content['rows'] = [row for row in content['rows'] if row['group'] in ('0', '2')]
        content['rows'][0]['bank']['shared_rank'] += 1
        content['rows'][1]['bank'] = None
        edited = check_plan(Plan.from_json(json.dumps(content), 'plan.json'), Network(), 'plan.json')
        network = Network()
        for sharing in edited.sharing():
            share_layers(network, **sharing)
        assert [row.group for row in edited.rows] == ['0', '2']
        assert size_of(network).parameters == edited.parameters > plan.parameters
        first, second = edited.rows
        assert first.rank == f'S{first.bank["shared_rank"]}U{first.bank["unique_rank"]}' and first.cost is None
        assert (second.rank, second.cost, edited.cost) == ('', 0, None)

    def test_a_plan_of_another_network_is_refused(self):
        plan = planned(0.5)
        network = Network()
        network.blocks = network.blocks[:2]
        with pytest.raises(SharingError, match=r'plan.json is of another network: this one has no layer blocks\.2\.0'):
            check_plan(plan, network, 'plan.json')

    @pytest.mark.parametrize('text', ['', '{}', '[]', '{"plain": {"parameters": 1, "bytes": 4}, "rows": [{"a": 1}]}'])
    def test_what_is_no_plan_is_refused(self, text):
        with pytest.raises(SharingError, match='plan.json is not a plan'):
            Plan.from_json(text, 'plan.json')


class Selecting(BaseModel):
    """A network that selects some of its own outputs and computes with them, as a DETR does."""

    def __init__(self):
        super().__init__()
        self.score = nn.Linear(4, 1)
        self.box = nn.Linear(4, 2)

    def forward(self, inputs, mode='tensor'):
        scores = self.score(inputs)[..., 0]
        chosen = scores.topk(3, dim=1).indices
        return scores, self.box(inputs.gather(1, chosen[..., None].expand(-1, -1, 4)))


class TestOutputs:
    def test_another_network_is_compared_at_what_the_first_one_selected(self):
        network, batch = Selecting(), dict(inputs=torch.randn(2, 9, 4))
        plain = outputs_of(network, batch)
        with torch.no_grad():
            network.score.weight.neg_()  # it would select the worst
        scores, boxes = difference(outputs_of(network, batch, plain.chosen), plain)
        assert scores[0] > 0 and boxes[0] == 0
        assert difference(outputs_of(network, batch), plain)[1, 0] > 0

    def test_neither_the_scale_nor_the_mean_of_an_output_changes_its_error(self):
        plain, found = torch.randn(2, 50).unbind()
        errors = [
            difference(Outputs([scale * found + mean], []), Outputs([scale * plain + mean], []))
            for scale, mean in ((1, 0), (100, 7))
        ]
        ratios = [(errors[:, 0] / errors[:, 1]).item() for errors in errors]
        assert ratios[0] == pytest.approx(ratios[1], rel=1e-4)

    @pytest.mark.parametrize('classes', [1, 6])
    @pytest.mark.parametrize('head', ['LinearClsHead', 'MultiLabelLinearClsHead'])
    def test_all_logits_may_rise_where_their_classes_exclude_each_other(self, mmpretrain, head, classes):
        head = dict(type=head, num_classes=classes, in_channels=3)
        network = MODELS.build(dict(type='ImageClassifier', backbone=nn.Flatten(), head=head)).eval()
        network.extract_feat = lambda inputs: (network.backbone(inputs),)
        batch = dict(inputs=torch.randn(5, 3, 1, 1))
        plain = outputs_of(network, batch)
        with torch.no_grad():
            network.head.fc.bias += 5
        error = difference(outputs_of(network, batch), plain)[0, 0]
        assert (error < 1e-6) == (head['type'] == 'LinearClsHead' and classes > 1)

    @pytest.mark.slow
    def test_the_second_stage_sees_the_proposals_of_the_plain_network(self, mmdet):
        cfg = load_config(str(ROOT / 'configs/small/faster-rcnn_r50-narrow_6e_digits.py'))
        cfg.model.backbone.depth = 18
        cfg.model.neck.in_channels = [16, 32, 64, 128]
        network = build_model(cfg).eval()
        shape = dict(img_shape=(64, 64), ori_shape=(64, 64), scale_factor=(1, 1))
        from mmdet.structures import DetDataSample

        batch = dict(inputs=[torch.randint(0, 256, (3, 64, 64))], data_samples=[DetDataSample(metainfo=shape)])
        plain = outputs_of(network, batch)
        assert [len(kind) for kind in plain.kinds][2:] == [100 * 11, 100 * 40]  # scores and boxes of the second stage
        with torch.no_grad():
            network.rpn_head.rpn_reg.weight.mul_(-3)
        errors = difference(outputs_of(network, batch, plain.chosen), plain)[:, 0]
        assert (errors > 0).tolist() == [False, True, False, False]
        assert not hasattr(network.rpn_head.predict, 'chosen') and 'predict' not in vars(network.rpn_head)
