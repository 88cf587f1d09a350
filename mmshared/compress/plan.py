"""Plans which layers of a trained network share what, so that it keeps a budget at the least cost.

Each group of layers has candidates, banks of several ranks, and so has each of its layers by itself. The costs of some
are measured, those of the ranks between are interpolated, and candidates are chosen so that each layer is in one or
stays plain: the least sum of costs under the budget, a knapsack problem whose choices exclude each other.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from mmengine.config import Config
from rich.table import Table
from scipy.interpolate import PchipInterpolator
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import nn
from tqdm import tqdm

from ..engine.config import shared_type
from ..sharing import SharedLayer, SharingError, repeated_layers, share_layers
from ..sharing.layers import Place, plain_layers
from ..sharing.surgery import make_bank

# The shares of a group's parameters that its candidates keep, and how many of them are measured.
_KEPT = (0.04, 0.06, 0.08, 0.1, 0.13, 0.16, 0.2, 0.25, 0.3, 0.36, 0.43, 0.51, 0.6, 0.7, 0.8)
_MEASURED = 4
# Own filters of a layer for each shared filter of a basis: none, or two for 16, which kept more accuracy for their
# size than one or none in trials with ResNet-56.
_OWN = (0.0, 0.125)
# Groups with less than this share of the network's parameters stay as they are.
_LARGE = 0.005


class Size(NamedTuple):
    """The size of a network or of some layers, with each tensor counted once.

    Attributes:
        parameters (int): Number of parameters.
        bytes (int): Bytes of the parameters and buffers in a checkpoint.
    """

    parameters: int
    bytes: int


def size_of(module: nn.Module) -> Size:
    """The size of a network or of some layers."""
    stored = {id(tensor): tensor for tensor in module.state_dict(keep_vars=True).values()}.values()
    return Size(
        sum(each.numel() for each in module.parameters()), sum(each.numel() * each.itemsize for each in stored)
    )


class Option(NamedTuple):
    """A way for a group to share, or to stay as it is.

    Attributes:
        bank (dict | None): The config of the bank; None if the layers stay plain.
        size (Size): The size of the group's weights, without biases.
        cost (float): The cost, measured or interpolated; NaN as long as it is neither.
    """

    bank: dict | None
    size: Size
    cost: float = float('nan')


class Group(NamedTuple):
    """Layers that could share.

    Attributes:
        stage (str): Their stage; of a layer that does not repeat, the module that holds it.
        group (str): Their name within the blocks of the stage; of a single layer, its name in the stage or module.
        layers (tuple[str, ...]): Their names in the network.
        size (Size): The size of their weights.
        ladders (list[list[Option]]): For each kind of bank the options of rising rank.
    """

    stage: str
    group: str
    layers: tuple[str, ...]
    size: Size
    ladders: list[list[Option]]


def find_groups(model: nn.Module) -> list[Group]:
    """The groups of layers of a network that could become smaller: layers that repeat in a stage, followed by each of
    them as a group of its own, and other single layers, whose weight could have a low rank too. Those with less than
    0.5 % of the network's parameters are left out, unless they are part of a larger group.

    Args:
        model (nn.Module): The plain network.
    """
    empty = _without_values(model)
    places, least = plain_layers(empty), _LARGE * size_of(model).parameters
    found = [(each.stage, each.group, each.layers) for each in repeated_layers(empty, own_blocks=0)]
    repeated = {name for _, _, layers in found for name in layers}
    found += [(*_split(name), (name,)) for name in places if name not in repeated]
    order, groups = list(places), []
    for stage, group, names in sorted(found, key=lambda each: order.index(each[2][0])):
        if _size_of_weights(places, names).parameters >= least:
            alone = [(stage, name.removeprefix(f'{stage}.'), (name,)) for name in names if len(names) > 1]
            for each in [(stage, group, names), *alone]:
                size = _size_of_weights(places, each[2])
                ladders = _ladders([places[name].layer for name in each[2]], size)
                if ladders:
                    groups.append(Group(*each, size, ladders))
    return groups


def whole_groups(groups: Sequence[Group]) -> list[Group]:
    """The groups that are not a part of one before them."""
    found: list[Group] = []
    for group in groups:
        if not any(set(group.layers) <= set(each.layers) for each in found):
            found.append(group)
    return found


def _without_values(model: nn.Module) -> nn.Module:
    """A copy of a network on the meta device. Tied tensors stay tied, which they do not by ``to('meta')``."""
    memo: dict[int, Any] = {id(each): each.detach().to('meta') for each in model.buffers()}
    for each in model.parameters():
        memo[id(each)] = nn.Parameter(each.detach().to('meta'), each.requires_grad)
    return copy.deepcopy(model, memo)


def _split(name: str) -> tuple[str, str]:
    stage, _, group = name.rpartition('.')
    return stage, group


def _size_of_weights(places: dict[str, Place], names: Sequence[str]) -> Size:
    weights = [places[name].layer.weight for name in names]
    return Size(sum(each.numel() for each in weights), sum(each.numel() * each.itemsize for each in weights))


def _ladders(layers: Sequence[Any], plain: Size) -> list[list[Option]]:
    """The options for plain layers without values that make them smaller."""
    if any(getattr(layer, 'padding_mode', 'zeros') != 'zeros' for layer in layers):
        return []
    number = len(layers)
    if getattr(layers[0], 'groups', 1) == 1:
        kinds = [_bases(layers, own) for own in (_OWN if number > 1 else _OWN[:1])]
    else:  # a basis is for ungrouped convs
        kinds = [[dict(type='TemplateBank', num_templates=k) for k in range(1, number)]]
    ladders = [[Option(bank, _size_of_bank(bank, layers)) for bank in kind] for kind in kinds]
    ladders = [[option for option in ladder if option.size.parameters < plain.parameters] for ladder in ladders]
    return [ladder for ladder in ladders if ladder]


def _bases(layers: Sequence[Any], own: float) -> list[dict]:
    """Bases of rising rank, with so many own filters for each shared one."""
    number, weight = len(layers), layers[0].weight
    filters, dims = weight.flatten(1).shape  # O, K
    found = {}
    for kept in _KEPT:
        shared = round(kept * number * filters * dims / (dims + number * (own * dims + (1 + own) * filters)))
        unique = round(own * shared)
        if shared and shared + unique <= dims and (unique or not own):
            ranks = dict(shared_rank=shared, unique_rank=unique, base_channels=weight.shape[1])
            # A norm within each layer is for training from scratch. Without, it trains as fast as a plain one.
            found[shared, unique] = dict(type='FilterBasis', **ranks, with_norm=False)
    return list(found.values())


def _size_of_bank(config: dict, layers: Sequence[Any]) -> Size:
    """The size of a bank and of its layers, which are alike, without their biases."""
    bank = make_bank(config, layers)
    first = _size_of_shared([bank.make_layer(layers[0])])
    if len(layers) < 2:
        return first
    second = _size_of_shared([bank.make_layer(layers[1])])  # without the bank
    return Size(*(one + (len(layers) - 1) * more for one, more in zip(first, second)))


def _size_of_shared(layers: Sequence[SharedLayer]) -> Size:
    """The size of shared layers and of the banks in them, without their biases."""
    whole, biases = size_of(nn.ModuleList(layers)), [layer.bias for layer in layers if layer.bias is not None]
    return Size(
        whole.parameters - sum(each.numel() for each in biases),
        whole.bytes - sum(each.numel() * each.itemsize for each in biases),
    )


def smallest(groups: Sequence[Group], plain: Size, options: Sequence[Sequence[Option]] | None = None) -> Size:
    """The fewest parameters and the fewest bytes that a network of this plain size can have, by these options of each
    group; by default by all."""
    if options is None:
        options = [[Option(None, each.size), *(one for ladder in each.ladders for one in ladder)] for each in groups]
    return Size(*(_smallest(groups, options, plain, unit) for unit in Size._fields))


def check_budget(least: Size, plain: Size, limit: float, unit: str) -> None:
    """Raise a :class:`SharingError` if a network cannot be made so small, or is so small already."""
    fewest, whole = getattr(least, unit), getattr(plain, unit)
    if limit < fewest:
        raise SharingError(
            f'The smallest network that sharing makes of this one has {fewest:,} {unit}, {fewest / whole:.1%} of its '
            f'{whole:,}, and the budget is {int(limit):,}: give a larger one.'
        )
    if limit >= whole:
        raise SharingError(f'The network has {whole:,} {unit}, and the budget is {int(limit):,}: give a smaller one.')


def predict_costs(groups: Sequence[Group], meter: Callable[[Sequence[str], dict], float]) -> list[list[Option]]:
    """The options of each group with their costs. Some of each ladder are measured; between them, the logarithm of the
    cost is interpolated over that of the size, without overshooting. A larger bank of a ladder never costs more.

    A group on which no output depends, since no bank costs anything, has no options but to stay as it is.

    Args:
        groups (Sequence[Group]): The groups.
        meter (Callable): Gives the cost of a bank for the layers of some names, a :class:`CostMeter` for example.
    """
    rungs = [[_spread(ladder) for ladder in group.ladders] for group in groups]
    options = []
    with tqdm(total=sum(len(each) for ladders in rungs for each in ladders), desc='costs', disable=None) as bar:
        for group, ladders in zip(groups, rungs):
            found, some = [Option(None, group.size, 0.0)], False
            for ladder, chosen in zip(group.ladders, ladders):
                measured = []
                for rung in chosen:
                    measured.append(meter(group.layers, ladder[rung].bank or {}))
                    bar.update()
                found += _interpolate(ladder, chosen, measured)
                some |= any(measured)
            options.append(found if some else found[:1])
    return options


def _spread(ladder: Sequence[Option]) -> list[int]:
    """The rungs of a ladder to measure, first and last among them."""
    return sorted({round(rung) for rung in np.linspace(0, len(ladder) - 1, min(_MEASURED, len(ladder)))})


def _interpolate(ladder: Sequence[Option], rungs: Sequence[int], measured: Sequence[float]) -> list[Option]:
    """The options of a ladder with their costs, from those that were measured at some rungs."""
    if len(rungs) < 2:
        return [ladder[rung]._replace(cost=cost) for rung, cost in zip(rungs, measured)]
    sizes = np.log([option.size.parameters for option in ladder])
    falling = np.minimum.accumulate(np.maximum(measured, 1e-12))
    costs = np.exp(PchipInterpolator(sizes[list(rungs)], np.log(falling))(sizes))
    return [option._replace(cost=float(cost)) for option, cost in zip(ladder, costs)]


def choose(
    groups: Sequence[Group], options: Sequence[Sequence[Option]], plain: Size, limit: float, unit: str = 'parameters'
) -> list[tuple[Group, Option]]:
    """Choose options so that the size of the network keeps a limit at the least sum of costs. Each layer is in one of
    them.

    Args:
        groups (Sequence[Group]): The groups, parts after the groups that they are of.
        options (Sequence[Sequence[Option]]): The options of each group.
        plain (Size): The size of the plain network.
        limit (float): The largest size.
        unit (str): What the limit counts: ``'parameters'`` or ``'bytes'``.

    Returns:
        list[tuple[Group, Option]]: The chosen options and their groups, in the order of the groups.

    Raises:
        SharingError: If no choice keeps the limit.
    """
    least = _smallest(groups, options, plain, unit)
    check_budget(plain._replace(**{unit: least}), plain, limit, unit)
    fronts = [(group, option) for group, each in zip(groups, options) for option in _front(each, unit)]
    room = most = limit - _outside(groups, plain, unit)
    chosen: list[tuple[Group, Option]] = []
    while not chosen or sum(getattr(option.size, unit) for _, option in chosen) > most:
        chosen = _cover(fronts, [option.cost for _, option in fronts], room, unit)
        room -= 1  # the solver takes 0.999999 for 1
    return _with_whole_plain(groups, chosen)


def _outside(groups: Sequence[Group], plain: Size, unit: str) -> int:
    """The size of what is in no group."""
    return getattr(plain, unit) - sum(getattr(each.size, unit) for each in whole_groups(groups))


def _smallest(groups: Sequence[Group], options: Sequence[Sequence[Option]], plain: Size, unit: str) -> int:
    """The smallest size of a network by these options."""
    candidates = [(each, min(some, key=lambda one: getattr(one.size, unit))) for each, some in zip(groups, options)]
    sizes = [getattr(option.size, unit) for _, option in candidates]
    chosen = _cover(candidates, sizes, sum(sizes), unit)
    return _outside(groups, plain, unit) + sum(getattr(option.size, unit) for _, option in chosen)


def _with_whole_plain(groups: Sequence[Group], chosen: list[tuple[Group, Option]]) -> list[tuple[Group, Option]]:
    """The chosen options with a group whose layers are all plain as one."""
    plain = {layer for group, option in chosen if option.bank is None for layer in group.layers}
    found = {group.layers: option for group, option in chosen}
    rows: list[tuple[Group, Option]] = []
    for group in whole_groups(groups):
        if plain.issuperset(group.layers):
            rows.append((group, Option(None, group.size, 0.0)))
        else:
            parts = [each for each in groups if set(each.layers) <= set(group.layers)]
            rows += [(each, found[each.layers]) for each in parts if each.layers in found]
    return rows


def _front(options: Sequence[Option], unit: str) -> list[Option]:
    """The options of rising size and falling cost: those for which no other is both smaller and cheaper."""
    front: list[Option] = []
    for option in sorted(options, key=lambda each: (getattr(each.size, unit), each.cost)):
        if not front or option.cost < front[-1].cost:
            front.append(option)
    return front


def _cover(
    candidates: Sequence[tuple[Group, Option]], costs: Sequence[float], room: float, unit: str
) -> list[tuple[Group, Option]]:
    """The candidates that have each layer once and together fit into ``room``, at the least sum of costs."""
    layers = dict.fromkeys(layer for group, _ in candidates for layer in group.layers)
    once = np.array([[layer in group.layers for group, _ in candidates] for layer in layers], dtype=float)
    solution = milp(
        np.array(costs) * (1e4 / max(*costs, 1e-12)),  # far from the tolerances of the solver
        integrality=np.ones(len(costs)),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(once, 1, 1),
            LinearConstraint([[getattr(option.size, unit) for _, option in candidates]], ub=room),
        ],
        options=dict(mip_rel_gap=0),
    )
    return [each for each, taken in zip(candidates, solution.x) if taken > 0.5]


@dataclass(frozen=True)
class Row:
    """What a group of layers becomes.

    Attributes:
        stage (str): Their stage; of a layer that does not repeat, the module that holds it.
        group (str): Their name within the blocks of the stage; of a single layer, its name in the stage or module.
        layers (list[str]): Their names in the network.
        before (int): The number of parameters of their weights.
        after (int): The same in the bank and the layers that share it.
        bank (dict | None): The config of the bank; None if they stay plain.
        cost (float | None): The predicted cost; None if the bank is not the one that it was predicted for.
    """

    stage: str
    group: str
    layers: list[str]
    before: int
    after: int
    bank: dict | None
    cost: float | None

    @property
    def name(self) -> str:
        return f'{self.stage}.{self.group}'.strip('.')

    @property
    def rank(self) -> str:
        """The rank of the bank: S16U2 for 16 shared filters and two of each layer's own, T3 for three templates."""
        bank = self.bank or {}
        if 'shared_rank' in bank:
            return f'S{bank["shared_rank"]}U{bank.get("unique_rank", 0)}'
        return f'T{bank["num_templates"]}' if 'num_templates' in bank else ''

    def sharing(self) -> dict:
        """The arguments of :func:`mmshared.share_layers` for this group."""
        if len(self.layers) == 1:
            return dict(layers=[re.escape(self.layers[0])], bank=self.bank)
        return dict(stages=re.escape(self.stage), groups=[re.escape(self.group)], own_blocks=0, bank=self.bank)


