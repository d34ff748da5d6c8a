"""What torch.optim lacks: every rule, limits on gradients, skipped updates, functions of the step, traces."""

import io
import math
import sys

import numpy as np
import pytest
import torch

import fastmomentum as fm
import fastmomentum.torch as ft
from fastmomentum.rules.registry import find
from tests.helpers.copies import every_copy
from tests.helpers.reference import assert_same_bits
from tests.helpers.tensors import assert_same_tensors, assert_within, copies_of, make_params, set_gradients, steps

SHAPES = ((33,), (4, 5), ())
HYPER = {"momentum": 0.8, "beta2": 0.95, "nu": 0.7}
RULES = {
    **{name: name for name in fm.rules.names()},
    "chain": fm.chain(fm.stages.scale(0.5), fm.stages.clip_value(0.5), "ema"),
    "chain with decay": fm.chain("pytorch", fm.stages.decoupled_weight_decay(0.1)),
    "averaged": fm.averaged("pytorch", 0.9),
    "mean": fm.averaged("ema"),
    "cautious": fm.cautious("adamw"),
    "filtered": fm.chain(fm.stages.grokfast, fm.stages.mars, "adam"),
}


def settings_of(rule):
    """Return values for the hyper-parameters of a rule that have no default."""
    needed = {*find(rule).parameters}.difference(find(rule).defaults)
    return {"lr": 0.1} | {name: value for name, value in HYPER.items() if name in needed}


