"""Two processes with half of the batch each take the step of one process with the whole."""
import copy
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from helpers import BASIS, TIED, Classifier, backbone, randomise_norms
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import init_default_scope

from mmshared import OrthogonalityLossHook, shared_stages


def network(bank, **kwargs):
    init_default_scope('mmpretrain')
    torch.manual_seed(0)
    model = Classifier(randomise_norms(backbone(depth=34, bank=bank, **kwargs)), 128).double()
    for banks in shared_stages(model).values():
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


def worker(rank, bank, folder):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/meet', rank=rank, world_size=2)
    model = network(bank)
    model.load_state_dict(torch.load(f'{folder}/start.pth', weights_only=True))  # QR differs with the threads
    model = MMDistributedDataParallel(model)
    inputs, labels = batch()
    result = gradients(model, inputs[2 * rank:2 * rank + 2], labels[2 * rank:2 * rank + 2])
    torch.save(result, f'{folder}/{rank}.pth')
    dist.destroy_process_group()


@pytest.mark.parametrize('bank', [TIED, BASIS], ids=lambda bank: bank['type'])
def test_gradients_agree_across_processes(bank, tmp_path):
    model = network(bank)
    torch.save(model.state_dict(), tmp_path / 'start.pth')
    mp.spawn(worker, (bank, str(tmp_path)), nprocs=2)
    loss, grads = gradients(model, *batch())
    for rank in range(2):
        other_loss, other_grads = torch.load(tmp_path / f'{rank}.pth', weights_only=True)
        torch.testing.assert_close(other_loss, loss)
        for name, grad in grads.items():
            assert (grad - other_grads[name]).abs().max() <= 1e-10 * grad.abs().max(), name


def test_a_copy_of_a_hooked_model_trains_alone():
    model = network(TIED)
    hook = OrthogonalityLossHook()
    hook.before_train(SimpleNamespace(model=model))
    twin = copy.deepcopy(model)
    inputs, labels = batch()
    sum(twin(inputs=inputs, labels=labels, mode='loss').values()).backward()
    hook.after_train(None)
    assert all(p.grad is not None for p in twin.parameters())