@dataclass(frozen=True)
class Plan:
    """Which layers of a network share what.

    Attributes:
        plain (Size): The size of the plain network.
        rows (list[Row]): A row for each group, also for those that stay plain.
    """

    plain: Size
    rows: list[Row]

    @property
    def parameters(self) -> int:
        """The number of parameters of the shared network."""
        return self.plain.parameters - sum(row.before - row.after for row in self.rows)

    @property
    def cost(self) -> float | None:
        """The predicted cost; None if that of a row is not known."""
        costs = [row.cost for row in self.rows if row.cost is not None]
        return sum(costs) if len(costs) == len(self.rows) else None

    def sharing(self) -> list[dict]:
        """The ``sharing`` of the whole network."""
        return [row.sharing() for row in self.rows if row.bank is not None]

    def to_json(self) -> str:
        totals = dict(parameters=self.parameters, cost=self.cost)
        return json.dumps(
            dict(plain=self.plain._asdict(), **totals, rows=[asdict(row) for row in self.rows]), indent=1
        )

    @classmethod
    def from_json(cls, text: str, source: str) -> Plan:
        """Read a plan.

        Args:
            text (str): What :meth:`to_json` made, perhaps edited.
            source (str): Its name, for messages.

        Raises:
            SharingError: If it is not a plan.
        """
        try:
            content = json.loads(text)
            return cls(Size(**content['plain']), [Row(**row) for row in content['rows']])
        except (ValueError, KeyError, TypeError) as error:
            raise SharingError(f'{source} is not a plan: {error!r}. Edit the one that was written.') from None

    def table(self) -> Table:
        """The plan for people."""
        table = Table(
            caption=f'{self.parameters:,} of {self.plain.parameters:,} parameters '
            f'({self.parameters / self.plain.parameters:.1%}), predicted cost {_known(self.cost)}'
        )
        for name in ('stage', 'group'):
            table.add_column(name, overflow='fold')
        for name in ('layers', 'before', 'after'):
            table.add_column(name, justify='right')
        for name in ('bank', 'rank'):
            table.add_column(name, no_wrap=True)
        table.add_column('predicted cost', justify='right')
        for row in self.rows:
            bank = '' if row.bank is None else row.bank['type']
            numbers = [f'{each:,}' for each in (len(row.layers), row.before, row.after)]
            table.add_row(row.stage, row.group, *numbers, bank, row.rank, _known(row.cost))
        return table

    def config(self, base: str, plain: Config) -> str:
        """The text of a config of the shared network, which the tools of mmdet and mmpretrain take too.

        Args:
            base (str): The config of the plain network: its name in a library, or its path from the new config.
            plain (Config): What is in it.
        """
        own = plain.get('custom_imports') or dict(imports=[], allow_failed_imports=False)
        names = [own['imports']] if isinstance(own['imports'], str) else own['imports']
        imports = {**own, 'imports': [*dict.fromkeys([*names, 'mmshared'])]}
        lines = [f'_base_ = {base!r}', f'custom_imports = {_call(imports)}']
        lines += [f'runner_type = {plain.get("runner_type", "SharingRunner")!r}']
        lines += ['model = dict(', f'    type={shared_type(plain.model.type)!r},', '    sharing=[']
        for row in self.rows:
            if row.bank is not None:
                lines.append(f'        # {row.name}: {row.after:,} of {row.before:,} parameters')
                lines.append(f'        {_call(row.sharing())},')
        return '\n'.join([*lines, '    ],', ')', ''])


