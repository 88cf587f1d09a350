"""Files that are damaged, or hold something else than weights: refused in a sentence, and nothing of them is run."""

import pickle
import subprocess
import sys
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.runner import CheckpointLoader
from torch import nn

from helpers import ROOT
from mmshared import SharingError
from mmshared.engine.checkpoint import (
    check_state_dict,
    load_checkpoint_file,
    refuse_pickles,
    state_dict_of,
    write_text,
    written_whole,
)

CASES = settings(max_examples=150, derandomize=True, deadline=None, database=None)
PLACES = st.floats(0, 1, exclude_max=True)  # of a byte, as its share of the file


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """A checkpoint, and the file of it."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    path = tmp_path_factory.mktemp('saved') / 'model.pth'
    torch.save(dict(meta=dict(epoch=1), state_dict=network.state_dict()), path)
    return network.state_dict(), path


def loads_the_same_or_is_refused(saved, content: bytes) -> None:
    state_dict, path = saved
    damaged = path.with_name('damaged.pth')
    damaged.write_bytes(content)
    try:
        loaded = load_checkpoint_file(str(damaged))['state_dict']
    except SharingError as error:
        assert '\n' not in str(error)
    else:
        assert loaded.keys() == state_dict.keys()
        assert all(torch.equal(loaded[key], tensor) for key, tensor in state_dict.items())


@CASES
@given(flips=st.lists(st.tuples(PLACES, st.integers(0, 7)), min_size=1, max_size=4))
def test_flipped_bits(saved, flips):
    content = bytearray(saved[1].read_bytes())
    for place, bit in flips:
        content[int(place * len(content))] ^= 1 << bit
    loads_the_same_or_is_refused(saved, bytes(content))


@CASES
@given(start=PLACES, length=st.integers(1, 600))
def test_zeroed_ranges(saved, start, length):
    content = bytearray(saved[1].read_bytes())
    start = int(start * len(content))
    end = min(start + length, len(content))
    content[start:end] = bytes(end - start)
    loads_the_same_or_is_refused(saved, bytes(content))


@CASES
@given(end=PLACES)
def test_files_that_are_cut_off(saved, end):
    content = saved[1].read_bytes()
    loads_the_same_or_is_refused(saved, content[: int(end * len(content))])


def test_each_number_counts(saved):
    # Torch does not look at the checksums of an archive: it would load the other number.
    state_dict, path = saved
    content, kernel = path.read_bytes(), state_dict['0.weight'].numpy().tobytes()
    start = content.index(kernel)
    damaged = path.with_name('damaged.pth')
    damaged.write_bytes(content[:start] + bytes([content[start] ^ 1]) + content[start + 1 :])
    assert not torch.equal(torch.load(damaged)['state_dict']['0.weight'], state_dict['0.weight'])
    with pytest.raises(SharingError, match='damaged.pth cannot be loaded: it is damaged .*checksum'):
        load_checkpoint_file(str(damaged))


@pytest.mark.parametrize('legacy', [False, True])
@pytest.mark.parametrize('bare', [False, True])
@pytest.mark.parametrize(
    'entry, words',
    [
        ({'a.weight': torch.tensor([1, float('nan')])}, 'not finite in a.weight'),
        ({'bn.running_var': torch.tensor([1, float('inf')])}, 'not finite in bn.running_var'),
        ({'half': torch.tensor([-float('inf')]).half()}, 'not finite in half'),
        # Torch reads no such numbers from a file of the old format.
        ({'small': torch.tensor([float('nan')]).to(torch.float8_e4m3fn)}, 'not finite in small|no attribute'),
        ({'complex': torch.tensor([complex(0, float('inf'))])}, 'not finite in complex'),
        ({3: torch.zeros(1)}, 'has the key 3'),
        ({'list': [1.0]}, 'list is a list'),
        ({'none': None}, 'none is a NoneType'),
        ({'sparse': torch.eye(2).to_sparse()}, 'sparse as a sparse or nested tensor'),
        ({'rows': torch.eye(2).to_sparse_csr()}, 'rows as a sparse or nested tensor'),
        ({'empty': torch.zeros(2, device='meta')}, 'empty in a form that cannot be read'),
    ],
)
def test_what_is_no_dense_finite_tensor_by_its_name_is_refused(tmp_path, bare, legacy, entry, words):
    state_dict = {'weight': torch.ones(2), **entry}
    with pytest.raises(SharingError, match=words):
        check_state_dict(state_dict, 'The checkpoint')
    with pytest.raises(SharingError, match=words):
        state_dict_of(state_dict if bare else dict(state_dict=state_dict))
    path = tmp_path / 'model.pth'
    torch.save(
        state_dict if bare else dict(meta={}, state_dict=state_dict), path, _use_new_zipfile_serialization=not legacy
    )
    with pytest.raises(SharingError, match=f'model.pth.*({words})'):
        load_checkpoint_file(str(path))


def test_safetensors_without_their_package_are_not_called_damaged(tmp_path, monkeypatch):
    (tmp_path / 'a.safetensors').touch()
    monkeypatch.setattr('mmshared.engine.checkpoint.find_spec', lambda name: None)
    with pytest.raises(SharingError, match=r"a.safetensors needs a package .* pip install 'mmshared\[export\]'"):
        load_checkpoint_file(str(tmp_path / 'a.safetensors'))


@pytest.mark.parametrize('error', [KeyboardInterrupt, SharingError])
def test_what_was_not_written_whole_leaves_nothing(error, tmp_path):
    (tmp_path / 'a').write_text('old')
    with pytest.raises(error), written_whole(tmp_path / 'a') as partial:
        partial.write_text('half')
        raise error
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [('a', 'old')]


def test_writers_in_other_processes_write_other_files(tmp_path, monkeypatch):
    with written_whole(tmp_path / 'a') as partial:
        partial.write_text('one')
        with monkeypatch.context() as patch:
            patch.setattr('os.getpid', lambda: 0)
            write_text(tmp_path / 'a', 'the other')
        assert (tmp_path / 'a').read_text() == 'the other'
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [('a', 'one')]


def test_what_stands_beside_the_state_dict_is_not_looked_at(tmp_path):
    state_dict = dict(
        weight=torch.ones(2), steps=torch.tensor(3), on=torch.tensor(True), small=torch.ones(2).to(torch.float8_e5m2)
    )
    best = torch.tensor(float('nan'))
    torch.save(dict(state_dict=state_dict, optimizer={0: best}, best=best, message_hub=[None]), tmp_path / 'model.pth')
    assert load_checkpoint_file(str(tmp_path / 'model.pth'))['state_dict'].keys() == state_dict.keys()
    torch.save(dict(net_state_dict=state_dict, best=best), tmp_path / 'model.pth')  # as others call it
    loaded = load_checkpoint_file(str(tmp_path / 'model.pth'))
    assert state_dict_of(loaded, 'net_state_dict').keys() == state_dict.keys()
    torch.save(dict(state_dict=state_dict, ema_state_dict=dict(weight=best)), tmp_path / 'model.pth')
    with pytest.raises(SharingError, match='not finite in weight'):
        load_checkpoint_file(str(tmp_path / 'model.pth'))


class _Payload:
    """Pickled, it makes the file ``ran``."""

    def __init__(self, ran):
        self.ran = str(ran)

    def __reduce__(self):
        return open, (self.ran, 'w')


class _Attribute:
    def __init__(self, owner, name):
        self.arguments = owner, name

    def __reduce__(self):
        return getattr, self.arguments


class _NamedByMMEngine:
    """Calls exec by nothing but what torch and mmengine let a checkpoint name."""

    def __init__(self, ran):
        self.code = f'open({str(ran)!r}, "w")'

    def __reduce__(self):
        function = _Attribute(_Attribute(getattr, '__self__'), 'exec')
        return torch._tensor._rebuild_from_type_v2, (function, torch.Tensor, (self.code,), None)


LOAD = """
import sys
import mmshared
import io, torch
from mmengine.runner import checkpoint
from mmengine.runner.checkpoint import CheckpointLoader, load_checkpoint
from torch.utils.data import DataLoader

