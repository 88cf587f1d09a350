"""Laws of statistics: the moments of a layer's inputs say how large its outputs are, however it is called."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers import energy, in_two_processes, join, leave
from mmshared import SharingError
from mmshared.compress import statistics
from mmshared.compress.statistics import collect_moments

CONVS = {
    'same': dict(kernel_size=3, padding=1),
    'strided': dict(kernel_size=(3, 5), stride=(2, 3), padding=(0, 2)),
    'dilated': dict(kernel_size=3, dilation=(1, 2), padding='same'),
    'pointwise': dict(kernel_size=1),
    'grouped': dict(kernel_size=3, groups=2, padding=1),
    'depthwise': dict(kernel_size=3, groups=4, padding=1),
}


class Outputs:
    """Adds up the squares of what layers give."""

    def __init__(self, model, names):
        self.energy = dict.fromkeys(names, 0.0)
        for name in names:
            model.get_submodule(name).register_forward_hook(self.hook(name))

    def hook(self, name):
        def add(layer, args, output):
            self.energy[name] += output.square().sum().item()

        return add


@pytest.mark.parametrize('chunk', [1, 2**24])
@pytest.mark.parametrize('arguments', CONVS.values(), ids=CONVS)
def test_moments_give_the_energy_of_a_convs_outputs(arguments, chunk, monkeypatch):
    monkeypatch.setattr(statistics, 'CHUNK', chunk)
    model = nn.Sequential(nn.Conv2d(4, 8, bias=False, **arguments))
    batches = [torch.randn(2, 4, 9, 11), torch.randn(1, 4, 7, 8)]
    outputs = Outputs(model, ['0'])
    moment = collect_moments(model, batches, ['0'])['0']
    groups = arguments.get('groups', 1)
    size = model[0].weight[0].numel()
    assert moment.shape == ((groups, size, size) if groups > 1 else (size, size)) and moment.dtype == torch.float64
    assert energy(model[0].weight, moment) == pytest.approx(outputs.energy['0'], rel=1e-5)
    # The order of the values is that of the weight: other weights have their energy too.
    nn.init.normal_(model[0].weight)
    outputs.energy['0'] = 0.0
    for batch in batches:
        model(batch)
    assert energy(model[0].weight, moment) == pytest.approx(outputs.energy['0'], rel=1e-5)


@pytest.mark.parametrize('leading', [(), (3,), (2, 5), (2, 3, 4)])
def test_moments_give_the_energy_of_a_linears_outputs(leading):
    model = nn.Sequential(nn.Linear(6, 8, bias=False))
    outputs = Outputs(model, ['0'])
    moment = collect_moments(model, [torch.randn(*leading, 6) for _ in range(3)], ['0'])['0']
    assert energy(model[0].weight, moment) == pytest.approx(outputs.energy['0'], rel=1e-5)


class Tower(nn.Module):
    """A head that runs on maps of several sizes, and uses the weight of one layer itself."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.linear, self.unused = nn.Linear(4, 2, bias=False), nn.Linear(2, 2)

    def forward(self, image):
        maps = [image, F.max_pool2d(image, 2)]
        return [F.linear(self.norm(self.conv(x)).mean((2, 3)), self.linear.weight) for x in maps]


def test_every_use_of_a_weight_adds_up():
    model = Tower()
    batches = [torch.randn(2, 3, 16, 16) for _ in range(2)]
    with torch.no_grad():
        expected = sum(y.square().sum().item() for batch in batches for y in copy.deepcopy(model).eval()(batch))
    moments = collect_moments(model, batches, ['conv', 'linear', 'unused'])
    assert energy(model.linear.weight, moments['linear']) == pytest.approx(expected, rel=1e-5)
    conv = nn.Sequential(model.conv)
    apart = [collect_moments(conv, [F.max_pool2d(x, k) for x in batches], ['0'])['0'] for k in (1, 2)]
    torch.testing.assert_close(moments['conv'], sum(apart))
    assert 'unused' not in moments
    assert model.norm.training and model.norm.num_batches_tracked == 0  # run in eval mode, and left as it was


