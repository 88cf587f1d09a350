"""Make a network smaller by other libraries, and keep the numbers beside those of run.py.

`torch-pruning` removes channels inside blocks with shortcuts: it fails on shortcuts without parameters. Of a
detector's head it removes outputs of the fully connected layers. By `magnitude` a channel is as important as its
filter, by `group` as all weights that are removed with it. `tucker` decomposes each convolution of the stages by
tensorly-torch, without the images. The knob of each is turned until the network has the share of the parameters that
is asked for. Then the batch norms' statistics are taken again, and the fine-tuning is that of run.py.

`plain` with `--keep 1` is the network as it is, fine-tuned as long without a teacher, and in int8 by onnxruntime too.
"""

import copy
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import torch
from mmengine.config import Config
from onnxruntime.quantization import CalibrationDataReader, quantize_static
from results import Result, add_compression, as_onnx, by_onnxruntime, evaluated, parser_of, read_config, runner_of
from torch import nn
from torch.optim.swa_utils import update_bn

from mmshared import SharingError
from mmshared.compress.calibration import calibration_loader
from mmshared.compress.pipeline import fine_tuning
from mmshared.compress.plan import size_of
from mmshared.engine.build import load_model
from mmshared.sharing.layers import stages_of
from mmshared_cli import errors_in_a_sentence, stdout_if

#: How often the interval of the knob is halved.
HALVINGS = 10


class Batches(CalibrationDataReader):
    """Images as onnxruntime reads them."""

    def __init__(self, images: list[torch.Tensor]):
        self.images = iter(images)

    def get_next(self) -> dict | None:
        return next(({'images': each.numpy()} for each in self.images), None)


def quantised(cfg: Config, folder: Path, images: list[torch.Tensor]) -> dict:
    """The bytes of a network whose weights and maps onnxruntime quantises, and its metrics there.

    Only convolutions and products become those of integers: with the boxes of a detector in 8 bits it finds nothing.
    """
    out = folder / 'onnxruntime.onnx'
    products = ['Conv', 'Gemm', 'MatMul']
    quantize_static(folder / 'float32.onnx', out, Batches(images), per_channel=True, op_types_to_quantize=products)
    return by_onnxruntime(out, cfg)


class Forward(nn.Module):
    """A network of mmengine's that is called with a batch."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, batch: dict) -> object:
        return self.network(**batch, mode='tensor')


def inner_layers(block: nn.Module) -> list[nn.Module]:
    """The layers of a block whose outputs stay inside: all its convolutions except the last. A fully connected layer
    is a block of a detector's head, whose outputs only the next one sees."""
    if isinstance(block, nn.Linear):
        return [block]
    children = [child for name, child in block.named_children() if name.startswith('conv')]
    return [each for child in children for each in child.modules() if isinstance(each, nn.Conv2d)][:-1]


def pruned(model: nn.Module, share: float, batch: dict, importance: str) -> nn.Module:
    """Keep a share of the channels inside the blocks, over all of them together."""
    import torch_pruning as tp

    blocks = [block for stage in stages_of(model) for block in model.get_submodule(stage)]
    inside = {layer for block in blocks for layer in inner_layers(block)}
    layers = {each for each in model.modules() if isinstance(each, (nn.Conv2d, nn.Linear))}
    # In Torch-Pruning 1.6.1 MagnitudeImportance is another name of GroupMagnitudeImportance.
    reduction = dict(magnitude='first', group='mean')[importance]
    tp.pruner.BasePruner(
        Forward(model),
        batch,
        tp.importance.GroupMagnitudeImportance(p=2, group_reduction=reduction),
        global_pruning=True,
        pruning_ratio=1 - share,
        max_pruning_ratio=0.95,
        ignored_layers=list(layers - inside),
        forward_fn=nn.Module.__call__,
    ).step()
    return model


def tucker(model: nn.Module, share: float, batch: dict) -> nn.Module:
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
    'plain': lambda model, *_: model,
    'torch-pruning-magnitude': lambda *args: pruned(*args, 'magnitude'),
    'torch-pruning-group': lambda *args: pruned(*args, 'group'),
    'tucker': tucker,
}


#: What the others need, and README.md installs.
PACKAGES = {'torch-pruning-magnitude': 'torch_pruning', 'torch-pruning-group': 'torch_pruning', 'tucker': 'tltorch'}


def to_size(method: str, plain: nn.Module, parameters: float, batch: dict) -> nn.Module:
    """The largest network by a method that has no more parameters."""
    low, high, best = 0.0, 1.0, None
    for _ in range(HALVINGS):
        share = (low + high) / 2
        found = PEERS[method](copy.deepcopy(plain), share, batch)
        low, high, best = (share, high, found) if size_of(found).parameters <= parameters else (low, share, best)
    if best is None:
        raise SharingError(f'{method} does not make the network as small as {parameters:,.0f} parameters.')
    return best


@errors_in_a_sentence()
def main() -> None:
    parser = parser_of(__doc__, 'work_dirs/peers')
    add_compression(parser)
    parser.add_argument('--peer', nargs='+', choices=PEERS, required=True)
    args = parser.parse_args()
    missing = [method for method in args.peer if method in PACKAGES and not find_spec(PACKAGES[method])]
    if missing:
        parser.error(f'{", ".join(missing)}: the package is not installed, see README.md')
    cfg, table = read_config(args), Path(args.config).stem
    left: dict[tuple[str, float], list[Result]] = {}
    for method, keep, seed in product(args.peer, args.keep, args.seeds):
        result = Result(method, keep, 0, args.epochs, seed)
        if not result.is_there(table):
            left.setdefault((method, keep), []).append(result)
    if not left:
        return
    loader = calibration_loader(cfg, 512)
    plain = load_model(cfg, args.checkpoint)
    if getattr(plain.backbone, 'norm_eval', False):
        parser.error('the statistics of norms cannot be taken again: add --cfg-options model.backbone.norm_eval=False')
    batches = [plain.data_preprocessor(batch, False) for batch in loader]
    example = {name: each[:1] for name, each in batches[0].items()}
    shape = tuple(example['inputs'].shape[1:])
    whole: dict = {}
    for (method, keep), results in left.items():
        folder = args.work_dir / table
        network = to_size(method, plain, keep * size_of(plain).parameters, example)
        if method != 'plain':
            update_bn(batches, Forward(network))
        with stdout_if(False):
            whole = whole or evaluated(plain, cfg, folder / 'plain', shape)
            converted = evaluated(network, cfg, folder / f'{method}-{keep}', shape)
        for result in results:
            networks, last, work_dir = dict(plain=whole, converted=converted), network, folder / result.name
            with stdout_if(False):
                if args.epochs:
                    last, tuning = copy.deepcopy(network), fine_tuning(cfg, args.epochs, args.checkpoint)
                    tuning.randomness = dict(seed=result.seed)
                    if method == 'plain':
                        tuning.custom_hooks.pop()  # its teacher
                    runner_of(last, tuning, work_dir).train()
                    networks['finetuned'] = evaluated(last, cfg, work_dir, shape)
                networks |= as_onnx(last, cfg, work_dir, shape, [*networks.values()][-1]['metrics'])
                if method == 'plain' and 'float32' in networks:
                    networks['onnxruntime'] = quantised(cfg, work_dir, [batch['inputs'] for batch in batches])
            result.write(table, networks)


if __name__ == '__main__':
    main()
