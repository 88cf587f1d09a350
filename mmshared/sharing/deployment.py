"""A trained network as one for inference."""
import copy
import time
from typing import Dict, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .base import SharedConv2d
from .surgery import following_norm


@torch.no_grad()
def deploy(model: nn.Module, pictures: Tensor) -> nn.Module:
    """Make a network for inference: plain convs in place of shared ones, batch norms fused into the convs before them.

    Each shared conv becomes the fastest of its :meth:`SharedConv2d.forms` for an input of the size that these pictures
    give it, on their device. So the choice is made once, here, and not in a forward pass.

    Args:
        model (nn.Module): A network of pictures: a backbone or a classifier. It stays as it is.
        pictures (Tensor): Examples of its input, (N, 3, H, W).

    Returns:
        nn.Module: A copy of the network in eval mode.
    """
    network = copy.deepcopy(model)
    network.eval()
    inputs: Dict[nn.Module, Tensor] = {}
    handles = [conv.register_forward_pre_hook(lambda conv, args: inputs.__setitem__(conv, args[0]))
               for conv in network.modules() if isinstance(conv, SharedConv2d)]
    network(pictures)
    for handle in handles:
        handle.remove()
    choice: Dict[tuple, int] = {}
    for parent in list(network.modules()):
        vars(parent).pop('banks', None)
        for name, conv in list(parent.named_children()):
            if isinstance(conv, SharedConv2d):
                forms, x = [form.eval() for form in conv.forms()], inputs[conv]
                # Convs that are alike at inputs of one size have the same fastest form.
                alike = (x.shape, conv.stride, *(weight.shape for form in forms for weight in form.parameters()))
                if alike not in choice:
                    choice[alike] = _fastest(forms, x)
                convs = forms[choice[alike]]
            elif isinstance(conv, nn.Conv2d):
                convs = nn.Sequential(conv)
            else:
                continue
            norm = following_norm(parent, name)
            if norm is not None:
                convs[-1] = fuse_conv_bn_eval(convs[-1], norm)
                # In its place, as the network calls it by its name.
                setattr(parent, next(key for key, child in parent.named_children() if child is norm), nn.Identity())
            setattr(parent, name, convs if len(convs) > 1 else convs[0])
    return network


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
