"""A trained network as one for inference."""
import copy
import time
from typing import Dict, Optional, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._pytree import tree_leaves

from .base import Bank, SharedConv2d, SharingError, generate_once
from .surgery import following_norm


@torch.no_grad()
def deploy(model: nn.Module, pictures: Tensor) -> nn.Module:
    """Make a network for inference: plain convs in place of shared ones, batch norms fused into the convs before them
    where these are plain.

    Each shared conv becomes the fastest of its :meth:`SharedConv2d.forms` for an input of the size that these pictures
    give it, on their device. So the choice is made once, here, and not in a forward pass.

    Args:
        model (nn.Module): A network of pictures: a backbone or a classifier. It stays as it is.
        pictures (Tensor): Examples of its input, (N, 3, H, W).

    Returns:
        nn.Module: A copy of the network in eval mode.

    Raises:
        SharingError: If the outputs for these pictures are not the same.
    """
    network = copy.deepcopy(model)
    network.eval()
    inputs: Dict[nn.Module, Tensor] = {}
    handles = [conv.register_forward_pre_hook(lambda conv, args: inputs.__setitem__(conv, args[0]))
               for conv in network.modules() if isinstance(conv, SharedConv2d)]
    expected = network(pictures)
    for handle in handles:
        handle.remove()
    choice: Dict[tuple, int] = {}
    with generate_once(module for module in network.modules() if isinstance(module, Bank)):
        for parent in list(network.modules()):
            vars(parent).pop('banks', None)
            for name, conv in list(parent.named_children()):
                norm = following_norm(parent, name) if isinstance(conv, (SharedConv2d, nn.Conv2d)) else None
                fused = norm is not None and norm.track_running_stats
                if isinstance(conv, SharedConv2d):
                    convs = _form(conv, inputs.get(conv), norm if fused else None, choice)
                elif type(conv) is nn.Conv2d:
                    convs = nn.Sequential(conv)
                else:
                    continue
                if fused and type(convs[-1]) is nn.Conv2d:
                    convs[-1] = fuse_conv_bn_eval(convs[-1], norm)
                    # In its place, as the network calls it by its name.
                    place = next(key for key, child in parent.named_children() if child is norm)
                    setattr(parent, place, nn.Identity())
                setattr(parent, name, convs if len(convs) > 1 else convs[0])
    deployed = network(pictures)
    pairs = zip(tree_leaves(deployed), tree_leaves(expected))
    difference = max((a - b).abs().max() / b.abs().max() for a, b in pairs)
    if not difference < 0.1:  # what half precision may bring
        raise SharingError(f'The network cannot be deployed: its outputs would differ by a relative {difference:.2g}, '
                           'as it does not call its batch norms behind the convs that are before them.')
    return network


def _form(conv: SharedConv2d, x: Optional[Tensor], norm: Optional[nn.Module], choice: Dict[tuple, int]
          ) -> nn.Sequential:
    """The fastest form of a conv for an input, with the norm behind it where that cannot be fused; convs that are
    alike have one choice. A conv without an input, which the network does not call, is folded."""
    forms = [form.eval() for form in conv.forms()]
    if x is None:
        return forms[0]
    weights = [weight.shape for form in forms for weight in form.parameters()]
    alike = (x.shape, conv.stride, conv.padding, conv.dilation, norm is None, *weights)
    if alike not in choice:
        choice[alike] = _fastest([form if norm is None or type(form[-1]) is nn.Conv2d else nn.Sequential(form, norm)
                                  for form in forms], x)
    return forms[choice[alike]]


def _fastest(forms: Sequence[nn.Module], x: Tensor, rounds: int = 7) -> int:
    """The position of the form that takes the least time, in the fastest of some rounds after one to warm up."""

    def seconds(form: nn.Module) -> float:
        start = time.perf_counter()
        form(x)
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        return time.perf_counter() - start

    if len(forms) == 1:
        return 0
    taken = [[seconds(form) for form in forms] for _ in range(rounds + 1)][1:]
    least = [min(times) for times in zip(*taken)]
    return least.index(min(least))
