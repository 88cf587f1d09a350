"""ONNX models store each bank once; onnxruntime computes the weights on loading and runs the plain network."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from blocks import CONVS, DEPTH, LINEARS, SIZE, TurnedFilters, shared_blocks
from torch import Tensor, nn

from mmshared import Bank, SharedLayer, SharingError, banks, fold_layers, share_layers
from mmshared.sharing.deployment import relative_difference

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')

from mmshared.convert.onnx import compare, nodes_that_run, onnx_forms, open_session  # noqa: E402
from mmshared.convert.onnx_integers import INT4_OPSET, rounded, weight_axes, with_integers  # noqa: E402
from mmshared.convert.onnx_shared import find_weights, shared_weights, size_of  # noqa: E402

#: They store a value for each of the weight, and a random one too.
NO_SMALLER = {'repeated-random-bireal'}


@pytest.fixture(scope='module')
def exported():
    shared = shared_blocks()
    plain = fold_layers(copy.deepcopy(shared))
    forms = onnx_forms(shared, plain, (3, SIZE, SIZE), keep_shared=True, bits=8)
    files = {name: form.SerializeToString() for name, form in forms.items()}
    return SimpleNamespace(shared=shared, plain=plain, forms=forms, files=files)


@pytest.mark.slow
@pytest.mark.parametrize(
    'form, most', [('plain', 1e-5), ('shared', 1e-5), ('plain int8', 0.05), ('shared int8', 0.05)]
)
def test_each_form_computes_the_network(exported, form, most):
    x = torch.randn(3, 3, SIZE, SIZE)
    found = open_session(exported.files[form]).run(None, {'images': x.numpy()})
    differences = {
        name: relative_difference([torch.from_numpy(output)], [expected])
        for name, output, expected in zip([*CONVS, *LINEARS], found, exported.shared(x), strict=True)
    }
    assert {name: value for name, value in differences.items() if not value < most} == {}
    assert 'int8' not in form or min(differences.values()) > 1e-5


@pytest.mark.slow
def test_onnxruntime_runs_the_nodes_of_the_plain_network(exported):
    nodes = {form: nodes_that_run(content) for form, content in exported.files.items()}
    layers = DEPTH * len(CONVS) + 1
    assert nodes['plain']['Conv'] == layers and nodes['plain']['MatMul'] == DEPTH * len(LINEARS)
    assert all(each == nodes['plain'] for each in nodes.values())


@pytest.mark.slow
def test_what_a_bank_makes_or_has_is_stored_once(exported):
    stored = [onnx.numpy_helper.to_array(each) for each in exported.forms['shared'].graph.initializer]
    for bank in banks(exported.shared):
        made = bank()
        for values in [made] if isinstance(made, Tensor) else bank.parameters():
            found = [each for each in stored if each.shape == values.shape and (each == values.detach().numpy()).all()]
            assert len(found) == 1 or values.numel() <= 8, (bank.stage, values.shape)


@pytest.mark.slow
@pytest.mark.parametrize('integers', ['', ' int8'])
def test_each_bank_is_computed_where_that_is_smaller(exported, integers):
    graphs = [exported.forms[form + integers].graph for form in ('plain', 'shared')]
    names: dict[Bank, list[str]] = {}
    for name, weight in find_weights(exported.forms['plain'].graph, exported.shared).items():
        names.setdefault(weight.layer.bank, []).append(name)
    sizes = {bank.stage.partition('.')[2]: [size_of(graph, names[bank]) for graph in graphs] for bank in names}
    assert set(sizes) == {*CONVS, *LINEARS}
    for name, (plain, shared) in sizes.items():
        if name in NO_SMALLER:
            assert shared == plain
        else:
            assert shared < plain or integers, name
        assert shared <= plain


@pytest.mark.slow
def test_int8_files_are_about_a_quarter(exported):
    sizes = {name: len(content) for name, content in exported.files.items()}
    assert (
        sizes['shared int8'] < sizes['plain int8'] < 0.35 * sizes['plain'] and sizes['shared'] < 0.6 * sizes['plain']
    )


def small_graph(*weights: Tensor):
    """A graph that holds some weights."""
    constants = [onnx.numpy_helper.from_array(each.numpy().copy(), f'w{i}') for i, each in enumerate(weights)]
    return onnx.helper.make_graph([], 'weights', [], [], constants)


def test_a_weight_is_found_by_its_values_up_to_a_scale_of_each_row_and_transposed():
    network = nn.Sequential(*[nn.Sequential(nn.Linear(6, 6)) for _ in range(3)])
    share_layers(network, ['0'], dict(type='RelaxedTie', rank=1), own_blocks=0)
    for block in network:
        nn.init.normal_(block[0].up)
    first, second, _ = (block[0].dense()[0].detach() for block in network)
    scale = torch.randn(6, 1)
    changed = second.clone()
    changed[3, 2] *= 1.001
    found = find_weights(small_graph(scale * second, first.T, second[:, :5], changed), network)
    assert [(name, weight.layer, weight.transposed) for name, weight in found.items()] == [
        ('w0', network[1][0], False),
        ('w1', network[0][0], True),
    ]
    torch.testing.assert_close(found['w0'].scale, scale)


@pytest.mark.parametrize(
    'shape, axes', [((4, 3, 3, 3), (1, 2, 3)), ((5, 40), (1,)), ((5, 40), (0,)), ((2, 3, 50), (2,))]
)
@pytest.mark.parametrize('bits, most', [(8, 127), (4, 7)])
def test_integers_have_no_larger_error_than_those_of_the_largest_value(shape, axes, bits, most):
    values = torch.randn(shape).numpy()
    values[0] = 0
    integers, scales = rounded(values, axes, bits)
    assert abs(integers).max() <= most and scales.shape == tuple(1 if i in axes else n for i, n in enumerate(shape))
    peak = abs(values).max(axes, keepdims=True) / most
    plain = ((np.rint(values / np.where(peak, peak, 1)) * peak - values) ** 2).sum(axes)
    error = ((integers * scales - values) ** 2).sum(axes)
    assert (error <= plain * (1 + 1e-4)).all() and (error > 0).any() and (integers[0] == 0).all()


def test_weights_are_what_convs_and_products_multiply_by():
    node = onnx.helper.make_node
    nodes = [
        node('Conv', ['x', 'w0'], ['a']),
        node('MatMul', ['a', 'w1'], ['b']),
        node('Gemm', ['b', 'w2'], ['c'], transB=1),
        node('Split', ['w3', 'sizes'], ['upper', 'lower'], axis=0),
        node('Transpose', ['upper'], ['turned']),
        node('MatMul', ['c', 'turned'], ['d']),
        node('Add', ['d', 'w4'], ['y']),  # a table of positions
        node('Conv', ['y', 'w5'], ['z']),
    ]
    shapes = (4, 3, 3, 3), (6, 5), (7, 5), (6, 7), (2, 3), (4, 3, 1)
    graph = small_graph(*map(torch.rand, shapes))
    graph.node.extend(nodes)
    assert weight_axes(graph) == {'w0': (1, 2, 3), 'w1': (0,), 'w2': (1,), 'w3': (1,), 'w5': (1, 2)}


def test_a_network_that_is_another_is_refused():
    network = nn.Sequential(*[nn.Sequential(nn.Linear(6, 6)) for _ in range(2)])
    share_layers(network, ['0'], dict(type='TiedFilters'), own_blocks=0)
    model = onnx.helper.make_model(small_graph(torch.randn(6, 6)))
    with pytest.raises(SharingError, match='None of the weights'):
        shared_weights(model, network)


class FactorisedLayer(SharedLayer):
    def dense(self):
        return torch.linalg.qr(self.bank())[0], self.bias


class FactorisedFilters(TurnedFilters):
    layer_class = FactorisedLayer


@pytest.mark.slow
def test_a_bank_that_onnx_cannot_compute_is_told():
    network = nn.Sequential(*[nn.Sequential(nn.Linear(6, 6)) for _ in range(2)])
    share_layers(network, ['0'], dict(type=FactorisedFilters), own_blocks=0)
    model = onnx.helper.make_model(small_graph(network[0][0].weight.detach()))
    with pytest.raises(SharingError, match='cannot be computed in ONNX, only stored: .*linalg_qr'):
        shared_weights(model, network)


def one_conv(values: Tensor, nodes=(), constants=None) -> onnx.ModelProto:
    """A model of one conv with the weight ``w0``, which nodes may compute from constants."""
    images, maps = (onnx.helper.make_tensor_value_info(name, 1, ['n', 3, 'h', 'w']) for name in ('images', 'maps'))
    conv = onnx.helper.make_node('Conv', ['images', 'w0'], ['maps'])
    constants = constants or small_graph(values).initializer
    graph = onnx.helper.make_graph([*nodes, conv], 'one', [images], [maps], constants)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid('', INT4_OPSET)], ir_version=10)


@pytest.mark.parametrize('bits, most', [(8, 0.01), (4, 0.15)])
def test_integers_become_floats_on_loading(bits, most):
    network = nn.Conv2d(3, 64, 5, bias=False).requires_grad_(False)
    plain = one_conv(network.weight)
    rounded = with_integers(plain, bits)
    assert rounded.ByteSize() < (bits / 32 + 0.05) * plain.ByteSize()
    files = [model.SerializeToString() for model in (plain, rounded)]
    assert nodes_that_run(files[0]) == nodes_that_run(files[1])
    images = torch.randn(2, 3, 16, 16)
    (found,) = open_session(files[1]).run(None, {'images': images.numpy()})
    assert 1e-4 < relative_difference([torch.from_numpy(found)], [network(images)]) < most


@pytest.mark.parametrize(
    'first, last, bytes_each', [(-128, 127, 1), (0, 128, 2), (-1, 70_000, 4), (-(2**63), 2**40, 8), (0, 0, 8)]
)
def test_indices_take_the_smallest_type_that_holds_them(first, last, bytes_each):
    indices = np.linspace(first, last, 1000 if last else 0).astype(np.int64)
    found, wanted = (onnx.helper.make_tensor_value_info(name, 7, ['n']) for name in ('found', 'wanted'))
    node = onnx.helper.make_node('Add', ['wanted', 'indices'], ['found'])
    constants = [onnx.numpy_helper.from_array(indices, 'indices')]
    graph = onnx.helper.make_graph([node], 'one', [wanted], [found], constants)
    plain = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid('', INT4_OPSET)], ir_version=10)
    narrow = with_integers(plain, 8)
    assert narrow.ByteSize() - bytes_each * len(indices) < plain.ByteSize() - 8 * len(indices) + 100
    files = [model.SerializeToString() for model in (plain, narrow)]
    assert nodes_that_run(files[0]) == nodes_that_run(files[1])
    (sums,) = open_session(files[1]).run(None, {'wanted': indices})
    assert np.array_equal(sums, 2 * indices)


def test_what_onnxruntime_computes_in_each_run_is_told():
    network = nn.Conv2d(3, 3, 1, bias=False).requires_grad_(False)
    values = network.weight.copy_(torch.arange(9).view(3, 3, 1, 1) / 8)
    node = onnx.helper.make_node('DequantizeLinear', ['integers', 'scale'], ['w0'])
    constants = [
        onnx.numpy_helper.from_array(np.arange(9, dtype=np.int8).reshape(3, 3, 1, 1), 'integers'),
        onnx.numpy_helper.from_array(np.float32(1 / 8), 'scale'),
    ]
    models = {'plain': one_conv(values), 'other': one_conv(values, [node], constants)}
    lines = list(compare({name: each.SerializeToString() for name, each in models.items()}, network, (3, 8, 8)))
    assert [line for line in lines if 'in each run' in line] == [
        'onnxruntime computes weights in each run: 1 DequantizeLinear'
    ]