def saved_and_loaded(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("moves", [False, True], ids=["", "moved"])
@pytest.mark.parametrize("name", RULES)
def test_every_rule_has_the_bits_of_fm_optimizer(name, moves, numpy_backend):
    """Check parameters and state, of which the third parameter's starts late; a run can be saved and loaded in it."""
    params = make_params(SHAPES)
    arrays = [p.detach().numpy().copy() for p in params]
    settings = settings_of(RULES[name])
    theirs = fm.Optimizer(arrays, RULES[name], **settings, backend="numpy")
    opt = ft.Optimizer(params, RULES[name], **settings)
    for number in range(6):
        if moves and number in (2, 4):
            params = copies_of(params)
            other = ft.Optimizer(params, RULES[name], **settings)
            other.load_state_dict(saved_and_loaded(opt.state_dict()))
            opt = other
        set_gradients(params, number)
        if number < 3:
            params[2].grad = None
        theirs.step([None if p.grad is None else p.grad.numpy() for p in params])
        opt.step()
    for param, p in zip(params, arrays, strict=True):
        assert_same_bits(param.detach().numpy(), p)
    for param, slots in zip(params, theirs.state, strict=True):
        found = [value for key, value in opt.state[param].items() if key not in ("step", "memory", "mu_product")]
        expected = slots if isinstance(slots, tuple) else () if slots is None else (slots,)
        for one, two in zip(found, expected, strict=True):
            assert_same_bits(one.numpy(), two)


def test_updates_that_a_rule_counts_are_part_of_its_state(numpy_backend):
    params = make_params(SHAPES)
    opt = ft.Optimizer(params, "ema_corrected", lr=0.1, momentum=0.8)
    for number in range(3):
        set_gradients(params, number)
        if number < 2:
            params[2].grad = None
        opt.step()
    assert [float(opt.state[p]["step"]) for p in params] == [3.0, 3.0, 1.0]


NAMED = {
    "Lion": (lambda params: ft.Lion(params, lr=0.1, betas=(0.8, 0.95)), "lion", {"momentum": 0.8, "beta2": 0.95}),
    "Signum": (lambda params: ft.Signum(params, lr=0.1, momentum=0.8), "signum", {"momentum": 0.8}),
    "QHM": (lambda params: ft.QHM(params, 0.1, 0.8, nu=0.5), "quasi_hyperbolic", {"momentum": 0.8, "nu": 0.5}),
}


@pytest.mark.parametrize("name", NAMED)
def test_named_class_does_the_steps_of_its_rule(name, numpy_backend):
    make, rule, settings = NAMED[name]
    params, others = make_params(SHAPES), make_params(SHAPES)
    steps(params, make(params), range(3))
    steps(others, ft.Optimizer(others, rule, lr=0.1, **settings), range(3))
    assert_same_tensors(params, others)


def test_betas_of_lion_are_read_at_each_step(numpy_backend):
    params, others = make_params(SHAPES), make_params(SHAPES)
    opt, other = ft.Lion(params, lr=0.1), ft.Optimizer(others, "lion", lr=0.1, momentum=0.9)
    for number in range(4):
        opt.param_groups[0]["betas"] = (0.5, 0.9 - 0.1 * number)
        other.param_groups[0].update(momentum=0.5, beta2=0.9 - 0.1 * number)
        steps(params, opt, [number])
        steps(others, other, [number])
    assert_same_tensors(params, others)


def norm_of(params):
    return math.sqrt(sum(float(p.grad.double().square().sum()) for p in params))


def test_max_norm_does_the_steps_of_clip_grad_norm(numpy_backend):
    """Compare to 1e-5: torch divides by norm + 1e-6."""
    runs = []
    for optimizer, options in ((torch.optim.SGD, {}), (ft.SGD, {"max_norm": 2.0})):
        params = make_params(SHAPES)
        opt = optimizer([{"params": params[:1]}, {"params": params[1:], "lr": 0.05}], lr=0.1, momentum=0.5, **options)
        for number in range(4):
            set_gradients(params, number)
            for p in params:
                p.grad *= 0.1 if number == 2 else 1.0  # below the limit
            before = norm_of(params)
            if not options:
                torch.nn.utils.clip_grad_norm_(params, 2.0)
            opt.step()
            assert (before > 2.0) == (number != 2)
            assert not options or norm_of(params) == before
        runs.append(params)
    assert_within(*runs, limit=1e-5)


def test_clip_value_does_the_steps_of_clip_grad_value():
    runs = []
    for options in ({}, {"clip_value": 0.5}):
        params = make_params(SHAPES)
        opt = ft.SGD(params, lr=0.1, momentum=0.5, **options)
        for number in range(4):
            set_gradients(params, number)
            if not options:
                torch.nn.utils.clip_grad_value_(params, 0.5)
            opt.step()
        runs.append(params)
    assert_same_tensors(*runs)


def test_skip_nonfinite_skips_what_grad_scaler_skips(numpy_backend):
    runs = []
    for options in ({}, {"skip_nonfinite": True}):
        params = make_params(SHAPES)
        opt = ft.SGD(params, lr=0.1, momentum=0.5, **options)
        scaler = torch.amp.GradScaler("cpu", init_scale=1.0, growth_interval=100, enabled=not options)
        for number in range(5):
            opt.zero_grad()
            scale = torch.inf if number in (0, 2) else 1.0
            scaler.scale(sum((p * p).sum() for p in params) * scale).backward()
            scaler.step(opt)
            scaler.update()
        runs.append(params)
    assert_same_tensors(*runs)
    assert opt.steps == 3


def test_skipped_first_step_makes_no_state(numpy_backend):
    params = make_params(SHAPES)
    opt = ft.SGD(params, lr=0.1, momentum=0.5, dampening=0.5, skip_nonfinite=True)
    set_gradients(params, 0)
    params[0].grad[0] = torch.nan
    opt.step()
    assert len(opt.state) == 0
    others = copies_of(params)
    steps(params, opt, [1])
    steps(others, torch.optim.SGD(others, lr=0.1, momentum=0.5, dampening=0.5), [1])
    assert_within(params, others, limit=1e-6)  # the first step that is done is not dampened


def test_options_are_assigned_in_mid_run(numpy_backend):
    weight = torch.nn.Parameter(torch.zeros(4))
    opt = ft.SGD([weight], lr=1.0)
    for grad, name, value, moved in (
        (1.0, "max_norm", 1.0, 0.5),
        (1.0, "max_norm", None, 1.0),
        (math.inf, "skip_nonfinite", True, 0.0),
        (1.0, "threads", 2, 1.0),
    ):
        setattr(opt, name, value)
        assert getattr(opt, name) == value
        before = weight.detach().clone()
        weight.grad = torch.full((4,), grad)
        opt.step()
        assert_within([weight], [before - moved], limit=1e-6)  # the factor of max_norm is rounded downwards
    assert opt.steps == 3


WRONG = [
    ({"max_norm": -1.0}, ValueError, "max_norm: expected a finite number > 0; got -1.0"),
    ({"max_norm": "a"}, TypeError, "max_norm: expected a finite number > 0; got 'a'"),
    ({"skip_nonfinite": -1}, ValueError, "skip_nonfinite: expected a whole number from 1"),
    ({"threads": 0}, ValueError, "threads: expected a whole number from 1 to"),
]


@pytest.mark.parametrize(("options", "error", "message"), WRONG, ids=str)
def test_wrong_option_is_refused_when_it_is_given_and_when_it_is_assigned(options, error, message):
    params = make_params(SHAPES)
    with pytest.raises(error, match=message):
        ft.SGD(params, **options)
    opt = ft.SGD(params)
    ((name, value),) = options.items()
    before = getattr(opt, name)
    with pytest.raises(error, match=message):
        setattr(opt, name, value)
    assert getattr(opt, name) == before


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"lr": "a"}, TypeError, "lr: expected a finite number >= 0; got 'a'"),
        ({"lr": math.nan}, ValueError, "lr: expected a finite number >= 0; got nan"),
        ({"momentum": None}, TypeError, r"momentum: expected a number in \[0, 1\]; got None"),
        ({"momentum": 1.5}, ValueError, r"momentum: expected a number in \[0, 1\]; got 1.5"),
        ({"dampening": 2.0}, ValueError, r"dampening: expected a number in \[0, 1\]; got 2.0"),
        ({"clip_value": -1.0}, ValueError, "clip_value: expected a finite number > 0; got -1.0"),
        ({"lookahead": True}, TypeError, "lookahead: SGD takes no such argument"),
        ({"max_nrm": 1.0}, TypeError, "max_nrm: SGD takes no such argument. Did you mean max_norm"),
        ({"momentun": 1.0}, TypeError, "momentun: SGD takes no such argument. Did you mean momentum"),
        ({"nesterov": True}, ValueError, "Nesterov momentum requires a momentum and zero dampening"),
    ],
    ids=str,
)
def test_wrong_setting_is_refused(settings, error, message):
    with pytest.raises(error, match=message):
        ft.SGD(make_params(SHAPES), **settings)


