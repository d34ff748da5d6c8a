"""Every scheduler of torch, momentum that cycles, and averaged weights: a run with ours beside one with torch.optim."""

import copy
import inspect
import io
import warnings

import pytest
import torch
from torch.optim import lr_scheduler, swa_utils

import fastmomentum.torch as ft
from tests.helpers.tensors import assert_same_tensors, copies_of, make_params, set_gradients, steps

STEPS = 40
RELATIVE = 1e-6
"""The distance of two runs of 40 steps; float64 rounds by 1e-16, so that only another lr or momentum shows."""


def one_cycle(opt, **settings):
    return lr_scheduler.OneCycleLR(opt, max_lr=0.1, total_steps=STEPS + 1, **settings)


def cyclic(opt, **settings):
    return lr_scheduler.CyclicLR(opt, 0.01, 0.1, step_size_up=5, **settings)


def sequential(opt):
    first, second = lr_scheduler.ConstantLR(opt, 0.1, 9), lr_scheduler.ExponentialLR(opt, 0.9)
    return lr_scheduler.SequentialLR(opt, [first, second], milestones=[9])


def chained(opt):
    return lr_scheduler.ChainedScheduler([lr_scheduler.ConstantLR(opt, 0.1, 9), lr_scheduler.ExponentialLR(opt, 0.9)])


SCHEDULERS = {
    "LambdaLR": lambda opt: lr_scheduler.LambdaLR(opt, lambda epoch: 0.95**epoch),
    "MultiplicativeLR": lambda opt: lr_scheduler.MultiplicativeLR(opt, lambda epoch: 0.95),
    "StepLR": lambda opt: lr_scheduler.StepLR(opt, 7, 0.5),
    "MultiStepLR": lambda opt: lr_scheduler.MultiStepLR(opt, [3, 17], 0.5),
    "ConstantLR": lambda opt: lr_scheduler.ConstantLR(opt, 0.25, 9),
    "LinearLR": lambda opt: lr_scheduler.LinearLR(opt, 0.25, 1.0, 9),
    "ExponentialLR": lambda opt: lr_scheduler.ExponentialLR(opt, 0.9),
    "SequentialLR": sequential,
    "PolynomialLR": lambda opt: lr_scheduler.PolynomialLR(opt, 30, 2.0),
    "CosineAnnealingLR": lambda opt: lr_scheduler.CosineAnnealingLR(opt, 15, 0.001),
    "ChainedScheduler": chained,
    "ReduceLROnPlateau": lambda opt: lr_scheduler.ReduceLROnPlateau(opt, patience=2, factor=0.5),
    "CyclicLR": cyclic,
    "CosineAnnealingWarmRestarts": lambda opt: lr_scheduler.CosineAnnealingWarmRestarts(opt, 6, 2),
    "OneCycleLR": one_cycle,
    "SWALR": lambda opt: swa_utils.SWALR(opt, swa_lr=0.02, anneal_epochs=9),
}
"""For each class of schedulers a function that makes one for an optimiser."""

VARIANTS = SCHEDULERS | {
    "OneCycleLR, linear, three phases": lambda opt: one_cycle(opt, anneal_strategy="linear", three_phase=True),
    "OneCycleLR without momentum": lambda opt: one_cycle(opt, cycle_momentum=False),
    "CyclicLR, exp_range": lambda opt: cyclic(opt, mode="exp_range", gamma=0.9),
    "CyclicLR without momentum": lambda opt: cyclic(opt, cycle_momentum=False),
    "SWALR, linear": lambda opt: swa_utils.SWALR(opt, swa_lr=0.02, anneal_epochs=9, anneal_strategy="linear"),
}


def test_table_has_every_scheduler_of_torch():
    found = {
        name
        for module in (lr_scheduler, swa_utils)
        for name, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, lr_scheduler.LRScheduler) and name[0] != "_"
    }
    assert found - {"LRScheduler"} == {*SCHEDULERS}


def advance(scheduler, number):
    if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
        scheduler.step(1.0 / (1 + min(number, 4)))
    else:
        scheduler.step()


def run(params, opt, scheduler, numbers):
    """Do steps, and return the settings that each had."""
    seen = []
    for number in numbers:
        set_gradients(params, number)
        seen.append([(float(group["lr"]), group["momentum"]) for group in opt.param_groups])
        opt.step()
        advance(scheduler, number)
    return seen


def begin(optimizer, make_scheduler, params, lr=0.05):
    own = copies_of(params)
    split = [{"params": own[:2]}, {"params": own[2:], "weight_decay": 0.01}]
    opt = optimizer(split, lr=copy.copy(lr), momentum=0.9, nesterov=True)
    return own, opt, make_scheduler(opt)


