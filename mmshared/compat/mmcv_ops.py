"""mmcv's operators from torchvision, for an mmcv that was installed without its compiled ones.

mmcv's Python layer calls functions of its compiled extension ``mmcv._ext`` by name, with tensors to fill. This module
implements the functions that mmdet's detectors need with torchvision's operators, which exist for every PyTorch on CPU
and GPU. The arguments are those of the extension. float16 and bfloat16 are computed in float32.

One result differs from the compiled operator by more than rounding: ``roi_pool`` snaps a RoI to whole cells of the
feature map as in Fast R-CNN, while mmcv's keeps its fraction.
"""

import importlib.util
import sys
import types
import warnings
from importlib import import_module
from importlib.machinery import ModuleSpec

import torch
import torchvision
from torch import Tensor

BUILD_HINT = (
    'install mmcv with its compiled operators: pip install setuptools wheel ninja psutil, then pip install '
    '--no-build-isolation --no-cache-dir --force-reinstall --no-deps onedl-mmcv (about ten minutes)'
)

_ops = torch.ops.torchvision


def _full(*tensors: Tensor):
    """The tensors in a precision that torchvision's kernels have on every device."""
    return tuple(t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for t in tensors)


def get_compiler_version() -> str:
    return f'none, operators from torchvision {torchvision.__version__}'