def test_unknown_rule_is_refused():
    with pytest.raises((TypeError, ValueError), match="rule"):
        ft.Optimizer(make_params(SHAPES), "adan", lr=0.1)


def half_each_time(step):
    return 0.5**step


def late(params, opt):
    params[1].grad = torch.ones(2)


# For each reason to make a run again, the function that gives it, before the third step.
REASONS = {
    "none": lambda params, opt: None,
    "a late gradient": late,
    "another layout": lambda params, opt: setattr(params[0], "data", torch.zeros(6)[::2] + params[0].data[0]),
    "holes": lambda params, opt: setattr(params[0], "data", params[0].data.repeat_interleave(2)[::2]),
    "a group": lambda params, opt: opt.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))]}),
    "a load": lambda params, opt: opt.load_state_dict(opt.state_dict()),
    "an option": lambda params, opt: setattr(opt, "max_norm", 100.0),
    "a trace": lambda params, opt: opt.trace(),
}


@pytest.mark.parametrize("reason", REASONS)
def test_functions_of_the_step_go_on_when_a_run_is_made_again(reason, numpy_backend):
    params = [torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2))]
    opt = ft.SGD(params, lr=half_each_time)
    moved = []
    for number in range(5):
        params[0].grad = torch.ones(3)
        if number == 2:
            REASONS[reason](params, opt)
        before = params[0].detach().clone()
        opt.step()
        moved.append((before - params[0].detach())[0].item())
    assert moved == [1.0, 0.5, 0.25, 0.125, 0.0625]
    assert opt.steps == 5


@every_copy
def test_copy_goes_on_with_functions_of_the_step(make_copy, numpy_backend):
    (weight,) = make_params(((3,),))
    opt = ft.SGD([weight], lr=half_each_time, momentum=0.5)
    steps([weight], opt, range(2))
    twin = make_copy(opt)
    assert twin.steps == 2
    own = twin.param_groups[0]["params"]
    steps(own, twin, [2])
    steps([weight], opt, [2])
    assert_same_tensors(own, [weight])


def test_number_of_steps_is_assigned_after_a_load(numpy_backend):
    (weight,) = make_params(((3,),))
    opt = ft.SGD([weight], lr=half_each_time)
    opt.steps = 3
    before = weight.detach().clone()
    weight.grad = torch.ones(3)
    opt.step()
    assert_same_tensors([weight], [before - 0.125])
    assert opt.steps == 4
    with pytest.raises(ValueError, match="steps: expected a whole number"):
        opt.steps = -1


@pytest.mark.parametrize("name", ["lr", "momentum", "weight_decay"])
def test_function_does_the_steps_of_the_numbers_that_it_returns(name, numpy_backend):
    function = {"lr": lambda t: 0.1 / (1 + t), "momentum": lambda t: 0.1 * t, "weight_decay": lambda t: 0.1 * t}[name]
    runs = []
    for value in (function, 0.1):
        params = make_params(SHAPES)
        opt = ft.SGD(params, **{"lr": 0.1, "momentum": 0.5} | {name: value})
        for number in range(4):
            if not callable(value):
                opt.param_groups[0][name] = function(number)
            steps(params, opt, [number])
        runs.append(params)
    assert_same_tensors(*runs)


def test_trace_records_a_run(numpy_backend):
    params = make_params(((5,), (2,)))
    opt = ft.SGD(params, lr=0.25, momentum=0.5)
    steps(params, opt, range(2))
    trace = opt.trace()
    norms, velocities = [], []
    for number in range(2, 6):
        set_gradients(params, number)
        norms.append(norm_of(params))
        opt.step()
        buffers = [entry["momentum_buffer"].double() for entry in opt.state.values()]
        velocities.append(math.sqrt(sum(float(buffer.square().sum()) for buffer in buffers)))
    np.testing.assert_allclose(trace.gradient, norms, rtol=1e-12)
    np.testing.assert_allclose(trace.left, velocities, rtol=1e-12)
    assert [*trace.lr] == [0.25] * 4
    assert "lr" not in str(fm.diagnose(trace))


def test_trace_of_sparse_gradients_is_refused():
    (table,) = make_params(((4, 2),))
    opt = ft.SGD([table], lr=0.1)
    table.grad = torch.ones(4, 2).to_sparse()
    with pytest.raises(TypeError, match="trace: expected parameters with dense gradients on one device"):
        opt.trace()


def test_import_without_torch_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("fastmomentum.torch")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"fastmomentum\.torch needs torch: pip install 'fastmomentum\[torch\]'"):
        __import__("fastmomentum.torch")
