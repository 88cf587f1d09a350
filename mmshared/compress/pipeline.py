"""Makes a trained network smaller: from its config, its checkpoint and a budget to a shared one and a report on it."""

from __future__ import annotations

import copy
import json
import math
import os.path as osp
import re
import shlex
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import EarlyStoppingHook, EMAHook
from mmengine.registry import DATASETS, RUNNERS
from mmengine.runner import Runner, find_latest_checkpoint
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader

from ..analysis.logs import read_scalars
from ..analysis.plots import detections_in
from ..convert.fold import fold_model
from ..engine.build import build_model, is_detector, load_model, predicts_masks
from ..engine.checkpoint import (
    DivergedError,
    converted,
    load_checkpoint_file,
    save_checkpoint,
    state_dict_of,
    write_text,
)
from ..engine.config import check_twins, class_of_hook, dump_config, in_work_dir, load_config, shared_type, shares
from ..engine.data import images_named
from ..engine.runner import check_config, has_begun, join_group, numbers_in
from ..sharing import SharingError
from .calibration import calibration_data, calibration_loader, within
from .costs import CostMeter
from .files import Files, digest_of, say
from .fit import fit_model
from .outputs import check_outputs
from .plan import (
    Group,
    Option,
    Plan,
    Size,
    check_budget,
    check_plan,
    find_groups,
    make_plans,
    predict_costs,
    size_of,
    smallest,
)
from .report import Results, measure, write_report
from .statistics import collect_moments

# Costs are measured on images of about so many pixels: 86 of ImageNet's size, or 5 of 1333x800.
_PIXELS = 4.3e6
# The fine-tuning starts at this share of the learning rate that the network was trained at. By it, three epochs took a
# ResNet-56 with 0.4 of its parameters from 85.7 to 86.9 %; by a third of it to 86.7, and by three times it to 85.3.
_LR = 0.03
# Settings of what is logged and saved: no result depends on them.
_LOGGING = ('default_hooks', 'log_level', 'log_processor', 'visualizer', 'vis_backends')
# Settings that only training reads: what is measured before it does not depend on them.
_TRAINING = ('optim_wrapper', 'param_scheduler', 'train_cfg', 'auto_scale_lr', 'randomness', 'compile', 'runner_type')
# The search for the smallest network ends when its size is known to this share of the parameters.
_PRECISION = 0.01
# The report shows the detections in so many images.
_DRAWN = 4


class Budget(NamedTuple):
    """How large a network may be.

    Attributes:
        amount (float): The size.
        unit (str): What it counts: ``'parameters'``, ``'bytes'``, or ``'kept'``, the share of the parameters.
    """

    amount: float
    unit: str

    def limit(self, plain: Size) -> tuple[float, str]:
        """The largest size, and whether it is in parameters or bytes."""
        return (self.amount * plain.parameters, 'parameters') if self.unit == 'kept' else (self.amount, self.unit)

    def __str__(self) -> str:
        return f'{self.unit}-{self.amount:.10g}'


class Network(NamedTuple):
    """A network that was evaluated."""

    cfg: Config
    checkpoint: Path
    metrics: dict[str, float]


