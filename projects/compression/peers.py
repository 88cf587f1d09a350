"""Make a network smaller by other libraries, and keep the numbers beside those of run.py.

Of blocks with shortcuts, `torch-pruning` removes channels inside: it fails on shortcuts without parameters. By
`magnitude` a channel is as important as its filter, by `group` as all weights that go with it. `tucker` decomposes
each convolution of the stages by tensorly-torch, without the images. The knob of each is turned until the network has
the share of the parameters that is asked for. Then the batch norms' statistics are taken again, and the fine-tuning is
that of run.py.
"""

import argparse
import copy
import json
from itertools import product
from pathlib import Path

import torch
from mmengine.registry import RUNNERS
from run import RESULTS
from torch import nn
from torch.optim.swa_utils import update_bn

from mmshared import SharingError
from mmshared.compress.calibration import calibration_loader
from mmshared.compress.pipeline import fine_tuning
from mmshared.compress.plan import size_of
from mmshared.engine.build import load_model
from mmshared.engine.checkpoint import write_text
from mmshared.engine.config import load_config, merge_options
from mmshared.engine.runner import SharingRunner
from mmshared.sharing.layers import stages_of
from mmshared_cli import add_cfg_options, errors_in_a_sentence, stdout_if

#: How often the interval of the knob is halved.
HALVINGS = 10


@RUNNERS.register_module()
class PeerRunner(SharingRunner):
    """Trains and tests a network that no config describes."""

    network: nn.Module

    def build_model(self, model):
        return self.network


def pruned(model: nn.Module, share: float, image: torch.Tensor, importance: str) -> nn.Module:
    """Keep a share of the channels between the convolutions of each block of two, over all blocks together."""
    import torch_pruning as tp

    blocks = [block for stage in stages_of(model) for block in model.get_submodule(stage)]
    inside = {block.conv1 for block in blocks if hasattr(block, 'conv2')}
    layers = {each for each in model.modules() if isinstance(each, (nn.Conv2d, nn.Linear))}
    measures = dict(magnitude=tp.importance.MagnitudeImportance, group=tp.importance.GroupMagnitudeImportance)
    tp.pruner.BasePruner(
        model,
        image,
        measures[importance](p=2),
        global_pruning=True,
        pruning_ratio=1 - share,
        max_pruning_ratio=0.95,
        ignored_layers=list(layers - inside),
    ).step()
    return model


def tucker(model: nn.Module, share: float, image: torch.Tensor) -> nn.Module:
    """Decompose each convolution of the stages, with a share of its parameters."""
    from tltorch import FactorizedConv

    for stage in stages_of(model):
        for module in list(model.get_submodule(stage).modules()):
            for name, conv in module.named_children():
                if isinstance(conv, nn.Conv2d) and conv.kernel_size != (1, 1):
                    options = dict(factorization='tucker', implementation='factorized', fixed_rank_modes='spatial')
                    setattr(module, name, FactorizedConv.from_conv(conv, rank=share, **options))
    return model


PEERS = {
    'torch-pruning-magnitude': lambda *args: pruned(*args, 'magnitude'),
    'torch-pruning-group': lambda *args: pruned(*args, 'group'),
    'tucker': tucker,
}


def to_size(method: str, plain: nn.Module, parameters: float, image: torch.Tensor) -> nn.Module:
    """The largest network by a method that has no more parameters."""
    low, high, best = 0.0, 1.0, None
    for _ in range(HALVINGS):
        share = (low + high) / 2
        found = PEERS[method](copy.deepcopy(plain), share, image)
        low, high, best = (share, high, found) if size_of(found).parameters <= parameters else (low, share, best)
    if best is None:
        raise SharingError(f'{method} does not make the network as small as {parameters:,.0f} parameters.')
    return best


@errors_in_a_sentence()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='the config of the plain network')
    parser.add_argument('checkpoint', help='its checkpoint')
    parser.add_argument('--peer', nargs='+', choices=PEERS, default=list(PEERS))
    parser.add_argument('--keep', nargs='+', type=float, required=True, metavar='SHARE', help='of the parameters')
    parser.add_argument('--epochs', type=int, default=0, help='of fine-tuning')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0], help='of the fine-tuning')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/peers'))
    add_cfg_options(parser)
    args = parser.parse_args()
    cfg = load_config(args.config)
    merge_options(cfg, args.cfg_options)
    cfg.runner_type = 'PeerRunner'
    name = Path(args.config).stem
    loader = calibration_loader(cfg, 512)
    plain = load_model(cfg, args.checkpoint)
    images = [plain.data_preprocessor(batch, False)['inputs'] for batch in loader]
    for method, seed, keep in product(args.peer, args.seeds, args.keep):
        out = RESULTS / name / f'{method}-{keep}_steps-0_epochs-{args.epochs}_seed-{seed}.json'
        if out.is_file():
            continue
        size = size_of(plain)
        network = to_size(method, plain, keep * size.parameters, images[0][:1])
        update_bn(images, network)
        PeerRunner.network = network
        found = dict(plain=plain, converted=network, **(dict(finetuned=network) if args.epochs else {}))
        networks = {}
        with stdout_if(False):
            for step, each in found.items():
                PeerRunner.network = each
                run = fine_tuning(cfg, args.epochs, args.checkpoint) if step == 'finetuned' else copy.deepcopy(cfg)
                run.work_dir, run.randomness = str(args.work_dir / name / out.stem / step), dict(seed=seed)
                if step == 'finetuned':
                    PeerRunner.from_cfg(run).train()
                metrics = PeerRunner.from_cfg(dict(cfg, work_dir=run.work_dir)).val()
                networks[step] = dict(size_of(each)._asdict(), metrics=metrics)
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(
            out, json.dumps(dict(plan=method, keep=keep, steps=0, epochs=args.epochs, seed=seed, **networks), indent=1)
        )
        print(out.stem, {key: each['metrics'] for key, each in networks.items()}, flush=True)


if __name__ == '__main__':
    main()
