"""torch's own optimizer database: its inputs for SGD, and the runs that its tests do with them."""

import sys
import unittest
from functools import partial

import pytest
import torch
from hypothesis import settings

import fastmomentum.torch as ft
from tests.helpers.tensors import copies_of, make_params, rounding_limit, steps

profile = settings.get_current_profile_name()
with pytest.MonkeyPatch.context() as patch:  # the database needs no more of this package than a base class
    patch.setitem(sys.modules, "expecttest", unittest)
    from torch.testing._internal.common_optimizers import optim_db
settings.load_profile(profile)  # torch.testing loads one of its own, for all tests of the process

(INFO,) = [info for info in optim_db if info.optim_cls is torch.optim.SGD]
INPUTS = {each.desc: each.kwargs for each in INFO.optim_inputs_func("cpu")}
ERRORS = INFO.optim_error_inputs_func("cpu", torch.float32)
LATER_FLAGS = ("foreach", "differentiable", "fused", "maximize", "capturable")
DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128, torch.bfloat16, torch.float16)

every_input = pytest.mark.parametrize("settings", INPUTS, indirect=True)
every_class = pytest.mark.parametrize(
    "make", [partial(torch.optim.SGD, foreach=False), ft.SGD], ids=["torch", "fastmomentum"]
)
"""The first column shows that a case is one that torch's for-loop SGD passes."""


def network():
    """Return a linear model with a scalar bias, and the function that computes its loss and gradients."""
    weight, bias = make_params(((10, 5), (10,)), seed=1)
    value = torch.linspace(0.1, 1.0, 5)

    def closure():
        weight.grad = bias.grad = None
        loss = (weight.mv(value) + bias).pow(2).sum()
        loss.backward()
        return loss

    return [weight, bias], closure


def assert_goes_right(opt, closure, schedulers=(), maximize=False, count=20):
    before = closure().item()
    for _ in range(count):
        loss = opt.step(closure)
        for scheduler in schedulers:
            if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
                scheduler.step(loss.detach())
            else:
                scheduler.step()
    assert closure().item() > before if maximize else closure().item() < before


def state_of(opt):
    return [value for entry in opt.state.values() for value in entry.values()]


def two_runs(settings, params, count=6):
    """Return (parameters, optimiser) of a run with torch's for-loop SGD, and of one with ours, on copies."""
    found = []
    for make in (partial(torch.optim.SGD, foreach=False), ft.SGD):
        own = copies_of(params)
        opt = make(own, **settings)
        steps(own, opt, range(count))
        found.append((own, opt))
    return found


def limit_of(params, opt, count=6, eps=None):
    group = opt.param_groups[0]
    return rounding_limit(params, state_of(opt), count, float(group["lr"]), group["momentum"], eps)