@dataclass
class Compression:
    """Makes a trained network smaller, step by step. Each step writes into the work dir of the config, and is skipped
    if its files are there: called again, an interrupted run goes on.

    ========================  ======================================================================
    ``plain.json``            metrics of the plain network
    ``moments.pth``           second moments of its layers' inputs
    ``costs.json``            the costs of the options that were measured
    ``options.json``          all options of each group, with their sizes and costs, measured or interpolated
    ``plans.json``            one plan or two of which layers share what; two have networks in ``apart`` and ``whole``
    ``plan.json``             the one with the better metric, of which more has to be better
    ``compressed.py``         the config of the shared network
    ``converted.pth, .json``  its checkpoint and metrics before any training
    ``finetuned.pth, .json``  the same after fine-tuning, with the plain network as the teacher
    ``finetuned-...``         the work dir of that training; another one, of more epochs for example, has its own
    ``folded.pth, .py``       the plain network that it equals, and its config
    ``report.html, .json``    the report
    ``goal.txt``              the budget that has the work dir itself
    ``steps.json``            what each file was made from
    ========================  ======================================================================

    Another budget in the same work dir has the files from ``plan.json`` on in a folder of its own, such as
    ``kept-0.3``, and so has each budget that a search tries. What was measured serves all.

    One of ``budget``, ``max_drop`` and ``plan`` is given. What cannot be right about the arguments raises a
    :class:`SharingError`.

    Args:
        cfg (Config): The config of the plain network.
        base (str | None): The path or the name of this config: the config of the shared network builds on it. None if
            it was changed after loading: then it is written beside that one, as ``plain.py``.
        checkpoint (str): The checkpoint of the plain network.
        budget (Budget | None): How large the network may be.
        max_drop (float | None): How many points of a hundred the main metric (mAP, mIoU, PQ, top-1, or else the first)
            may drop before any training: the smallest such network is searched for.
        plan (Path | None): The file of a plan.
        images (int): Number of training images for the statistics.
        steps (int): Number of steps that each block learns for on these images before any training, without labels; 0
            for none.
        epochs (int): Number of epochs of fine-tuning; 0 for none.
    """

    cfg: Config
    base: str | None
    checkpoint: str
    budget: Budget | None = None
    max_drop: float | None = None
    plan: Path | None = None
    images: int = 512
    steps: int = 60
    epochs: int = 1

    def __post_init__(self) -> None:
        if sum(goal is not None for goal in (self.budget, self.max_drop, self.plan)) != 1:
            raise SharingError('Give one of budget, max_drop and plan.')
        if self.max_drop is not None and not 0 <= self.max_drop < math.inf:
            raise SharingError(f'The metric may not drop by {self.max_drop} points: give 0 or more.')
        for name, least in (('images', 1), ('steps', 0), ('epochs', 0)):
            if getattr(self, name) < least:
                raise SharingError(f'{name} is {getattr(self, name)}: give {least} or more.')
        if not self.cfg.get('work_dir'):
            raise SharingError('The config has no work_dir, into which everything is written.')
        self.folder = Path(self.cfg.work_dir)
        self.bare = copy.deepcopy(self.cfg)  # without what only this call knows
        for key in ('work_dir', 'launcher', 'load_from', 'resume'):
            self.bare.pop(key, None)
        self.sources = [without_training(self.bare), Path(self.checkpoint)]

    def run(self) -> Path:
        """Run the steps that are left.

        Returns:
            Path: The report.

        Raises:
            SharingError: If something does not fit, or if another run writes into the work dir. What can be known
                before anything has run is said before.
        """
        join_group(self.cfg.get('launcher', 'none'), self.cfg.get('env_cfg', {}))  # which says where models are
        self.check()
        with self.alone(), images_named(lambda: [self.data]):
            return self.run_steps()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other runs out of the work dir."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock, free = FileLock(self.folder / 'compress.lock'), [True]
        if is_main_process():
            try:
                lock.acquire(blocking=False)
            except Timeout:
                free = [False]
        broadcast_object_list(free)
        if not free[0]:
            raise SharingError(f'Another run writes into {self.folder}: wait for its end, or give another work dir.')
        try:
            yield
        finally:
            lock.release()

    def run_steps(self) -> Path:
        """Run the steps that are left, see :meth:`run`."""
        files = Files(self.folder)
        plain = Network(self.bare, Path(self.checkpoint), self.evaluate(files, 'plain', self.bare, self.checkpoint))
        self.prepare(files)
        files = self.planned(plain.metrics)
        plan = self.plan_in(files)
        if is_main_process():
            console = Console(stderr=True)
            console.width = max(110, console.width)
            console.print(plan.table())
        cfg, last = self.convert(files, self.steps)
        networks = dict(plain=plain, converted=Network(cfg, last, self.evaluate(files, 'converted', cfg, last)))
        training = None
        if self.epochs:
            last, training = self.fine_tune(files, cfg, last)
            networks['finetuned'] = Network(cfg, last, self.evaluate(files, 'finetuned', cfg, last))
        files.make('folded.pth', [cfg.to_dict(), last], partial(self.write_folded, cfg, last))
        sources = [plan.to_json(), *(source for each in networks.values() for source in each[1:])]
        return files.make('report.html', sources, partial(self.write_report, networks, plan, training))

    def check(self) -> None:
        """Raise a :class:`SharingError` for what can be known to be wrong before anything has run."""
        needed = [
            'train_dataloader',
            'val_dataloader',
            'val_evaluator',
            'val_cfg',
            *(['optim_wrapper'] if self.epochs else []),
        ]
        missing = [part for part in needed if self.cfg.get(part) is None]
        if missing:
            raise SharingError(f'The config has no {" and no ".join(missing)}, which compression needs.')
        if shares(self.cfg.model):
            raise SharingError('The network of this config shares already: give the config of the plain network.')
        if self.epochs and learning_rate(self.cfg) is None:
            raise SharingError(
                'The config has no optim_wrapper.optimizer.lr, of which the fine-tuning takes a share: set it, or '
                'give 0 epochs.'
            )
        check_config(self.cfg, ['train_dataloader', 'val_dataloader'])
        if not isinstance(self.cfg.model.type, str):
            raise SharingError(
                'The config names the type of its model by a class, and so cannot be the base of the config of a '
                'shared network: give one that names it by a string.'
            )
        shared = copy.deepcopy(self.bare)
        shared.model.type = shared_type(shared.model.type)
        check_twins(shared)
        if self.plan is None:
            check_outputs(self.model)
        if not self.groups:
            raise SharingError('No layer of this network can become smaller.')
        if self.budget:
            check_budget(smallest(self.groups, self.size), self.size, *self.budget.limit(self.size))
        if self.plan and not self.given.sharing():
            raise SharingError(f'By the plan {self.plan} nothing is shared: give a row a bank.')

    @cached_property
    def model(self) -> nn.Module:
        """The plain network with its weights, in eval mode."""
        return load_model(self.cfg, self.checkpoint).to(get_device())

    @cached_property
    def data(self) -> ConcatDataset:
        return calibration_data(self.bare)

    def loader(self, images: int | None = None) -> DataLoader:
        """Some images for the statistics, by default all."""
        return calibration_loader(self.bare, images or self.images, self.data)

    @cached_property
    def size(self) -> Size:
        return size_of(self.model)

    @cached_property
    def groups(self) -> list[Group]:
        return find_groups(self.model)

    @property
    def layers(self) -> list[str]:
        """The layers that may share."""
        found = [list(group.layers) for group in self.groups]
        if self.plan:
            found += [row.layers for row in self.given.rows]
        return list(dict.fromkeys(name for layers in found for name in layers))

    @cached_property
    def moments(self) -> dict[str, Tensor]:
        return load_checkpoint_file(str(self.folder / 'moments.pth'), mmap=True)

    @cached_property
    def given(self) -> Plan:
        """The plan in the file that was given."""
        source = str(self.plan)
        try:
            text = Path(source).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise SharingError(f'The plan {source} cannot be read: {error}.') from None
        return check_plan(Plan.from_json(text, source), self.model, source)

    def evaluate(self, files: Files, name: str, cfg: Config, checkpoint: str | Path) -> dict[str, float]:
        """The metrics of a network on the validation images."""

        def make(path: Path) -> None:
            runner = self.runner(only_validating(cfg), path.with_suffix(''), load_from=str(checkpoint))
            metrics = runner.val()
            if is_main_process():
                write_text(path, json.dumps(numbers_in(metrics), indent=1))

        path = files.make(f'{name}.json', [without_training(cfg), Path(checkpoint)], make, together=True)
        metrics = json.loads(path.read_text())
        metric = main_metric(metrics)
        say(f'{name}: {metric} {metrics[metric]:.4g}' if metric else f'{name}: nothing is detected, so no metric')
        return metrics

    def runner(self, cfg: Config, work_dir: Path, **settings: Any) -> Runner:
        """A runner of a config with its own work dir."""
        cfg = in_work_dir(cfg, work_dir)
        cfg.update(launcher=self.cfg.get('launcher', 'none'), **settings)
        return RUNNERS.build(cfg)

    def prepare(self, files: Files) -> None:
        """Measure what serves any budget."""
        moments = files.make(
            'moments.pth', [*self.sources, self.images, self.layers], self.write_moments, together=True
        )
        if self.plan is None:
            groups = [each.layers for each in self.groups]
            files.make('options.json', [*self.sources, moments, groups, Option._fields], self.write_options)

    def write_moments(self, path: Path) -> None:
        cache = path.with_suffix('')  # of an interrupted pass
        moments = collect_moments(self.model, self.loader(), self.layers, cache=cache)
        if is_main_process():
            save_checkpoint(moments, path)
            shutil.rmtree(cache, ignore_errors=True)

    @property
    def options(self) -> list[list[Option]]:
        """The options of each group with their costs."""
        read = json.loads((self.folder / 'options.json').read_text())
        return [[Option(bank, Size(*size), cost) for bank, size, cost in each] for each in read]

    def write_options(self, path: Path) -> None:
        """Measure what the options of each group cost."""
        batches = list(within(self.loader(), _PIXELS))
        meter = CostMeter(self.model, batches, self.moments, self.folder / 'costs.json')
        options = predict_costs(self.groups, meter)
        write_text(path, json.dumps(options))

    def planned(self, plain: dict[str, float]) -> Files:
        """The folder of the network, with its plan: the one that was given, one for the budget, or that of the
        smallest network within the drop. The first goal has the work dir itself."""
        text = self.given.to_json() if self.plan else ''
        goal = f'plan-{digest_of([text])[:8]}' if text else str(self.budget or f'drop-{self.max_drop:g}')
        note = self.folder / 'goal.txt'
        first = note.read_text() if note.is_file() else goal
        if is_main_process() and not note.is_file():
            write_text(note, goal)
        files = Files(self.folder if goal == first else self.folder / goal)
        if self.budget:
            return self.plan_for(self.budget, files, main_metric(plain))
        if self.max_drop is not None:
            best = self.search(plain)
            text = self.plan_in(best).to_json()
            files.adopt(best, 'converted.pth', 'converted.json')
        files.make('plan.json', [text], partial(write_text, text=text))
        return files

    def plan_for(self, budget: Budget, files: Files, metric: str) -> Files:
        """A folder with the plan for a budget."""
        plans = files.make('plans.json', [budget, self.folder / 'options.json'], partial(self.write_plans, budget))
        sources = [plans, metric, without_training(self.bare)]
        files.make('plan.json', sources, partial(self.write_plan, files, plans, metric), together=True)
        return files

    def write_plans(self, budget: Budget, path: Path) -> None:
        """The plans for a budget by their names, from the options that were measured."""
        plans = make_plans(self.groups, self.options, self.size, *budget.limit(self.size))
        write_text(path, json.dumps({name: plan.to_json() for name, plan in plans.items()}))

    def write_plan(self, files: Files, plans: Path, metric: str, path: Path) -> None:
        """One of the plans in a file: that of the network with the better metric, only fitted."""
        texts = json.loads(plans.read_text())
        best, found = next(iter(texts)), {}
        if len(texts) > 1 and metric:
            for name, text in texts.items():
                tried = Files(files.folder / name)
                tried.make('plan.json', [text], partial(write_text, text=text))
                score = self.evaluate(tried, 'converted', *self.convert(tried, 0)).get(metric, math.nan)
                found[name] = -math.inf if math.isnan(score) else score
            say(f'{metric} with groups taken apart: {found["apart"]:.4g}, with whole ones: {found["whole"]:.4g}')
            best = max(found, key=lambda name: found[name])
            if not self.steps:
                files.adopt(Files(files.folder / best), 'converted.pth', 'converted.json')
        if is_main_process():
            write_text(path, texts[best])

    def plan_in(self, files: Files) -> Plan:
        """The plan in a folder, which may have been edited there."""
        path = files.folder / 'plan.json'
        return check_plan(Plan.from_json(path.read_text(), str(path)), self.model, str(path))

    def search(self, plain: dict[str, float]) -> Files:
        """The folder of the smallest network whose main metric drops by no more than ``max_drop``, by bisection."""
        if not plain:
            raise SharingError(
                'The plain network detects nothing in the validation images, so it has no metric that may drop: check '
                'the checkpoint, or give a budget.'
            )
        metric = main_metric(plain)
        score = plain[metric]
        most = float(self.max_drop or 0)
        points = 100 if abs(score) <= 1 else 1  # accuracies are given in percent, average precisions from 0 to 1
        fewest = smallest(self.groups, self.size, self.options).parameters
        low, high, best = fewest / self.size.parameters, 1.0, None
        while high - low > _PRECISION:
            kept = round((low + high) / 2, 4)
            budget = Budget(kept, 'kept')
            files = self.plan_for(budget, Files(self.folder / str(budget)), metric)
            found = self.evaluate(files, 'converted', *self.convert(files, self.steps)).get(metric, 0)
            drop = points * (score - found)
            say(f'{kept:.1%} of the parameters: {metric} {found:.4g}, {drop:.2f} points less')
            low, high, best = (low, kept, files) if drop <= most else (kept, high, best)
        if best is None:
            raise SharingError(
                f'No smaller network keeps {metric} within {self.max_drop} points before fine-tuning: allow a larger '
                'drop, or give a budget.'
            )
        return best

    def convert(self, files: Files, steps: int) -> tuple[Config, Path]:
        """The config of the shared network of the plan in a folder, and its checkpoint before any training, after so
        many steps of each block."""
        base = self.base or str(files.folder / 'plain.py')
        text = self.plan_in(files).config(base if '::' in base else relative(base, files.folder), self.bare)

        def write_config(path: Path) -> None:
            if self.base is None:
                dump_config(self.bare, base)
            write_text(path, text)

        def write_checkpoint(path: Path) -> None:
            model = build_model(cfg)
            fit_model(model, self.model, self.checkpoint, self.moments, self.loader(), steps)
            if is_main_process():
                save_checkpoint(converted(model.cpu().state_dict(), self.checkpoint, cfg), path)

        config = files.make('compressed.py', [text, self.bare.to_dict()], write_config)
        cfg, shared = copy.deepcopy(self.bare), load_config(str(config))
        cfg.update({key: shared[key] for key in ('custom_imports', 'runner_type', 'model')})
        sources = [without_training(cfg), *self.sources, self.folder / 'moments.pth', steps]
        return cfg, files.make('converted.pth', sources, write_checkpoint, together=True)

    def fine_tune(self, files: Files, cfg: Config, checkpoint: Path) -> tuple[Path, Path]:
        """Fine-tune the shared network with the plain one as the teacher; returns its checkpoint and the work dir of
        the training."""
        without_path = fine_tuning(cfg, self.epochs, '').to_dict()
        for key in _LOGGING:
            without_path.pop(key, None)
        cfg = fine_tuning(cfg, self.epochs, self.checkpoint)
        sources = [without_path, Path(self.checkpoint), checkpoint]
        folder = files.folder / f'finetuned-{digest_of(sources)[:8]}'

        def make(path: Path) -> None:
            begun = has_begun(folder)
            try:
                self.runner(cfg, folder, resume=begun, load_from=None if begun else str(checkpoint)).train()
                if is_main_process():
                    trained = load_checkpoint_file(find_latest_checkpoint(str(folder)))
                    found = converted(state_dict_of(trained), self.checkpoint, cfg)
                    if names := trained['meta'].get('dataset_meta'):
                        found['meta']['dataset_meta'] = names
                    save_checkpoint(found, path)
            except DivergedError as error:
                raise SharingError(
                    f'The fine-tuning diverged: give a lower optim_wrapper.optimizer.lr, of which it takes {_LR:.0%}, '
                    f'or 0 epochs. ({error})'
                ) from None

        return files.make('finetuned.pth', sources, make, together=True), folder

    def write_folded(self, cfg: Config, checkpoint: Path, path: Path) -> None:
        """Fold the shared network into the plain one that it equals."""
        shared: Any = load_model(cfg, str(checkpoint))
        batch = next(iter(self.loader(2)))
        folded = fold_model(cfg, shared, shared.data_preprocessor(batch, False)['inputs'])
        dump_config(folded.config, path.with_suffix('.py'))
        save_checkpoint(converted(folded.plain.state_dict(), str(checkpoint), folded.config), path)

    def write_report(self, networks: dict[str, Network], plan: Plan, training: Path | None, path: Path) -> None:
        """Write the report on the networks, with the curves of the fine-tuning in its work dir."""
        models = {name: load_model(each.cfg, str(each.checkpoint)) for name, each in networks.items()}
        batch = next(iter(self.loader(1)))
        measured = measure(models, batch)
        last = networks[list(networks)[-1]].checkpoint
        plain: Any = models['plain']
        shape = plain.data_preprocessor(batch, False)['inputs'].shape[1:]
        write_report(
            Results(
                Path(self.cfg.filename or 'network').stem,
                {name: dict(measured[name], metrics=each.metrics) for name, each in networks.items()},
                main_metric(networks['plain'].metrics),  # a detector that finds nothing has none
                [dict(asdict(row), bank=row.bank['type'] if row.bank else '', rank=row.rank) for row in plan.rows],
                read_scalars(training) if training else {},
                self.detections(networks) if is_detector(self.model) else {},
                commands(path.parent, last, None if predicts_masks(plain) else shape, learning_rate(self.cfg)),
            ),
            path.parent,
        )

    def detections(self, networks: dict[str, Network]) -> dict[str, list[np.ndarray]]:
        """What the networks detect in some validation images."""
        from mmdet.apis import init_detector

        dataset = DATASETS.build(self.bare.val_dataloader.dataset)
        files = [Path(dataset.get_data_info(i)['img_path']) for i in range(min(_DRAWN, len(dataset)))]
        found = {}
        for name, each in networks.items():
            cfg = copy.deepcopy(each.cfg)
            cfg.test_dataloader = cfg.val_dataloader  # of which mmdet takes the pipeline
            found[name] = detections_in(init_detector(cfg, str(each.checkpoint), device=get_device()), files).images
        return found


