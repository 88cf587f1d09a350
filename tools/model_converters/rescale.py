"""Start a network of repeated kernels from a trained small one: the kernels of the small network become those that are
repeated.

Repeated within each layer, the batch norms and the linear layer of the small network are repeated with them: with
plain copies (linear), and with signs that are all plus as at the start (bireal), the large network computes what the
small one does, in eval mode. Plain copies get equal gradients: training does not tell them apart. A network of plain
copies becomes one of the same width with another transform in the same way.

Repeated between layers, as in the VGGs, the layers that the small network does not have begin as the config has them.
"""

import argparse
from collections.abc import Sequence

import torch
from mmengine.config import DictAction
from torch import Tensor, nn

from mmshared import RepeatedKernel, SharingError, banks
from mmshared.cli import check_files, errors_in_a_sentence, output_file
from mmshared.engine.build import build_model
from mmshared.engine.checkpoint import load_checkpoint_file, save_checkpoint, state_dict_of
from mmshared.engine.config import load_config, merge_options
from mmshared.sharing.repeated_kernel import RepeatedLayer
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


def rescale(model: nn.Module, small: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict of a model of repeated kernels from that of a small network.

    Args:
        model (nn.Module): The large model.
        small (dict): The state dict of the plain small network, or of a repeated one of width 1 or that of the model.

    Returns:
        tuple[dict, list[str]]: The state dict; the layers that begin as they are in the model.

    Raises:
        SharingError: If the model has no such kernels, or if the small network is another.
    """
    modes = {bank.mode if isinstance(bank, RepeatedKernel) else None for bank in banks(model)}
    if len(modes) != 1 or not modes <= {'intra', 'inter'}:
        raise SharingError(
            'The network of the config does not repeat kernels within its layers or between them: it '
            "needs the bank RepeatedKernel with mode='intra' or mode='inter'."
        )
    head = ([None] + [name for name, module in model.named_modules() if isinstance(module, nn.Linear)])[-1]
    there, own = small.get(f'{head}.weight'), model.state_dict().get(f'{head}.weight')
    if there is not None and own is not None and there.dim() and len(there) != len(own):
        raise SharingError(
            f'The checkpoint is of a network of {len(there)} classes, and that of the config has '
            f'{len(own)}: add --cfg-options model.head.num_classes={len(there)}.'
        )
    return (_within_layers(model, small), []) if modes == {'intra'} else _between_layers(model, small, head)


def _between_layers(
    model: nn.Module, small: dict[str, Tensor], head: str | None
) -> tuple[dict[str, Tensor], list[str]]:
    """The kernels that are passed on are those of the small network's convs, and what it lacks begins afresh."""
    state_dict, taken = model.state_dict(), set()
    for key, tensor in small.items():
        name, _, part = key.rpartition('.')
        own = f'{name}.bank.kernel' if part == 'weight' and f'{name}.bank.kernel' in state_dict else key
        if own == f'{head}.weight' and own in state_dict and tensor.shape != state_dict[own].shape:
            continue  # it is of the features of another layer
        if own not in state_dict or tensor.shape != state_dict[own].shape:
            raise SharingError(
                f'The checkpoint is not of the network whose kernels are repeated: it has {key} of the '
                f'shape {tuple(tensor.shape)}.'
            )
        state_dict[own] = tensor
        taken.add(own)
    parameters, left = dict(model.named_parameters()), [key for key in state_dict if key not in taken]
    for key in left:
        if state_dict[key].dim() == 4 and '.transform.' not in key:
            raise SharingError(
                f'The checkpoint is not of the network whose kernels are repeated: it has nothing for '
                f'{key} of the shape {tuple(state_dict[key].shape)}.'
            )
    return state_dict, list(
        dict.fromkeys(
            key.partition('.transform.')[0].removesuffix('.bias').removesuffix('.weight')
            for key in left
            if key in parameters
        )
    )


def _within_layers(model: nn.Module, small: dict[str, Tensor]) -> dict[str, Tensor]:
    """Everything is repeated as the kernels are.

    A 1x1 conv that the small network does not have, beside a shortcut of its own, becomes the identity, and the batch
    norm behind it too. What transforms the copies stays as it is in the model.
    """
    convs = {name: conv for name, conv in model.named_modules() if isinstance(conv, RepeatedLayer)}
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
        smaller = (
            tensor is not None and tensor.dim() == own.dim() and all(a <= b for a, b in zip(tensor.shape, own.shape))
        )
        if not smaller or part == 'kernel' and tensor.shape != own.shape:
            raise SharingError(
                f'The checkpoint is not of the network that is repeated: for {key} of the shape '
                f'{tuple(own.shape)} it has {"nothing" if tensor is None else tuple(tensor.shape)}.'
            )
        if part == 'kernel':
            bias = small.get(f'{name}.{"bias" if convs[name].added_bias is None else "added_bias"}')
            if bias is None or len(bias) == len(tensor):
                tensor = share_inputs(tensor, convs[name].in_channels)
            elif len(bias) != convs[name].out_channels:
                raise SharingError(
                    f'The checkpoint is of a network whose {name} repeats its kernel to {len(bias)} '
                    f'channels, and here it has {convs[name].out_channels}: give one of width 1, or of '
                    'the width of the config.'
                )
            state_dict[key] = tensor
        else:
            state_dict[key] = widen(tensor, own.shape)
    if rest:
        raise SharingError(f'The checkpoint is not of the network that is repeated: it has {next(iter(rest))} too.')
    return state_dict


@errors_in_a_sentence()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='the config of the large network, of repeated kernels')
    parser.add_argument('small', help='the checkpoint of the small network')
    parser.add_argument('out', type=output_file, help='the checkpoint to write')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={}, help='changes of the config')
    args = parser.parse_args()
    check_files(parser, args.config, args.small, args.out)
    cfg = load_config(args.config)
    merge_options(cfg, args.cfg_options)
    state_dict, fresh = rescale(build_model(cfg), state_dict_of(load_checkpoint_file(args.small)))
    save_checkpoint(dict(state_dict=state_dict), args.out)
    if fresh:
        print(f'as the config begins: {", ".join(fresh)}')
    print(f'wrote {args.out}: train it with --cfg-options load_from={args.out}')


if __name__ == '__main__':
    main()
