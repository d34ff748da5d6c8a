"""The schedule-free optimisers, with the interface of schedulefree."""

import copy
import io

import numpy as np
import pytest
import torch

import fastmomentum.torch as ft
from tests.helpers.tensors import assert_same_tensors, make_params, set_gradients
from tests.published.test_optimizer_runs import FILE, RUNS

NAMES = {"schedule_free_sgd/schedulefree": ft.SGDScheduleFree, "schedule_free_adamw/schedulefree": ft.AdamWScheduleFree}
SAME = [run for run in RUNS if run["key"].partition(":")[0] in NAMES and not run["key"].endswith(":late")]


@pytest.mark.parametrize("run", SAME, ids=lambda run: run["key"])
def test_points_and_averages_are_those_of_schedulefree(run):
    params = [torch.nn.Parameter(torch.tensor(start, dtype=torch.float64)) for start in FILE["starts"][run["start"]]]
    settings = {name: value for name, value in run["settings"].items() if name not in ("foreach",)}
    opt = NAMES[run["key"].partition(":")[0]](params, **settings)
    for t, grads in enumerate(FILE["gradients"][run["gradients"]]["steps"]):
        for param, grad in zip(params, grads, strict=True):
            param.grad = None if grad is None else torch.tensor(grad, dtype=torch.float64)
        opt.step()
        if t % 3 == 2:  # the switch rounds, so that points after it differ in their last digits
            opt.eval()
            opt.eval()
            for param, expected in zip(params, run["averages"][t], strict=True):
                np.testing.assert_allclose(param.detach(), expected, rtol=1e-10, atol=1e-10)
            opt.train()
        for param, expected in zip(params, run["parameters"][t], strict=True):
            np.testing.assert_allclose(param.detach(), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("cls", NAMES.values(), ids=lambda cls: cls.__name__)
def test_step_in_evaluation_is_refused_and_the_mode_is_saved(cls):
    params = make_params()
    opt = cls(params, lr=0.1, warmup_steps=2)
    set_gradients(params, 0)
    opt.step()
    before = copy.deepcopy(params)
    opt.eval()
    with pytest.raises(RuntimeError, match=r"expected a call of opt.train\(\)"):
        opt.step()
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    copies = [torch.nn.Parameter(p.detach().clone()) for p in params]
    other = cls(copies, lr=0.1)
    other.load_state_dict(torch.load(file, weights_only=True))
    with pytest.raises(RuntimeError, match="a call of opt.train"):
        other.step()
    for each in (opt, other):
        each.train()
    for one, two in zip(params, before, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6)
    for number in range(1, 4):
        set_gradients(params, number)
        set_gradients(copies, number)
        opt.step()
        other.step()
    assert_same_tensors(params, copies)
    assert opt.param_groups[0]["warmup_steps"] == other.param_groups[0]["warmup_steps"] == 2


@pytest.mark.parametrize("cls", NAMES.values(), ids=lambda cls: cls.__name__)
def test_unknown_arguments_are_refused(cls):
    with pytest.raises(TypeError, match="betta"):
        cls(make_params(), betta=1)
    with pytest.raises(ValueError, match="learning rate"):
        cls(make_params(), lr=-1.0)


@pytest.mark.parametrize("cls", NAMES.values(), ids=lambda cls: cls.__name__)
def test_average_is_kept_when_momentum_changes(cls):
    params = make_params()
    opt = cls(params, lr=0.1)
    for number in range(3):
        set_gradients(params, number)
        opt.step()
    points = [p.detach().clone() for p in params]
    opt.eval()
    averages = [p.detach().clone() for p in params]
    for group in opt.param_groups:
        group.update({"betas": (0.5, 0.999)} if "betas" in group else {"momentum": 0.5})
    opt.train()
    for param, point in zip(params, points, strict=True):
        torch.testing.assert_close(param.detach(), point)
    opt.eval()
    for param, average in zip(params, averages, strict=True):
        torch.testing.assert_close(param.detach(), average)


WRONG = [
    (ft.SGDScheduleFree, {"momentum": 0.0}, r"momentum: expected a number in \(0, 1\).* got 0.0"),
    (ft.SGDScheduleFree, {"momentum": 1.0}, r"momentum: expected a number in \(0, 1\).* got 1.0"),
    (ft.SGDScheduleFree, {"warmup_steps": -1}, "warmup_steps"),
    (ft.AdamWScheduleFree, {"betas": (0.0, 0.9)}, r"betas\[0\]: expected a number in \(0, 1\).* got 0.0"),
    (ft.AdamWScheduleFree, {"weight_lr_power": -1.0}, "weight_lr_power"),
    (ft.AdamWScheduleFree, {"r": -1.0}, "Invalid r value"),
]


@pytest.mark.parametrize(("cls", "settings", "message"), WRONG)
def test_setting_out_of_its_range_is_refused_by_its_own_name(cls, settings, message):
    with pytest.raises(ValueError, match=message):
        cls(make_params(), **settings)
