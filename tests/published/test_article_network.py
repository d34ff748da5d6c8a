"""The article on the momentum method: a network with 20 hidden units learns x² + 0.1·ε.

The article's code does not run as printed: it has Dataa for Data, dataset for torch_dataset, net for net_Momentum, a
train_data that is not defined, and loops without indentation. One of its comments says 0.9 for its momentum of 0.8. Its
own function has the classical form.
"""

from functools import cache

import numpy as np
import pytest
import torch

import fastmomentum as fm
from tests.helpers.reference import assert_all_same_bits

NET_LR, GAMMA, EPOCHS, BATCH = 0.01, 0.8, 12, 32
STEPS = EPOCHS * 32  # an epoch has 1000 points: 31 batches of 32, and one of 8


def network():
    """Return the network and its batches, which are equal at every call, without a change of torch's own generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        x = torch.unsqueeze(torch.linspace(-1, 1, 1000), dim=1)
        y = x.pow(2) + 0.1 * torch.randn(*x.size())
        net = torch.nn.Sequential(torch.nn.Linear(1, 20), torch.nn.ReLU(), torch.nn.Linear(20, 1))
        batches = [batch for _ in range(EPOCHS) for batch in torch.randperm(1000).split(BATCH)]
    return net, [(x[batch], y[batch]) for batch in batches]


def backward(net, x, y):
    """Compute the gradients of the loss, and return the loss."""
    loss = torch.nn.functional.mse_loss(net(x), y)
    net.zero_grad()
    loss.backward()
    return loss.item()


def arrays(tensors):
    """Return arrays that share the memory of the tensors."""
    return [tensor.detach().numpy() for tensor in tensors]


@cache
def trained_by_package(rule, momentum, lr=NET_LR):
    """Return the losses of all steps and the final parameters."""
    net, batches = network()
    params = list(net.parameters())
    opt = fm.Momentum(arrays(params), rule=rule, lr=lr, momentum=momentum)
    losses = []
    for x, y in batches:
        losses.append(backward(net, x, y))
        opt.step(arrays(p.grad for p in params))
    return np.array(losses), np.concatenate([p.ravel() for p in arrays(params)])


@cache
def trained_by_torch(momentum):
    """Return the losses of all steps and the final parameters."""
    net, batches = network()
    params = list(net.parameters())
    opt = torch.optim.SGD(params, lr=NET_LR, momentum=momentum, foreach=False, fused=False)
    losses = []
    for x, y in batches:
        losses.append(backward(net, x, y))
        opt.step()
    return np.array(losses), np.concatenate([p.ravel() for p in arrays(params)])


def difference(one, other):
    """Return the largest difference of the losses and of the parameters, in float32 eps of the largest of each."""
    unit = np.finfo(np.float32).eps
    return [abs(a - b).max() / (unit * abs(b).max()) for a, b in zip(one, other, strict=True)]


@pytest.mark.parametrize(
    ("rule", "momentum"),
    [("pytorch", GAMMA), ("classical", GAMMA), ("pytorch", 0.0), ("classical", 0.0), ("sgd", 0.0)],
)
def test_momentum_trains_a_network_as_torch_does(rule, momentum):
    """torch contracts products and sums to FMA, and so may round a parameter differently, by a unit at most a step.

    Such roundings fall to either side. Their sum grows as a random walk, with the root of the number of steps, and
    descent only makes it smaller. Less than 2 units were measured. A run whose lr is a thousandth off is well outside.
    """
    ours, theirs = trained_by_package(rule, momentum), trained_by_torch(momentum)
    assert len(ours[0]) == STEPS
    assert max(difference(ours, theirs)) < STEPS**0.5
    assert min(difference(trained_by_package(rule, momentum, 1.001 * NET_LR), theirs)) > STEPS**0.5


def test_classical_has_the_bits_of_the_article_s_own_function_at_every_step():
    net, batches = network()
    params = list(net.parameters())
    theirs = [p.detach().clone() for p in params]
    vs = [torch.zeros_like(p) for p in theirs]
    opt = fm.Momentum(arrays(params), rule="classical", lr=NET_LR, momentum=GAMMA)
    for x, y in batches:
        backward(net, x, y)
        opt.step(arrays(p.grad for p in params))
        for i, (v, p) in enumerate(zip(vs, params, strict=True)):
            v[:] = GAMMA * v + NET_LR * p.grad
            theirs[i] = theirs[i] - v
        assert_all_same_bits([*arrays(params), *opt.velocity], arrays([*theirs, *vs]))


def test_momentum_lowers_the_loss_of_a_network_at_every_epoch():
    plain, with_momentum = (
        trained_by_package(rule, momentum)[0].reshape(EPOCHS, -1).mean(1)
        for rule, momentum in (("sgd", 0.0), ("pytorch", GAMMA))
    )
    assert (np.diff(plain) < 0).all()
    assert (np.diff(with_momentum) < 0).all()
    assert (with_momentum < plain).all()
    assert with_momentum[-1] < plain[-1] / 4  # the two are 0.017 and 0.075, of which the noise alone is 0.01