@pytest.mark.parametrize('inputs', ['xxx', 'xyy', 'xyx', 'xyz'])
def test_a_packed_projection_has_moments_of_queries_keys_and_values(inputs):
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            given = dict(x=x, y=x[:, :3] + 1, z=x[:, :3] - 1)
            return self.attn(*(given[name] for name in inputs))[0]

    model, x = Attention(), torch.randn(2, 5 if inputs != 'xyx' else 3, 8)
    moments = collect_moments(model, [x], ['attn.in_proj', 'attn.out_proj'])
    given = dict(x=x, y=x[:, :3] + 1, z=x[:, :3] - 1)
    for moment, name in zip(moments['attn.in_proj'], inputs):
        rows = given[name].flatten(0, 1).double()
        torch.testing.assert_close(moment, rows.T @ rows, rtol=1e-5, atol=1e-5)
    bare = model(x) - model.attn.out_proj.bias
    assert energy(model.attn.out_proj.weight, moments['attn.out_proj']) == pytest.approx(
        bare.square().sum().item(), rel=1e-4
    )


def deep():
    return nn.Sequential(*[nn.Conv2d(4, 4, 3, padding=1) for _ in range(4)])


def test_a_process_without_images_is_refused():
    with pytest.raises(SharingError, match='take at least as many images as there are processes'):
        collect_moments(deep(), [], ['1'])


@pytest.mark.parametrize(
    'layer, shape',
    [
        (nn.Conv2d(3, 4, 3), (2, 3, 32, 32)),
        (nn.Conv2d(4, 4, 3, groups=2), (2, 4, 32, 32)),
        (nn.Linear(32, 4), (2, 999, 32)),
    ],
)
def test_a_part_of_the_patches_tells_about_the_same(layer, shape, monkeypatch):
    model, batches = nn.Sequential(layer), [torch.rand(shape) for _ in range(8)]
    monkeypatch.setattr(statistics, 'SAMPLES', 1e9)
    whole = collect_moments(model, batches, ['0'])['0']
    monkeypatch.setattr(statistics, 'SAMPLES', 40)
    some = collect_moments(model, batches, ['0'])['0']
    assert not torch.equal(some, whole)
    assert (some - whole).norm() < 0.1 * whole.norm()


def test_a_layer_that_is_not_there_is_refused():
    with pytest.raises(SharingError, match=r'no layer 7\.conv that can share'):
        collect_moments(deep(), [torch.randn(2, 4, 8, 8)], ['1', '7.conv'])


def test_an_interrupted_pass_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(statistics, 'INTERVAL', -1.0)
    model, batches, names = deep(), [torch.randn(2, 4, 8, 8) for _ in range(4)], ['1', '2']
    expected = collect_moments(model, batches, names)
    seen = []

    def stop(module, args):
        seen.append(args[0])
        if len(seen) == 3:
            raise KeyboardInterrupt

    model.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        collect_moments(model, batches, names, cache=tmp_path)
    for _ in range(2):  # goes on; has it already
        found = collect_moments(model, batches, names, cache=tmp_path)
        assert all(torch.equal(found[name], expected[name]) for name in names)
    assert [id(each) for each in seen] == [id(batches[i]) for i in (0, 1, 2, 2, 3)]
    others = [torch.randn(2, 4, 8, 8) for _ in range(4)]
    collect_moments(model, others, names, cache=tmp_path)
    assert len(seen) == 9
    nn.init.zeros_(model[0].weight)  # another network
    found = collect_moments(model, others, names, cache=tmp_path)
    assert len(seen) == 13 and not torch.equal(found['1'], expected['1'])


def worker(rank, folder):
    join(rank, folder)
    torch.manual_seed(0)
    model, batches = deep(), [torch.randn(2, 4, 8, 8) for _ in range(3)]
    torch.save(collect_moments(model, batches[rank::2], ['1', '2']), f'{folder}/{rank}.pth')
    leave()


@pytest.mark.slow
def test_two_processes_sum_up_what_one_does(tmp_path):
    in_two_processes(worker, str(tmp_path))
    model, batches = deep(), [torch.randn(2, 4, 8, 8) for _ in range(3)]
    expected = collect_moments(model, batches, ['1', '2'])
    for rank in (0, 1):
        torch.testing.assert_close(torch.load(tmp_path / f'{rank}.pth', weights_only=True), expected)
