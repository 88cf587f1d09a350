"""Two processes with half of the batch each take the step of one process with the whole."""
import copy
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from helpers import BASIS, TIED, Classifier, backbone, randomise_norms, stage_banks
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import init_default_scope

from mmshared import OrthogonalityLossHook


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


def worker(rank, bank, with_cp, folder):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/meet', rank=rank, world_size=2)
    model = network(bank, with_cp)
    model.load_state_dict(torch.load(f'{folder}/start.pth', weights_only=True))  # QR differs with the threads
    model = MMDistributedDataParallel(model, static_graph=with_cp)
    inputs, labels = batch()
    result = gradients(model, inputs[2 * rank:2 * rank + 2], labels[2 * rank:2 * rank + 2])
    torch.save(result, f'{folder}/{rank}.pth')
    dist.destroy_process_group()


@pytest.mark.parametrize('bank, with_cp', [(TIED, False), (BASIS, False), (TIED, True), (BASIS, True)],
                         ids=['tied', 'basis', 'tied-checkpointed', 'basis-checkpointed'])
def test_gradients_agree_across_processes(bank, with_cp, tmp_path):
    model = network(bank)
    torch.save(model.state_dict(), tmp_path / 'start.pth')
    mp.spawn(worker, (bank, with_cp, str(tmp_path)), nprocs=2)
    loss, grads = gradients(model, *batch())
    for rank in range(2):
        other_loss, other_grads = torch.load(tmp_path / f'{rank}.pth', weights_only=True)
        torch.testing.assert_close(other_loss, loss)
        for name, grad in grads.items():
            assert (grad - other_grads[name]).abs().max() <= 1e-10 * grad.abs().max(), name


def test_a_copy_of_a_hooked_model_has_a_loss_of_its_own():
    model = network(TIED)
    hook = OrthogonalityLossHook()
    hook.before_train(SimpleNamespace(model=model))
    twin = copy.deepcopy(model)
    for banks in stage_banks(twin).values():
        banks[0].filters.data *= 1.5
    inputs, labels = batch()
    losses = [each(inputs=inputs, labels=labels, mode='loss')['loss_orth'] for each in (model, twin)]
    assert losses[1] > 2 * losses[0]
    losses[1].backward()
    assert all(p.grad is None for p in model.parameters())
    assert sum(p.grad is not None for p in twin.parameters()) == 4