def assert_near(found, expected):
    for one, two in zip(found, expected, strict=True):
        one, two = one.detach(), two.detach()
        torch.testing.assert_close(one, two, rtol=RELATIVE, atol=RELATIVE * float(two.abs().max()))


@pytest.mark.parametrize("name", VARIANTS)
def test_run_of_a_scheduler_is_that_of_torch(name, numpy_backend):
    params = make_params(dtype=torch.float64)
    theirs, ours = (begin(optimizer, VARIANTS[name], params) for optimizer in (torch.optim.SGD, ft.SGD))
    expected = run(*theirs, range(STEPS))
    assert run(*ours, range(STEPS)) == expected
    assert len({settings[0] for settings in expected}) > 1
    assert_near(ours[0], theirs[0])
    buffers = [[opt.state[p]["momentum_buffer"] for p in own] for own, opt, _ in (ours, theirs)]
    assert_near(*buffers)


@pytest.mark.parametrize("name", ["OneCycleLR", "CyclicLR", "CosineAnnealingLR", "ReduceLROnPlateau"])
def test_run_of_a_scheduler_with_lr_in_a_tensor_is_that_of_torch(name, numpy_backend):
    params, lr = make_params(dtype=torch.float64), torch.tensor(0.05, dtype=torch.float64)
    theirs, ours = (begin(optimizer, VARIANTS[name], params, lr.clone()) for optimizer in (torch.optim.SGD, ft.SGD))
    assert run(*ours, range(STEPS)) == run(*theirs, range(STEPS))
    assert_near(ours[0], theirs[0])


def saved_and_loaded(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_scheduler_and_optimiser_go_on_after_a_load(name, numpy_backend):
    params = make_params(dtype=torch.float64)
    stays = begin(ft.SGD, VARIANTS[name], params)
    run(*stays, range(STEPS))
    first = begin(ft.SGD, VARIANTS[name], params)
    run(*first, range(13))
    second = begin(ft.SGD, VARIANTS[name], first[0])
    for target, source in zip(second[1:], first[1:], strict=True):
        target.load_state_dict(saved_and_loaded(source.state_dict()))
    run(*second, range(13, STEPS))
    assert_same_tensors(second[0], stays[0])


def test_momentum_that_cycles_reaches_the_steps():
    params = make_params(((3,),))
    opt = ft.SGD(params, lr=0.01, momentum=0.5)
    scheduler = one_cycle(opt, base_momentum=0.25, max_momentum=0.75)
    reference, expected = params[0].detach().double(), 0.0
    for number in range(STEPS):
        set_gradients(params, number)
        group = opt.param_groups[0]
        expected = group["momentum"] * expected + params[0].grad.double()
        reference = reference - group["lr"] * expected
        opt.step()
        scheduler.step()
    assert_near([params[0].double()], [reference])


def model_and_data():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6), torch.nn.Tanh(), torch.nn.Linear(6, 1))
    return model, [torch.randn(8, 4) for _ in range(6)]


@pytest.mark.parametrize("average", [None, "swa", "ema"])
def test_averaged_model_and_its_batch_norm_are_those_of_torch(average):
    functions = {"swa": swa_utils.get_swa_multi_avg_fn(), "ema": swa_utils.get_ema_multi_avg_fn(0.5), None: None}
    found = []
    for optimizer in (torch.optim.SGD, ft.SGD):
        model, data = model_and_data()
        averaged = swa_utils.AveragedModel(model, multi_avg_fn=functions[average])
        opt = optimizer(model.parameters(), lr=0.05, momentum=0.9)
        scheduler = swa_utils.SWALR(opt, swa_lr=0.02, anneal_epochs=3)
        for batch in data:
            opt.zero_grad()
            model(batch).square().mean().backward()
            opt.step()
            averaged.update_parameters(model)
            scheduler.step()
        swa_utils.update_bn(data, averaged)
        found.append([*averaged.parameters(), *averaged.buffers()])
    for ours, theirs in zip(*reversed(found), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)  # six steps through float32 networks


def test_scheduler_warns_as_in_torch_only_if_it_is_stepped_first():
    counts = []
    for optimizer in (torch.optim.SGD, ft.SGD):
        for first in (True, False):
            params = make_params(((3,),))
            opt = optimizer(params, lr=0.1)
            scheduler = lr_scheduler.ExponentialLR(opt, 0.9)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                if first:
                    scheduler.step()
                steps(params, opt, [0])
                scheduler.step()
            counts.append(len(caught))
    assert counts == [1, 0, 1, 0]
