"""Make a network smaller by other libraries, and keep the numbers beside those of run.py.

Of blocks with shortcuts, `torch-pruning` removes channels inside: it fails on shortcuts without parameters. By
`magnitude` a channel is as important as its filter, by `group` as all weights that go with it. `tucker` decomposes
each convolution of the stages by tensorly-torch, without the images. The knob of each is turned until the network has
the share of the parameters that is asked for. Then the batch norms' statistics are taken again, and the fine-tuning is
that of run.py.

`plain` with `--keep 1` is the network as it is, fine-tuned as long without a teacher, and in int8 by onnxruntime too.
"""

import copy
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import torch
from mmengine.config import Config
from onnxruntime.quantization import CalibrationDataReader, quant_pre_process, quantize_static
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
    """The bytes of a network whose weights and maps onnxruntime quantises, and its metrics there."""
    source, out = folder / 'float32.onnx', folder / 'onnxruntime.onnx'
    quant_pre_process(str(source), str(out), skip_symbolic_shape=True)  # it fails on a dynamic batch
    quantize_static(str(out), str(out), Batches(images), per_channel=True)
    return by_onnxruntime(out, cfg)


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
    'plain': lambda model, *_: model,
    'torch-pruning-magnitude': lambda *args: pruned(*args, 'magnitude'),
    'torch-pruning-group': lambda *args: pruned(*args, 'group'),
    'tucker': tucker,
}


#: What the others need, and README.md installs.
PACKAGES = {'torch-pruning-magnitude': 'torch_pruning', 'torch-pruning-group': 'torch_pruning', 'tucker': 'tltorch'}


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
    parser = parser_of(__doc__, 'work_dirs/peers')
    add_compression(parser)
    parser.add_argument('--peer', nargs='+', choices=PEERS, default=list(PEERS))
    args = parser.parse_args()
    missing = [method for method in args.peer if method in PACKAGES and not find_spec(PACKAGES[method])]
    if missing:
        parser.error(f'{", ".join(missing)}: the package is not installed, see README.md')
    cfg, table = read_config(args), Path(args.config).stem
    left: dict[tuple[str, float], list[Result]] = {}
    for method, keep, seed in product(args.peer, args.keep, args.seeds):
        result = Result(method, keep, 0, args.epochs, seed)
        if not result.path(table).is_file():
            left.setdefault((method, keep), []).append(result)
    if not left:
        return
    loader = calibration_loader(cfg, 512)
    plain = load_model(cfg, args.checkpoint)
    images = [plain.data_preprocessor(batch, False)['inputs'] for batch in loader]
    whole: dict = {}
    for (method, keep), results in left.items():
        folder = args.work_dir / table
        network = to_size(method, plain, keep * size_of(plain).parameters, images[0][:1])
        if method != 'plain':
            update_bn(images, network)
        with stdout_if(False):
            whole = whole or evaluated(plain, cfg, folder / 'plain', args.shape)
            converted = evaluated(network, cfg, folder / f'{method}-{keep}', args.shape)
        for result in results:
            networks = dict(plain=whole, converted=converted)
            if args.epochs:
                tuned, tuning = copy.deepcopy(network), fine_tuning(cfg, args.epochs, args.checkpoint)
                tuning.randomness = dict(seed=result.seed)
                if method == 'plain':
                    tuning.custom_hooks.pop()  # its teacher
                work_dir = folder / result.name
                with stdout_if(False):
                    runner_of(tuned, tuning, work_dir).train()
                    networks['finetuned'] = evaluated(tuned, cfg, work_dir, args.shape)
                    networks |= as_onnx(tuned, cfg, work_dir, args.shape, networks['finetuned']['metrics'])
                    if method == 'plain':
                        networks['onnxruntime'] = quantised(cfg, work_dir, images)
            result.write(table, networks)


if __name__ == '__main__':
    main()