def main_metric(metrics: Iterable[str]) -> str:
    """The name of the main metric: the first that ends in mAP, mIoU, PQ or top1, since COCO's AP follows those of its
    classes if they are evaluated too; otherwise the first of all. It is '' if there are no metrics."""
    names = list(metrics)
    usual = [name for name in names if re.search('(^|[/_])(mAP|mIoU|PQ|top1)$', name)]
    return next(iter([*usual, *names]), '')


def without_training(cfg: Config) -> dict:
    """What of a config the metrics and the statistics of a network depend on; of the training data, the images."""
    found = {key: value for key, value in cfg.to_dict().items() if key not in (*_TRAINING, *_LOGGING)}
    if found.get('val_dataloader') and found.get('train_dataloader'):
        found['train_dataloader'] = found['train_dataloader'].get('dataset')
    return found


def only_validating(cfg: Config) -> Config:
    """The config without training, and without a moving average of weights: those to evaluate are given."""
    cfg = copy.deepcopy(cfg)
    cfg.train_dataloader = cfg.train_cfg = cfg.optim_wrapper = cfg.param_scheduler = None
    cfg.custom_hooks = hooks_except(cfg, EMAHook, EarlyStoppingHook)
    return cfg


def hooks_except(cfg: Config, *kinds: type) -> list:
    """The custom hooks of a config except those of some kinds."""
    return [hook for hook in cfg.get('custom_hooks') or [] if not issubclass(class_of_hook(hook), kinds)]


