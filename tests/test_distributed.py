"""Two processes with half of the batch each take the step of one process with the whole."""

import copy
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import MMDistributedDataParallel, MMFullyShardedDataParallel
from mmengine.registry import MODEL_WRAPPERS, OPTIMIZERS, init_default_scope
from mmengine.runner import Runner
from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType
from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy

from helpers import (
    BASIS,
    ROOT,
    TIED,
    Classifier,
    Forked,
    backbone,
    free_port,
    in_two_processes,
    in_two_ranks,
    join,
    leave,
    loader_options,
    randomise_norms,
    stage_banks,
)
from mmshared import GradientFlowHook, OrthogonalityLossHook, SharingError
from mmshared.engine.checkpoint import load_checkpoint_file
from mmshared.engine.runner import SharingRunner


def network(bank, with_cp=False):
    init_default_scope('mmpretrain')
    torch.manual_seed(0)
    model = Classifier(randomise_norms(backbone(depth=34, bank=bank, with_cp=with_cp)), 128).double()
    for banks in stage_banks(model).values():
        banks[0].filters.data += 0.1 * torch.randn_like(banks[0].filters)
    return model.eval()  # with batch statistics the halves would differ from the whole


def batch():
    torch.manual_seed(1)
    return torch.randn(4, 3, 32, 32).double(), torch.tensor([0, 1, 2, 1])


def gradients(model, inputs, labels):
    hook = OrthogonalityLossHook()
    hook.before_train(SimpleNamespace(model=model))
    losses = model(inputs=inputs, labels=labels, mode='loss')
    sum(losses.values()).backward()
    hook.after_train(None)
    model = getattr(model, 'module', model)
    return losses['loss_orth'].detach(), {name: p.grad for name, p in model.named_parameters()}


def start(rank, bank, folder, with_cp=False):
    join(rank, folder)
    model = network(bank, with_cp)
    model.load_state_dict(torch.load(f'{folder}/start.pth', weights_only=True))  # QR differs with the threads
    return model


def worker(rank, bank, with_cp, folder):
    model = MMDistributedDataParallel(start(rank, bank, folder, with_cp), static_graph=with_cp)
    inputs, labels = batch()
    result = gradients(model, inputs[2 * rank : 2 * rank + 2], labels[2 * rank : 2 * rank + 2])
    torch.save(result, f'{folder}/{rank}.pth')
    leave()


@pytest.mark.parametrize(
    'bank, with_cp',
    [(TIED, False), (BASIS, False), (TIED, True), (BASIS, True)],
    ids=['tied', 'basis', 'tied-checkpointed', 'basis-checkpointed'],
)
@pytest.mark.slow
def test_gradients_agree_across_processes(bank, with_cp, tmp_path):
    model = network(bank)
    torch.save(model.state_dict(), tmp_path / 'start.pth')
    in_two_processes(worker, bank, with_cp, str(tmp_path))
    loss, grads = gradients(model, *batch())
    for rank in range(2):
        other_loss, other_grads = torch.load(tmp_path / f'{rank}.pth', weights_only=True)
        torch.testing.assert_close(other_loss, loss)
        for name, grad in grads.items():
            assert (grad - other_grads[name]).abs().max() <= 1e-10 * grad.abs().max(), name


SGD = dict(type='SGD', lr=0.1, momentum=0.9)


def take_steps(model, optimizer, inputs, labels):
    optimizer = OPTIMIZERS.build(dict(params=model.parameters(), **optimizer))
    for _ in range(2):
        optimizer.zero_grad()
        gradients(model, inputs, labels)
        optimizer.step()


def sharded_worker(rank, bank, optimizer, wrapper, folder):
    model = MODEL_WRAPPERS.build(dict(wrapper, module=start(rank, bank, folder)))
    inputs, labels = batch()
    take_steps(model, optimizer, inputs[2 * rank : 2 * rank + 2], labels[2 * rank : 2 * rank + 2])
    if isinstance(model, FullyShardedDataParallel):
        FullyShardedDataParallel.set_state_dict_type(model, StateDictType.FULL_STATE_DICT)
        state = model.state_dict()
    else:
        state = model.module.state_dict()
    torch.save(state, f'{folder}/{rank}.pth')
    leave()


@pytest.mark.parametrize('bank', [TIED, BASIS], ids=['tied', 'basis'])
@pytest.mark.parametrize(
    'optimizer, wrapper',
    [
        (dict(SGD, type='ZeroRedundancyOptimizer', optimizer_type='SGD'), dict(type='MMDistributedDataParallel')),
        (SGD, dict(type='MMFullyShardedDataParallel', use_orig_params=True, device_id=torch.device('cpu'))),
    ],
    ids=['zero', 'fsdp'],
)
@pytest.mark.slow
def test_sharded_training_takes_the_same_steps(bank, optimizer, wrapper, tmp_path):
    model = network(bank)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    torch.save(before, tmp_path / 'start.pth')
    in_two_processes(sharded_worker, bank, optimizer, wrapper, str(tmp_path))
    take_steps(model, SGD, *batch())
    state = torch.load(tmp_path / '0.pth', weights_only=True)
    assert state.keys() == model.state_dict().keys()
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(state[key], tensor)
    key = 'backbone.layer1.1.conv2.bank.filters'
    assert not torch.equal(before[key], state[key])


def split_worker(rank, folder):
    policy = partial(size_based_auto_wrap_policy, min_num_params=2000)
    model = MMFullyShardedDataParallel(
        start(rank, TIED, folder), auto_wrap_policy=policy, device_id=torch.device('cpu')
    )
    inputs, labels = batch()
    for act in (
        lambda: gradients(model, inputs, labels),
        lambda: model(inputs=inputs),
        lambda: GradientFlowHook().before_train(SimpleNamespace(model=model)),
    ):
        try:
            act()
        except SharingError as error:
            with open(f'{folder}/{rank}.txt', 'a') as file:
                file.write(f'{error}\n')
    leave()


