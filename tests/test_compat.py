"""mmcv's operators from torchvision: against torchvision's reference, against finite differences, and against mmcv's
own compiled ones where an mmcv has them."""

import subprocess
import sys

import mmcv.ops
import pytest
import torch
import torchvision
from torch.autograd import gradcheck

from helpers import ROOT
from mmshared.compat import mmcv_ops

supplied = 'torchvision' in mmcv.ops.get_compiler_version()
compiled = None if supplied else sys.modules['mmcv._ext']
from_torchvision = pytest.mark.skipif(not supplied, reason='mmcv has its compiled operators here')
from_mmcv = pytest.mark.skipif(supplied, reason='mmcv has no compiled operators here (make install OPS=compiled)')


def boxes(count=40, size=60):
    corners = torch.rand(count, 2) * size
    return torch.cat([corners, corners + 1 + torch.rand(count, 2) * size / 2], 1)


def rois(count=5):
    return torch.cat([torch.randint(2, (count, 1)), boxes(count, 12)], 1).double()


def feature(channels=3):
    return torch.randn(2, channels, 16, 16, dtype=torch.double, requires_grad=True)


@from_torchvision
class TestTorchvision:
    def test_nms_is_torchvisions(self):
        candidates, scores = boxes(), torch.rand(40)
        kept = mmcv.ops.nms(candidates, scores, 0.4)[1]
        assert torch.equal(kept, torchvision.ops.nms(candidates, scores, 0.4))
        # Two boxes of 2x1 and 1x1 pixels have the IoU 1/2; counted from corner to corner, with offset 1, 4/6.
        pair = torch.tensor([[0.0, 0, 2, 1], [0.0, 0, 1, 1]])
        assert len(mmcv.ops.nms(pair, scores[:2], 0.6)[1]) == 2
        assert len(mmcv.ops.nms(pair, scores[:2], 0.6, offset=1)[1]) == 1

    @pytest.mark.parametrize('aligned', [True, False])
    @pytest.mark.parametrize('ratio', [0, 2])
    def test_roi_align_is_torchvisions(self, aligned, ratio):
        x, regions = feature(), rois()
        got = mmcv.ops.roi_align(x, regions, (3, 2), 0.5, ratio, 'avg', aligned)
        expected = torchvision.ops.roi_align(x, regions, (3, 2), 0.5, ratio or -1, aligned)
        torch.testing.assert_close(got, expected)
        grads = [torch.autograd.grad(y.square().sum(), x)[0] for y in (got, expected)]
        torch.testing.assert_close(*grads)

    def test_roi_pool_is_torchvisions(self):
        x, regions = feature(), rois()
        got, expected = mmcv.ops.roi_pool(x, regions, 2, 0.5), torchvision.ops.roi_pool(x, regions, 2, 0.5)
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(*[torch.autograd.grad(y.square().sum(), x)[0] for y in (got, expected)])

    def test_focal_loss_is_torchvisions(self):
        logits, target = torch.randn(6, 3, requires_grad=True), torch.tensor([0, 1, 2, 3, 3, 0])  # 3 is background
        got = mmcv.ops.sigmoid_focal_loss(logits, target, 2.0, 0.25, None, 'none')
        one_hot = torch.nn.functional.one_hot(target, 4)[:, :3].float()
        expected = torchvision.ops.sigmoid_focal_loss(logits, one_hot, 0.25, 2.0)
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(*[torch.autograd.grad(y.sum(), logits)[0] for y in (got, expected)])
        weight = torch.tensor([1.0, 2.0, 3.0])
        weighted = mmcv.ops.sigmoid_focal_loss(logits, target, 2.0, 0.25, weight, 'none')
        torch.testing.assert_close(weighted[:3], expected[:3] * weight[:, None])
        torch.testing.assert_close(weighted[3:5], expected[3:5])

    @pytest.mark.parametrize('groups, deform_groups', [(1, 1), (2, 2), (2, 1), (1, 2)])
    def test_deformable_convs_are_torchvisions(self, groups, deform_groups):
        x, weight = feature(4), torch.randn(6, 4 // groups, 3, 3).double().requires_grad_()
        offset = torch.randn(2, 18 * deform_groups, 8, 8).double().requires_grad_()
        mask = torch.rand(2, 9 * deform_groups, 8, 8).double().requires_grad_()
        bias = torch.randn(6).double().requires_grad_()
        geometry = dict(stride=2, padding=1, dilation=1)
        pairs = [
            (
                mmcv.ops.deform_conv2d(x, offset, weight, 2, 1, 1, groups, deform_groups),
                torchvision.ops.deform_conv2d(x, offset, weight, None, **geometry),
                (x, offset, weight),
            ),
            (
                mmcv.ops.modulated_deform_conv2d(x, offset, mask, weight, bias, 2, 1, 1, groups, deform_groups),
                torchvision.ops.deform_conv2d(x, offset, weight, bias, mask=mask, **geometry),
                (x, offset, mask, weight, bias),
            ),
        ]
        for got, expected, inputs in pairs:
            torch.testing.assert_close(got, expected)
            for a, b in zip(*[torch.autograd.grad(y.square().sum(), inputs) for y in (got, expected)]):
                torch.testing.assert_close(a, b)

    @pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
    def test_half_precision_is_computed_in_full(self, dtype):
        x, regions = torch.randn(2, 3, 16, 16).to(dtype), rois().to(dtype)
        got = mmcv.ops.roi_align(x, regions, (2, 2), 1.0, 0, 'avg', True)
        expected = torchvision.ops.roi_align(x.float(), regions.float(), (2, 2), 1.0, -1, True)
        assert got.dtype == dtype
        torch.testing.assert_close(got, expected.to(dtype))

    def test_another_operator_raises_one_sentence_when_called(self):
        with pytest.raises(NotImplementedError, match="'box_iou_rotated' is not one of those.*no-build-isolation"):
            mmcv.ops.box_iou_rotated(torch.rand(1, 5), torch.rand(1, 5))
        with pytest.raises(NotImplementedError, match="pool_mode='max' is not in torchvision"):
            mmcv.ops.roi_align(feature(), rois(), (2, 2), 1.0, 0, 'max', True)

    def test_the_environment_is_reported(self):
        assert 'torchvision' in mmcv.ops.get_compiler_version()
        assert mmcv.utils.env.collect_env()['MMCV Compiler'] == mmcv.ops.get_compiler_version()

    @pytest.mark.slow
    def test_what_mmdet_put_in_place_of_the_operators_before_is_replaced(self):
        code = """
import inspect, sys
import mmdet.apis, mmdet.utils.large_image
def placeholders():
    for name in [name for name in sys.modules if name.startswith('mmdet.')]:
        if 'requires mmcv to be compiled' not in inspect.getsource(sys.modules[name]):
            continue  # reading the source of each class and function takes eight seconds
        for value in vars(sys.modules[name]).values():
            if (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__ == name:
                if 'requires mmcv to be compiled' in inspect.getsource(value):
                    yield value.__name__
before = sorted(placeholders())
import mmshared
print(*before, 'then', *placeholders())
"""
        result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
        assert result.stdout.splitlines()[-1].split() == ['RoIPool', 'batched_nms', 'batched_nms', 'roi_align', 'then']
        assert 'before mmshared' not in result.stderr

    @pytest.mark.slow
    def test_who_tried_the_models_of_mmdet_first_is_told_what_to_do(self):
        code = 'try:\n    import mmdet.models\nexcept ImportError:\n    import mmshared'
        result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
        assert result.returncode == 0
        assert 'mmdet.models was imported before mmshared' in result.stderr


@pytest.mark.slow
def test_that_onedl_is_not_installed_is_not_said_and_other_messages_are():
    code = """
import mmshared, mmdet.datasets, mmpretrain.datasets
from mmengine.logging import print_log
print_log('other', level=10)
"""
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.splitlines() == ['other'], result.stderr


def soft_nms(candidates, scores, threshold, sigma, least, method):
    """Soft-NMS as its paper has it, one box after the other, in plain Python."""
    left, found = dict(enumerate(scores.tolist())), []
    while left:
        best = max(left, key=left.get)
        found.append((best, left.pop(best)))
        for other in list(left):
            iou = torchvision.ops.box_iou(candidates[[best]], candidates[[other]]).item()
            decay = {
                'naive': 0.0 if iou >= threshold else 1.0,
                'linear': 1 - iou if iou >= threshold else 1.0,
                'gaussian': torch.exp(torch.tensor(-(iou**2) / sigma)).item(),
            }[method]
            left[other] *= decay
            if left[other] < least:
                del left[other]
    return found


@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
def test_soft_nms_is_the_papers(method):
    candidates, scores = boxes(), torch.rand(40)
    found = soft_nms(candidates, scores, 0.3, 0.5, 1e-2, method)
    dets, inds = mmcv.ops.soft_nms(candidates, scores, 0.3, 0.5, 1e-2, method)
    assert inds.tolist() == [index for index, _ in found]
    torch.testing.assert_close(dets[:, 4], torch.tensor([score for _, score in found]))
    assert torch.equal(dets[:, :4], candidates[inds])
    assert len(mmcv.ops.soft_nms(candidates[:0], scores[:0])[0]) == 0


def test_gradients_agree_with_finite_differences():
    x, regions = feature(2), rois(3)
    assert gradcheck(lambda x: mmcv.ops.roi_align(x, regions, (2, 2), 0.5, 2, 'avg', True), x)
    logits, target = torch.randn(4, 3).double().requires_grad_(), torch.tensor([0, 1, 2, 3])
    if supplied:  # mmcv has no version of these for the CPU
        assert gradcheck(lambda x: mmcv.ops.roi_pool(x, regions, 2, 0.5), x)
        assert gradcheck(lambda x: mmcv.ops.sigmoid_focal_loss(x, target, 2.0, 0.25, None, 'none').sum(), logits)
    x = torch.randn(1, 2, 5, 5).double().requires_grad_()
    offset = (0.3 + 0.4 * torch.rand(1, 18, 5, 5)).double().requires_grad_()  # away from whole pixels
    weight = torch.randn(2, 2, 3, 3).double().requires_grad_()
    mask = torch.rand(1, 9, 5, 5).double().requires_grad_()
    bias = torch.randn(2).double().requires_grad_()
    assert gradcheck(lambda *args: mmcv.ops.deform_conv2d(*args, 1, 1), (x, offset, weight))
    assert gradcheck(lambda *args: mmcv.ops.modulated_deform_conv2d(*args, 1, 1), (x, offset, mask, weight, bias))


@from_mmcv
class TestCompiled:
    """Run once by hand after ``make install OPS=compiled``: mmcv has CPU versions of these operators."""

    def both(self, name, filled, *args, **kwargs):
        """The tensors that mmcv's and our operator fill, and what they return."""
        outputs = []
        for function in (getattr(compiled, name), getattr(mmcv_ops, name)):
            tensors = {key: value.clone() for key, value in filled.items()}
            outputs.append([function(*args, **tensors, **kwargs), *tensors.values()])
        for a, b in zip(*outputs):
            if isinstance(a, torch.Tensor):
                torch.testing.assert_close(a, b)

    def test_nothing_is_touched(self):
        assert compiled.__file__.endswith('.so')

    def test_nms(self):
        for offset in (0, 1):
            self.both('nms', {}, boxes(), torch.rand(40), iou_threshold=0.4, offset=offset)

    def test_soft_nms(self):
        candidates, scores = boxes(), torch.rand(40)
        for method in (0, 1, 2):
            results = []
            for function in (compiled.softnms, mmcv_ops.softnms):
                dets = torch.zeros(40, 5)
                inds = function(
                    candidates, scores, dets, iou_threshold=0.3, sigma=0.5, min_score=0.01, method=method, offset=0
                )
                results.append((inds, dets[: len(inds)]))
            for a, b in zip(*results):
                torch.testing.assert_close(a, b)

    def test_roi_align(self):
        geometry = dict(aligned_height=2, aligned_width=3, spatial_scale=0.5, pool_mode=1)
        x, regions, empty = feature().detach(), rois(), torch.zeros(0).double()
        for aligned in (True, False):
            for sampling_ratio in (0, 2):
                options = dict(geometry, aligned=aligned, sampling_ratio=sampling_ratio)
                self.both(
                    'roi_align_forward',
                    dict(output=torch.zeros(5, 3, 2, 3).double()),
                    x,
                    regions,
                    argmax_y=empty,
                    argmax_x=empty,
                    **options,
                )
                self.both(
                    'roi_align_backward',
                    dict(grad_input=torch.zeros_like(x)),
                    torch.randn(5, 3, 2, 3).double(),
                    regions,
                    argmax_y=empty,
                    argmax_x=empty,
                    **options,
                )

    def test_deformable_convs(self):
        x, weight, bias = torch.randn(2, 4, 8, 8), torch.randn(6, 4, 3, 3), torch.randn(6)
        offset, mask, grad = torch.randn(2, 18, 8, 8), torch.rand(2, 9, 8, 8), torch.randn(2, 6, 8, 8)
        results = []
        for extension in (compiled, mmcv_ops):
            mmcv.ops.deform_conv.ext_module = mmcv.ops.modulated_deform_conv.ext_module = extension
            inputs = [tensor.clone().requires_grad_() for tensor in (x, offset, weight, mask, bias)]
            x_, offset_, weight_, mask_, bias_ = inputs
            outputs = [
                mmcv.ops.deform_conv2d(x_, offset_, weight_, 1, 1),
                mmcv.ops.modulated_deform_conv2d(x_, offset_, mask_, weight_, bias_, 1, 1),
            ]
            results.append(outputs + list(torch.autograd.grad([(y * grad).sum() for y in outputs], inputs)))
        mmcv.ops.deform_conv.ext_module = mmcv.ops.modulated_deform_conv.ext_module = compiled
        for a, b in zip(*results):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