def learning_rate(cfg: Config) -> float | None:
    """The learning rate that a fine-tuning starts at; None if the config of the plain network has none."""
    rate = ((cfg.get('optim_wrapper') or {}).get('optimizer') or {}).get('lr')
    return None if rate is None else _LR * rate


def fine_tuning(cfg: Config, epochs: int, teacher: str) -> Config:
    """The config of a short fine-tuning: a small part of the learning rate with a cosine schedule, distillation from
    the checkpoint of the plain network, no moving average of the weights, no validation."""
    cfg = copy.deepcopy(cfg)
    cfg.model = without_pretrained(cfg.model)  # the weights are there already
    cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=epochs)
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.optim_wrapper.optimizer.lr = learning_rate(cfg)
    cfg.param_scheduler = dict(type='CosineAnnealingLR', T_max=epochs, by_epoch=True, convert_to_iter_based=True)
    cfg.setdefault('default_hooks', {})
    # Of two checkpoints one is whole while the other is written.
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1, max_keep_ckpts=2)
    # A slow average would be saved in place of what a short training has learnt.
    cfg.custom_hooks = [*hooks_except(cfg, EMAHook), dict(type='DistillationHook', checkpoint=teacher)]
    sampler = cfg.train_dataloader.get('sampler')
    if sampler and 'Infinite' in sampler.type:  # it has no epochs
        cfg.train_dataloader.sampler = dict(type='DefaultSampler', shuffle=True)
    return cfg