class Files(torch.utils.data.Dataset):
    def __len__(self):
        return 1
    def __getitem__(self, index):
        return len(torch.load(path, weights_only=False))

def in_a_worker(context):
    next(iter(DataLoader(Files(), num_workers=1, multiprocessing_context=context)))

checkpoint.load_url = lambda url, **kwargs: torch.load(path, map_location='cpu', weights_only=False)
ways = dict(
    local=lambda: CheckpointLoader.load_checkpoint(path),
    model=lambda: load_checkpoint(torch.nn.Linear(1, 1), path),
    fallback=lambda: checkpoint._safe_torch_load(path),
    http=lambda: CheckpointLoader.load_checkpoint('https://download.openmmlab.com/model.pth'),
    torchvision=lambda: CheckpointLoader.load_checkpoint('torchvision://resnet50'),
    torch=lambda: torch.load(path, weights_only=False),
    worker=lambda: in_a_worker('fork'))
for path in sys.argv[1:]:
    for name, load in ways.items():
        try:
            load()
        except Exception as error:
            print(name, 'refused', type(error).__name__)
        else:
            print(name, 'loaded')
"""


@pytest.mark.parametrize('before', ['0', None])
@pytest.mark.parametrize('arguments', [{}, dict(weights_only=False)], ids=['plain', 'weights_only=False'])
def test_torch_load_itself_refuses_a_payload_once_pickles_are_refused(tmp_path, monkeypatch, arguments, before):
    path, ran = tmp_path / 'evil.pth', tmp_path / 'ran'
    torch.save(dict(weight=_Payload(ran)), path)
    torch.save(dict(weight=torch.ones(2)), tmp_path / 'good.pth')
    if before is None:
        monkeypatch.delenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', raising=False)
    else:
        monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', before)
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    refuse_pickles()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, **arguments)
    assert not ran.exists()
    assert torch.load(tmp_path / 'good.pth', **arguments)['weight'].eq(1).all()


@pytest.mark.parametrize('values', [np.array([None]), np.zeros(2, 'V8'), np.zeros(2, [('a', 'f4')]), np.array(['a'])])
def test_arrays_of_anything_but_numbers_are_refused(values, tmp_path):
    torch.save(dict(state_dict={}, values=values), tmp_path / 'model.pth')
    with pytest.raises(SharingError, match='holds more than weights .*DType'):
        load_checkpoint_file(str(tmp_path / 'model.pth'))


def test_what_is_downloaded_is_checked_as_local_files_are(tmp_path, monkeypatch, saved):
    state_dict, path = saved
    content = bytearray(path.read_bytes())
    place = content.index(state_dict['0.weight'].numpy().tobytes())
    content[place] ^= 1
    (tmp_path / 'there').mkdir()
    (tmp_path / 'there' / 'whole.pth').write_bytes(path.read_bytes())
    (tmp_path / 'there' / 'damaged.pth').write_bytes(content)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path / 'there')
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f'http://127.0.0.1:{server.server_port}'
        for _ in range(2):  # the second from the folder of downloads
            loaded = CheckpointLoader.load_checkpoint(f'{address}/whole.pth?version=1')['state_dict']
            assert all(torch.equal(loaded[key], tensor) for key, tensor in state_dict.items())
            with pytest.raises(SharingError, match='the checksum of .* is wrong'):
                CheckpointLoader.load_checkpoint(f'{address}/damaged.pth')
        server.shutdown()
    assert [each.name for each in (tmp_path / 'hub' / 'checkpoints').iterdir()] == ['whole.pth']


@pytest.mark.slow
def test_no_checkpoint_is_unpickled_where_mmshared_is_imported(tmp_path, monkeypatch):
    contents = [_Payload, _NamedByMMEngine]
    paths, marks = ([tmp_path / f'{content.__name__}.{suffix}' for content in contents] for suffix in ('pth', 'ran'))
    for content, path, ran in zip(contents, paths, marks):
        torch.save(dict(state_dict=dict(weight=content(ran))), path)
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    result = subprocess.run([sys.executable, '-c', LOAD, *paths], capture_output=True, text=True, cwd=ROOT)
    lines = [line for line in result.stdout.splitlines() if ' refused ' in line or line.endswith(' loaded')]
    assert len(lines) == 7 * 2 and all('refused' in line for line in lines), result.stdout + result.stderr
    assert lines[0] == lines[7] == 'local refused SharingError'
    for content, ran in zip(contents, marks):
        assert not ran.exists()
        # The file does what it is made for where nothing is refused.
        with suppress(Exception):
            pickle.loads(pickle.dumps(content(ran)))
        assert ran.exists()


def test_what_mmengine_saves_is_loaded_from_anywhere(tmp_path):
    from mmengine.logging import HistoryBuffer
    from mmengine.runner.checkpoint import _safe_torch_load

    buffer = HistoryBuffer([1.0, 2.0], [1, 1])
    torch.save(dict(message_hub=dict(loss=buffer)), tmp_path / 'model.pth')
    for load in (load_checkpoint_file, _safe_torch_load, torch.load):
        for _ in range(2):  # what is allowed is not taken away by the first
            assert load(str(tmp_path / 'model.pth'))['message_hub']['loss'].mean() == 1.5


@pytest.mark.parametrize('kind', [np.float32, np.float16, np.int32, np.uint8, np.bool_, np.complex64])
def test_numbers_of_numpy_are_loaded_whatever_their_type_and_whichever_version_saved_them(kind, tmp_path):
    numbers = dict(state_dict={}, best_score=kind(1), scores=np.ones(2, kind))
    torch.save(numbers, tmp_path / 'new.pth', _use_new_zipfile_serialization=False)
    content = (tmp_path / 'new.pth').read_bytes()
    assert b'numpy._core.' in content
    (tmp_path / 'old.pth').write_bytes(content.replace(b'numpy._core.', b'numpy.core.'))
    for path in (tmp_path / 'new.pth', tmp_path / 'old.pth'):
        loaded = load_checkpoint_file(str(path))
        assert loaded['best_score'] == kind(1) and (loaded['scores'] == numbers['scores']).all()
        assert loaded['scores'].dtype == numbers['scores'].dtype