def _known(cost: float | None) -> str:
    return 'unknown' if cost is None else f'{cost:.4g}'


def _call(value: Any) -> str:
    """A value as a config writes it: ``dict(key=value)``, raw strings for patterns."""
    if isinstance(value, dict):
        return f'dict({", ".join(f"{key}={_call(each)}" for key, each in value.items())})'
    if isinstance(value, list):
        return f'[{", ".join(map(_call, value))}]'
    return f"r'{value}'" if isinstance(value, str) and '\\' in value else repr(value)


def make_plan(
    groups: Sequence[Group], options: Sequence[Sequence[Option]], plain: Size, limit: float, unit: str = 'parameters'
) -> Plan:
    """Plan what each layer becomes, so that the network keeps a limit at the least sum of costs.

    Args:
        groups (Sequence[Group]): The groups, parts after the groups that they are of.
        options (Sequence[Sequence[Option]]): The options of each, with their costs.
        plain (Size): The size of the plain network.
        limit (float): The largest size.
        unit (str): What the limit counts: ``'parameters'`` or ``'bytes'``.

    Raises:
        SharingError: If nothing keeps the limit.
    """
    rows = [
        Row(
            each.stage,
            each.group,
            list(each.layers),
            each.size.parameters,
            option.size.parameters,
            option.bank,
            option.cost,
        )
        for each, option in choose(groups, options, plain, limit, unit)
    ]
    return Plan(plain, rows)


