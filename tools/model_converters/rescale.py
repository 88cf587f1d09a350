"""Start a network of repeated kernels from a trained small one: the kernels of the small network become those that are
repeated, its batch norms and its linear layer are repeated with them.

With plain copies (linear), and with signs that are all plus as at the start (bireal), the large network computes what
the small one does, in eval mode. Plain copies get equal gradients: training does not tell them apart.
"""
import argparse
from pathlib import Path
from typing import Dict, Sequence

import torch
from mmengine.config import Config
from torch import Tensor, nn

from mmshared import RepeatedKernel, SharingError, shared_stages
from mmshared.analysis.models import build_model
from mmshared.cli import config_path, errors_in_a_sentence, load_checkpoint_file
from mmshared.sharing.repeated_kernel import RepeatedConv2d
from mmshared.sharing.surgery import following_norm


def share_inputs(weight: Tensor, in_channels: int) -> Tensor:
    """Divide a weight, (O, i, ...), by the number of copies of each input among ``in_channels``: on copies the sum is
    what it was."""
    copies = torch.bincount(torch.arange(in_channels) % weight.shape[1])  # (i, )
    return weight / copies.view(-1, *[1] * (weight.dim() - 2))


def widen(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """Repeat a tensor to a shape: outputs as they are, inputs divided by the number of their copies."""
    if tensor.dim() > 1:
        tensor = share_inputs(tensor, shape[1])
    for axis, size in enumerate(shape):
        tensor = tensor.index_select(axis, torch.arange(size) % tensor.shape[axis])
    return tensor


def rescale(model: nn.Module, small: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """The state dict of a model of repeated kernels from that of a small network.

    A 1x1 conv that the small network does not have, beside a shortcut of its own, becomes the identity, and the batch
    norm behind it too. What transforms the copies stays as it is in the model.

    Args:
        model (nn.Module): The large model.
        small (dict): The state dict of the plain small network, or of a repeated one of width 1.

    Raises:
        SharingError: If the model has no such kernels, or if the small network is another.
    """
    banks = [bank for stage in shared_stages(model).values() for bank in stage.values()]
    if not banks or not all(isinstance(bank, RepeatedKernel) and not bank.passes for bank in banks):
        raise SharingError("The network of the config does not repeat kernels within its layers: it needs the bank "
                           "RepeatedKernel with mode='intra'.")
    convs = {name: conv for name, conv in model.named_modules() if isinstance(conv, RepeatedConv2d)}
    for name in [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1:]:
        there, own = small.get(f'{name}.weight'), model.get_submodule(name).weight
        if there is not None and len(there) != len(own):
            raise SharingError(f'The checkpoint is of a network of {len(there)} classes, and that of the config has '
                               f'{len(own)}: set its number of classes to {len(there)}.')
    state_dict, rest, made = {}, dict(small), set()
    for key, own in model.state_dict().items():
        name, _, part = key.rpartition('.')
        if '.transform.' in key or name in made:
            state_dict[key] = own
            continue
        tensor = rest.pop(key, None)
        if name in convs and part == 'kernel':
            tensor = rest.pop(f'{name}.weight', None) if tensor is None else tensor
            if tensor is None and own.shape[2:] == (1, 1) and own.shape[0] == own.shape[1]:
                tensor = torch.eye(len(own)).view(own.shape)
                parent, _, child = name.rpartition('.')
                norm = following_norm(model.get_submodule(parent), child)
                norm.weight.data.copy_((norm.running_var + norm.eps).sqrt())
                norm.bias.data.zero_()
                norm.running_mean.zero_()
                made |= {module_name for module_name, module in model.named_modules() if module is norm}
        elif tensor is None and part == 'added_bias':
            tensor = torch.zeros_like(own)
        smaller = tensor is not None and tensor.dim() == own.dim() and all(
            a <= b for a, b in zip(tensor.shape, own.shape))
        if not smaller or part == 'kernel' and tensor.shape != own.shape:
            raise SharingError(f'The checkpoint is not of the network that is repeated: for {key} of the shape '
                               f'{tuple(own.shape)} it has {"nothing" if tensor is None else tuple(tensor.shape)}.')
        state_dict[key] = share_inputs(tensor, convs[name].in_channels) if part == 'kernel' else widen(
            tensor, own.shape)
    if rest:
        raise SharingError(f'The checkpoint is not of the network that is repeated: it has {next(iter(rest))} too.')
    return state_dict


@errors_in_a_sentence()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='the config of the large network, of repeated kernels')
    parser.add_argument('small', help='the checkpoint of the small network')
    parser.add_argument('out', type=Path, help='the checkpoint to write')
    args = parser.parse_args()
    model = build_model(Config.fromfile(config_path(args.config)))
    checkpoint = load_checkpoint_file(args.small)
    state_dict = rescale(model, dict(checkpoint.get('state_dict', checkpoint)))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    torch.save(dict(state_dict=state_dict), args.out)
    print(f'wrote {args.out}: train it with --cfg-options load_from={args.out}')


if __name__ == '__main__':
    main()
