"""The adaptive optimisers against torch's, over torch's own optimizer database."""

import copy

import pytest
import torch

import fastmomentum.torch as ft
from tests.helpers.ids import label
from tests.helpers.optim_db import optim_db
from tests.helpers.tensors import copies_of, make_params, set_gradients

NAMES = ("Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop", "Adagrad", "Adadelta")
INFOS = {info.optim_cls.__name__: info for info in optim_db if info.optim_cls.__name__ in NAMES}
IGNORED = ("foreach", "fused", "capturable", "differentiable")


def settings_of(name):
    """Return the settings of each entry of the database, without the choice of an implementation."""
    inputs = [case.kwargs for case in INFOS[name].optim_inputs_func(device="cpu")]
    found = [{key: value for key, value in given.items() if key not in IGNORED} for given in inputs]
    return [given for i, given in enumerate(found) if str(given) not in map(str, found[:i])]


CASES = [pytest.param(name, given, id=f"{name}-{label(given)}") for name in NAMES for given in settings_of(name)]
every_case = pytest.mark.parametrize(("name", "settings"), CASES)


def pair_of(name, params, settings):
    """Return torch's for-loop optimiser and ours, of two copies of these parameters."""
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in params]
    theirs_opt = getattr(torch.optim, name)(theirs, foreach=False, **settings)
    return (theirs, theirs_opt), (params, getattr(ft, name)(params, **settings))


def take_steps(runs, numbers):
    for number in numbers:
        for params, opt in runs:
            set_gradients(params, number)
            if number % 3 == 0:
                params[-1].grad = None  # whose counter then stands still
            opt.step()