def get_compiling_cuda_version() -> str:
    return torch.version.cuda or 'not available'


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    # A box of (x2 - x1 + offset) pixels is the box with its far corner moved by the offset.
    boxes, scores = _full(boxes, scores)
    return _ops.nms(boxes + boxes.new_tensor([0, 0, offset, offset]), scores, iou_threshold)


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Fills the rows of ``dets`` with (box, decayed score), best first, and returns the indices of the boxes.

    Methods: 0 drops an overlapping box, 1 decays its score linearly, 2 by a Gaussian of width ``sigma``
    (https://arxiv.org/abs/1704.04503, equations 1, 2 and 3).
    """
    inds, scores = torch.arange(len(boxes)), scores.clone()
    corners = boxes + boxes.new_tensor([0, 0, offset, offset])
    kept = []
    while len(inds):
        best = scores[inds].argmax()
        index = inds[best]
        dets[len(kept), :4], dets[len(kept), 4] = boxes[index], scores[index]
        kept.append(index)
        inds = torch.cat([inds[:best], inds[best + 1 :]])
        iou = torchvision.ops.box_iou(corners[index, None], corners[inds])[0]
        if method == 2:
            decay = torch.exp(-iou.square() / sigma)
        else:
            decay = torch.where(iou >= iou_threshold, 1 - iou if method == 1 else 0.0, 1.0)
        scores[inds] *= decay
        inds = inds[scores[inds] >= min_score]
    return torch.stack(kept) if kept else inds


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    if pool_mode == 0:
        raise NotImplementedError(f"RoIAlign with pool_mode='max' is not in torchvision: use 'avg', or {BUILD_HINT}.")
    output.copy_(
        _ops.roi_align(*_full(input, rois), spatial_scale, aligned_height, aligned_width, sampling_ratio, aligned)
    )


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    grad_input.copy_(
        _ops._roi_align_backward(
            *_full(grad_output, rois),
            spatial_scale,
            aligned_height,
            aligned_width,
            *grad_input.shape,
            sampling_ratio,
            aligned,
        )
    )


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    pooled, index = _ops.roi_pool(*_full(input, rois), spatial_scale, pooled_height, pooled_width)
    output.copy_(pooled)
    argmax.copy_(index)


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    grad_output, rois = _full(grad_output.contiguous(), rois)
    grad_input.copy_(
        _ops._roi_pool_backward(
            grad_output, rois, argmax, spatial_scale, pooled_height, pooled_width, *grad_input.shape
        )
    )


def _sigmoid_focal_loss(input: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float) -> Tensor:
    # A target equal to the number of classes is background: all zeros in one-hot form.
    one_hot = torch.nn.functional.one_hot(target, input.size(1) + 1)[:, :-1].to(input)  # (N, C)
    loss = torchvision.ops.sigmoid_focal_loss(input, one_hot, alpha, gamma)  # (N, C)
    return loss * torch.cat([weight, weight.new_ones(1)])[target, None] if weight.numel() else loss


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    input, weight = _full(input, weight)
    output.copy_(_sigmoid_focal_loss(input, target, weight, gamma, alpha))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    input, weight = _full(input.detach(), weight)
    with torch.enable_grad():
        input.requires_grad_()
        loss = _sigmoid_focal_loss(input, target, weight, gamma, alpha).sum()
    grad_input.copy_(torch.autograd.grad(loss, input)[0])


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    *,
    with_bias: bool,
    **geometry,
) -> None:
    if not with_bias:
        bias = weight.new_zeros(len(weight))
    output.copy_(_ops.deform_conv2d(*_full(input, weight, offset, mask, bias), *_geometry(**geometry), True))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    *,
    with_bias: bool,
    **geometry,
) -> None:
    if not with_bias:
        bias = weight.new_zeros(len(weight))
    grads = _ops._deform_conv2d_backward(
        *_full(grad_output, input, weight, offset, mask, bias), *_geometry(**geometry), True
    )
    for filled, grad in zip((grad_input, grad_weight, grad_offset, grad_mask), grads):
        filled.copy_(grad)
    if with_bias:
        grad_bias.copy_(grads[4])


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    *,
    im2col_step: int,
    **geometry,
) -> None:
    bias = weight.new_zeros(len(weight))
    output.copy_(
        _ops.deform_conv2d(*_full(input, weight, offset, _no_mask(input), bias), *_geometry(**geometry), False)
    )


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    *,
    im2col_step: int,
    **geometry,
) -> None:
    grads = _deform_conv_backward(grad_output, input, weight, offset, geometry)
    grad_input.copy_(grads[0])
    grad_offset.copy_(grads[2])


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    *,
    scale: float,
    im2col_step: int,
    **geometry,
) -> None:
    # The gradient of the weight does not depend on its value.
    grads = _deform_conv_backward(grad_output, input, torch.zeros_like(grad_weight), offset, geometry)
    grad_weight.add_(grads[1].to(grad_weight), alpha=scale)


def _deform_conv_backward(grad_output: Tensor, input: Tensor, weight: Tensor, offset: Tensor, geometry: dict):
    bias = weight.new_zeros(len(weight))
    return _ops._deform_conv2d_backward(
        *_full(grad_output, input, weight, offset, _no_mask(input), bias), *_geometry(**geometry), False
    )


def _no_mask(input: Tensor) -> Tensor:
    return input.new_zeros(len(input), 1)


def _geometry(*, group: int, deformable_group: int, **sizes: int) -> tuple:
    """The geometry of a deformable conv in torchvision's order, from the argument names of either of mmcv's two
    versions."""
    short = 'dH dW padH padW dilationH dilationW'
    long = 'stride_h stride_w pad_h pad_w dilation_h dilation_w'
    return *(sizes[name] for name in (short if 'dH' in sizes else long).split()), group, deformable_group


class _TorchvisionExtension(types.ModuleType):
    """Replaces ``mmcv._ext``: mmcv looks up every operator at import, and calls only a few."""

    def __getattr__(self, name: str):
        if name.startswith('__'):
            raise AttributeError(name)

        def missing(*args, **kwargs):
            raise NotImplementedError(
                f'mmcv was installed without compiled operators, and {name!r} is not one of those '
                f'that mmshared takes from torchvision: {BUILD_HINT}.'
            )

        return missing


SUPPLIED = (
    'get_compiler_version',
    'get_compiling_cuda_version',
    'nms',
    'softnms',
    'roi_align_forward',
    'roi_align_backward',
    'roi_pool_forward',
    'roi_pool_backward',
    'sigmoid_focal_loss_forward',
    'sigmoid_focal_loss_backward',
    'deform_conv_forward',
    'deform_conv_backward_input',
    'deform_conv_backward_parameters',
    'modulated_deform_conv_forward',
    'modulated_deform_conv_backward',
)


#: The operators in whose place mmdet puts a function or class of its own that raises, if it is imported first, by the
#: modules that it can import without them.
_PLACEHOLDERS = {
    'mmdet.apis.inference': 'RoIPool',
    'mmdet.evaluation.metrics.dump_odvg_results': 'batched_nms',
    'mmdet.structures.mask.structures': 'roi_align',
    'mmdet.utils.large_image': 'batched_nms',
}


def supply() -> None:
    """Put the operators where mmcv looks for its extension, unless the real one is installed."""
    name = 'mmcv._ext'
    if name in sys.modules or importlib.util.find_spec(name) is not None:
        return
    if any(module.startswith('mmdet.models.') for module in sys.modules):
        warnings.warn(
            'mmdet.models was imported before mmshared, while mmcv had no compiled operators, and keeps its own '
            f'error for them: import mmshared before it, or {BUILD_HINT}.',
            stacklevel=3,
        )
    extension = _TorchvisionExtension(name, __doc__)
    extension.__spec__ = ModuleSpec(name, None)
    for function in SUPPLIED:
        setattr(extension, function, globals()[function])
    sys.modules[name] = extension
    for module, operator in _PLACEHOLDERS.items():
        if module in sys.modules:
            setattr(sys.modules[module], operator, getattr(import_module('mmcv.ops'), operator))