def make_plans(
    groups: Sequence[Group], options: Sequence[Sequence[Option]], plain: Size, limit: float, unit: str = 'parameters'
) -> dict[str, Plan]:
    """The plan in which groups may be taken apart, ``'apart'``, and the one in which none is, ``'whole'``. If they are
    the same, or if no plan of whole groups keeps the limit, only the first.

    Costs of the parts of a group are measured one by one, and may be lower in sum than what they cost together. So
    which of the plans is better has to be seen.

    Args and errors are those of :func:`make_plan`.
    """
    plans = dict(apart=make_plan(groups, options, plain, limit, unit))
    whole, choices = whole_groups(groups), {group.layers: each for group, each in zip(groups, options)}
    if not {tuple(row.layers) for row in plans['apart'].rows} <= {group.layers for group in whole}:
        with suppress(SharingError):
            plans['whole'] = make_plan(whole, [choices[group.layers] for group in whole], plain, limit, unit)
    return plans


def check_plan(plan: Plan, model: nn.Module, source: str) -> Plan:
    """Check that a plan is one for a network, and count its parameters again: it may have been edited.

    Args:
        plan (Plan): The plan.
        model (nn.Module): The plain network.
        source (str): Its name, for messages.

    Raises:
        SharingError: If it is for another network.
    """
    if not all(isinstance(row.layers, list) for row in plan.rows):
        raise SharingError(f'{source} is not a plan: the layers of a row are a list of names.')
    empty = _without_values(model)
    places, rows = plain_layers(empty), []
    for row in plan.rows:
        missing = [name for name in row.layers if name not in places]
        if missing or not row.layers:
            raise SharingError(
                f'{source} is of another network: this one has no layer {"".join(missing[:1])} to share.'
            )
        size = _size_of_weights(places, row.layers)
        after = size
        if row.bank is not None:
            made = share_layers(empty, **row.sharing())
            if [sorted(bank.names) for bank in made] != [sorted(row.layers)]:
                raise SharingError(
                    f'The layers of {row.name} in {source} are not those of this name in the stage: change banks and '
                    'ranks or remove rows, and leave the layers.'
                )
            after = _size_of_shared(made[0].layers)
        cost = 0.0 if row.bank is None else row.cost if after.parameters == row.after else None
        rows.append(replace(row, before=size.parameters, after=after.parameters, cost=cost))
    return Plan(size_of(model), rows)