@pytest.fixture
def in_double():
    """Let torch's NAdam keep the product of its factors in double precision, as the rule does."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@every_case
def test_steps_and_state_are_those_of_torch_and_go_on_in_the_other_one(name, settings, numpy_backend, in_double):
    (theirs, other), (ours, opt) = pair_of(name, make_params(dtype=torch.float64), settings)
    start = copies_of(ours)
    take_steps([(theirs, other), (ours, opt)], range(6))
    saved, foreign = copy.deepcopy(opt.state_dict()), copy.deepcopy(other.state_dict())
    assert {key: {*value} - {"memory"} for key, value in saved["state"].items()} == {
        key: {*value} for key, value in foreign["state"].items()
    }
    assert saved["param_groups"][0].keys() == foreign["param_groups"][0].keys()
    other, opt = getattr(torch.optim, name)(theirs, foreach=False), getattr(ft, name)(ours)
    other.load_state_dict(saved)
    opt.load_state_dict(foreign)
    take_steps([(theirs, other), (ours, opt)], range(6, 50))
    for before, mine, other_param in zip(start, ours, theirs, strict=True):
        assert not torch.equal(before, mine)
        torch.testing.assert_close(mine, other_param, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_wrong_arguments_get_the_words_of_torch(name):
    params = make_params()
    count = 0
    for case in INFOS[name].optim_error_inputs_func(device="cpu", dtype=torch.float32):
        given = case.optimizer_error_input
        if any(given.kwargs.get(key) for key in IGNORED) or given.params is not None:
            continue
        if any(isinstance(beta, torch.Tensor) for beta in given.kwargs.get("betas", ())):
            getattr(ft, name)(params, **given.kwargs)  # torch takes tensors for both or none; here each is a number
            continue
        with pytest.raises(case.error_type) as error:
            getattr(ft, name)(params, **given.kwargs)
        assert error.match(case.error_regex)
        count += 1
    assert count


def test_amsgrad_and_centered_are_read_from_the_groups_of_a_loaded_state(numpy_backend):
    for name, switch in (("Adam", "amsgrad"), ("RMSprop", "centered")):
        params = make_params(dtype=torch.float64)
        (theirs, other), (ours, opt) = pair_of(name, params, {})
        for group in (*other.param_groups, *opt.param_groups):
            group[switch] = True
        take_steps([(theirs, other), (ours, opt)], range(4))
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        opt.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], switch: False})
        with pytest.raises(ValueError, match=f"{switch}: expected one value in all groups"):
            opt.step()


def test_rmsprop_makes_a_buffer_once_momentum_is_above_0_and_keeps_its_average(numpy_backend):
    (theirs, other), (ours, opt) = pair_of("RMSprop", make_params(dtype=torch.float64), {})
    take_steps([(theirs, other), (ours, opt)], range(2))
    assert "momentum_buffer" not in opt.state[ours[0]]
    for each in (opt, other):
        each.param_groups[0]["momentum"] = 0.5
    for param in theirs:  # torch does not make a buffer in mid-run
        if other.state[param]:
            other.state[param]["momentum_buffer"] = torch.zeros_like(param)
    take_steps([(theirs, other), (ours, opt)], range(2, 4))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert opt.state[ours[0]]["step"] == 4


@pytest.mark.parametrize("name", NAMES)
def test_a_step_without_gradients_changes_nothing(name, numpy_backend):
    params = make_params()
    before, opt = copies_of(params), getattr(ft, name)(params, lr=0.1)
    opt.step()
    for p, old in zip(params, before):
        assert torch.equal(p, old)
    take_steps([(params, opt)], [1])
    opt.zero_grad()
    before = copies_of(params)
    opt.step()
    for p, old in zip(params, before):
        assert torch.equal(p, old)
    assert opt.state[params[0]]["step"] == 1


# What users and older versions of torch do to groups and state between two steps.
CHANGES = {
    "the decay decoupled": lambda opt, params: opt.param_groups[0].update(decoupled_weight_decay=True),
    "the decay coupled": lambda opt, params: opt.param_groups[0].update(decoupled_weight_decay=False),
    "betas": lambda opt, params: opt.param_groups[0].update(betas=(0.5, 0.75)),
    "another counter": lambda opt, params: opt.state[params[0]].update(step=torch.tensor(1000.0)),
    "the counter written": lambda opt, params: opt.state[params[0]]["step"].fill_(7.0),
    "an average written": lambda opt, params: opt.state[params[0]]["exp_avg"].mul_(2.0),
    "another average": lambda opt, params: opt.state[params[0]].update(exp_avg=torch.ones_like(params[0])),
}


@pytest.mark.parametrize("name", ["Adam", "AdamW", "RAdam"])
@pytest.mark.parametrize("change", CHANGES)
def test_groups_and_state_may_change_in_mid_run(change, name, numpy_backend):
    runs = pair_of(name, make_params(dtype=torch.float64), {"weight_decay": 0.25})
    take_steps(runs, range(1, 4))
    for params, opt in runs:
        CHANGES[change](opt, params)
    take_steps(runs, range(4, 8))
    (theirs, other), (ours, opt) = runs
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert [opt.state[p]["step"] for p in ours] == [other.state[p]["step"] for p in theirs]


def test_states_of_older_versions_of_torch_go_on(numpy_backend):
    (theirs, other), (ours, opt) = runs = pair_of("AdamW", make_params(dtype=torch.float64), {"lr": 0.01})
    take_steps(runs, range(1, 4))
    saved = copy.deepcopy(other.state_dict())
    for group in saved["param_groups"]:
        for entry in ("decoupled_weight_decay", "amsgrad", "maximize", "foreach", "fused", "capturable"):
            del group[entry]
    for entry in saved["state"].values():
        entry["step"] = int(entry["step"])  # a number up to torch 1.11
    for each in (other, opt):
        each.load_state_dict(copy.deepcopy(saved))
    take_steps(runs, range(4, 40))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert opt.state[ours[0]]["step"] == 39


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("Adam", "momentum"), ("Adam", "beta2"), ("RMSprop", "beta2"), ("Adagrad", "initial"), ("SGD", "nu")],
)
def test_hyper_parameters_of_a_rule_are_no_arguments_of_a_class_of_torch(name, wrong):
    with pytest.raises(TypeError, match=f"{wrong}: {name} takes no such argument"):
        getattr(ft, name)(make_params(), **{wrong: 0.5})


def test_options_of_all_groups_are_refused_in_a_group():
    with pytest.raises(TypeError, match="max_norm: expected as an argument of SGD"):
        ft.SGD([{"params": make_params(), "max_norm": 1.0}])


def test_adagrad_of_complex_parameters_begins_as_torch_does(numpy_backend):
    settings = {"initial_accumulator_value": 0.25}
    runs = pair_of("Adagrad", make_params(dtype=torch.complex128), settings)
    take_steps(runs, range(1, 4))
    torch.testing.assert_close(runs[1][0], runs[0][0], rtol=1e-12, atol=1e-12)


def test_ademamix_without_slow_average_is_adamw(numpy_backend):
    ours, theirs = make_params(dtype=torch.float64), make_params(dtype=torch.float64)
    opt = ft.AdEMAMix(ours, lr=0.01, alpha=0.0, weight_decay=0.1)
    other = torch.optim.AdamW(theirs, lr=0.01, weight_decay=0.1, foreach=False)
    take_steps([(theirs, other), (ours, opt)], range(8))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert [*opt.state[ours[0]]] == ["exp_avg_fast", "exp_avg_slow", "exp_avg_sq", "step"]