def without_pretrained(model: Any) -> Any:
    """The config of a model without the checkpoints that its parts start from."""
    if isinstance(model, dict):
        kept = {key: without_pretrained(value) for key, value in model.items()}
        start = kept.get('init_cfg')
        if isinstance(start, dict) and start.get('type') == 'Pretrained':
            kept['init_cfg'] = None
        elif isinstance(start, (list, tuple)):
            kept['init_cfg'] = [each for each in start if each.get('type') != 'Pretrained'] or None
        if kept.get('pretrained'):
            kept['pretrained'] = None
        return type(model)(kept)
    return type(model)(map(without_pretrained, model)) if isinstance(model, (list, tuple)) else model


def relative(path: str, folder: Path) -> str:
    """A path from a folder; absolute if there is none, as between the drives of Windows."""
    try:
        # `..` is above the folder that a link leads to. A link to the file itself is kept: its own base is beside it.
        inside, name = osp.split(path)
        return osp.relpath(osp.join(osp.realpath(inside), name), osp.realpath(folder))
    except ValueError:
        return osp.abspath(path)


def commands(folder: Path, checkpoint: Path, shape: Sequence[int] | None, lr: float | None) -> dict[str, str]:
    """Commands that use a compressed network. An ONNX model is for images of a shape, (C, H, W); if it is None, there
    can be none. Further training takes a learning rate; if it is None, the config's own."""
    config, plain, small = folder / 'compressed.py', folder / 'folded.pth', folder / 'small.onnx'
    rate = [] if lr is None else [f'optim_wrapper.optimizer.lr={lr:g}']
    words: dict[str, list[Any]] = {
        'Evaluate it': ['test', config, checkpoint],
        'Train it further': ['train', config, '--work-dir', folder / 'further', '--cfg-options']
        + [f'load_from={checkpoint}', *rate],
        'Evaluate the plain network that it equals': ['test', plain.with_suffix('.py'), plain],
    }
    if shape is not None:
        form = ['--onnx', small, '--keep-shared', '--int8', '--shape', *shape]
        words['Write it as a small ONNX model'] = ['fold', config, checkpoint, plain, *form]
    return {title: shlex.join(['mmshared', *map(str, each)]) for title, each in words.items()}