@pytest.mark.slow
def test_units_that_part_what_is_shared_are_refused(tmp_path):
    torch.save(network(TIED).state_dict(), tmp_path / 'start.pth')
    in_two_processes(split_worker, str(tmp_path))
    told = (tmp_path / '0.txt').read_text().splitlines()
    assert len(told) == 3 and all('a unit of its own, and other layers share parameters' in line for line in told[:2])
    assert 'cannot see the parameters that FSDP shards' in told[2]


def loading_worker(rank, folder):
    runner = SharingRunner.__new__(SharingRunner)
    runner.model = start(rank, BASIS, folder)
    average = copy.deepcopy(runner.model)
    runner._hooks = [SimpleNamespace(ema_model=average)]

    def fit(self, *args, **kwargs):
        for tensor in (*self.model.parameters(), *average.parameters()):
            tensor.data.add_(rank)

    with patch.object(Runner, 'load_checkpoint', fit):
        runner.load_checkpoint('plain.pth')
    torch.save([network.state_dict() for network in (runner.model, average)], f'{folder}/{rank}.pth')
    leave()


@pytest.mark.slow
def test_processes_that_fit_a_checkpoint_have_the_same_weights(tmp_path):
    before = network(BASIS).state_dict()
    torch.save(before, tmp_path / 'start.pth')
    in_two_processes(loading_worker, str(tmp_path))
    for rank in range(2):
        for after in torch.load(tmp_path / f'{rank}.pth', weights_only=True):  # the network and its average
            assert all(torch.equal(after[key], tensor) for key, tensor in before.items())


def test_a_runner_that_would_save_one_process_of_fsdp_is_refused():
    runner = SharingRunner.__new__(SharingRunner)
    runner._distributed, runner.cfg, runner.logger = False, Config(), MMLogger.get_current_instance()
    model, wrapper = network(TIED), dict(type='MMFullyShardedDataParallel')
    assert runner.wrap_model(wrapper, model) is model  # as in mmengine, a single process needs no wrapper
    runner._distributed = True
    with pytest.raises(SharingError, match="FSDP: mmengine's Runner would save only the parts"):
        runner.wrap_model(wrapper, model)


def train_command(images, work_dir, *options):
    return [
        'projects/dsfb/configs/shared-resnet32-s8u1_4e_cifar10-jpeg.py',
        '--work-dir',
        str(work_dir),
        '--cfg-options',
        f'data_root={images}',
        'default_hooks.logger.interval=1',
        'train_dataloader.batch_size=5',
        'val_dataloader.batch_size=5',
        *loader_options('train', 'val'),
        *options,
    ]


# The images themselves: augmentation draws on the random state, which mmengine does not keep in a checkpoint.
PLAIN = ['train_dataloader.dataset.pipeline.1.padding=0', 'train_dataloader.dataset.pipeline.2.prob=0.0']


@pytest.mark.slow
def test_a_resumed_run_ends_in_the_same_weights(images, tmp_path):
    options = [*PLAIN, 'default_hooks.checkpoint.max_keep_ckpts=-1']
    for name, resume in (('whole', []), ('resumed', ['--resume', tmp_path / 'whole/epoch_2.pth'])):
        command = train_command(images, tmp_path / name, *options)
        result = Forked(tmp_path / f'{name}-output', 'train.py', *command, *resume).result()
        assert result.returncode == 0, result.stderr
    assert not (tmp_path / 'resumed/epoch_2.pth').exists()
    states = [load_checkpoint_file(str(tmp_path / run / 'epoch_4.pth')) for run in ('whole', 'resumed')]
    for key, tensor in states[0]['state_dict'].items():
        assert torch.equal(tensor, states[1]['state_dict'][key]), key
    earlier = load_checkpoint_file(str(tmp_path / 'whole/epoch_2.pth'))['state_dict']
    assert any(not torch.equal(tensor, earlier[key]) for key, tensor in states[0]['state_dict'].items())


@pytest.mark.slow
def test_a_killed_process_ends_the_job_and_it_can_be_resumed(images, tmp_path):
    environment = dict(os.environ, PATH=f'{Path(sys.executable).parent}:{os.environ["PATH"]}', PORT=free_port())
    config, *rest = train_command(images, tmp_path)
    command = ['tools/dist_train.sh', config, '2', *rest]
    job = subprocess.Popen(
        [*command, 'train_cfg.max_epochs=400'],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=environment,
    )
    try:
        assert any(re.search(r'Epoch\(train\) +\[3\]', line) for line in job.stdout)
        workers = Path(f'/proc/{job.pid}/task/{job.pid}/children').read_text().split()
        assert len(workers) == 2
        os.kill(int(workers[-1]), signal.SIGKILL)
        killed = time.monotonic()
        told = job.stdout.read()
        assert job.wait(120) != 0 and time.monotonic() - killed < 60
    finally:
        job.kill()
    assert 'tools/train.py FAILED' in told and 'Signal' in told
    last = int(re.search(r'epoch_(\d+)', (tmp_path / 'last_checkpoint').read_text())[1])
    more = [f'train_cfg.max_epochs={last + 2}', '--resume']
    results = in_two_ranks(tmp_path / 'output', 'train.py', config, *rest, *more)
    assert all(result.returncode == 0 for result in results), results
    # The last may be damaged, and the one before taken.
    resumed = re.search(r'resumed epoch: (\d+), ', results[0].stdout + results[0].stderr)
    assert int(resumed[1]) in (last - 1, last)
    assert (tmp_path / f'epoch_{last + 2}.pth').exists()
