"""torch's own optimizer database: each case is run with torch's for-loop SGD, and with ours."""

import copy
import io
import pickle
import sys
import unittest
import warnings
from functools import partial

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import fastmomentum.torch as ft
from tests.helpers.tensors import (
    assert_same_tensors,
    assert_within,
    copies_of,
    make_params,
    rounding_limit,
    set_gradients,
    steps,
)

with pytest.MonkeyPatch.context() as patch:  # the database needs no more of this package than a base class
    patch.setitem(sys.modules, "expecttest", unittest)
    from torch.testing._internal.common_optimizers import optim_db

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


@pytest.fixture
def settings(request):
    """Return a copy of the settings of an input, as schedulers write to tensors among them."""
    return copy.deepcopy(INPUTS[request.param])


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


@every_class
@every_input
@pytest.mark.parametrize("schedulers", [(), *INFO.scheduler_inputs], ids=lambda made: str(len(made)))
def test_loss_goes_in_the_right_direction(schedulers, settings, make):
    params, closure = network()
    opt = make(params, **settings)
    made = [scheduler(opt) for scheduler in schedulers]
    assert_goes_right(opt, closure, made, settings.get("maximize", False))


@every_class
@every_input
@pytest.mark.parametrize("schedulers", INFO.scheduler_inputs, ids=lambda made: str(len(made)))
def test_loss_of_groups_goes_in_the_right_direction(schedulers, settings, make):
    params, closure = network()
    opt = make([{"params": [params[0]]}, {"params": [params[1]], "lr": 0.01}], **{"lr": 1e-3} | settings)
    made = [scheduler(opt) for scheduler in schedulers]
    assert_goes_right(opt, closure, made, settings.get("maximize", False))


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


@every_input
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_steps_differ_from_the_for_loop_by_rounding_alone(dtype, settings, request):
    """Check the distance that :func:`rounding_limit` allows; torch rounds narrow numbers after each operation."""
    if dtype.itemsize > 4 and dtype != torch.complex64:
        request.getfixturevalue("numpy_backend")
    params = make_params(dtype=dtype)
    theirs, ours = two_runs({"lr": 0.1} | settings, params)
    limit = limit_of(*theirs)
    assert_within(ours[0], theirs[0], limit)
    assert_within(state_of(ours[1]), state_of(theirs[1]), limit / min(1.0, float(theirs[1].param_groups[0]["lr"])))
    assert limit < 1e-3 or dtype.itemsize == 2  # so that a lost velocity would show
    assert [*ours[1].state[ours[0][0]]] == [*theirs[1].state[theirs[0][0]]]


@every_input
def test_parameters_of_several_dtypes_share_an_optimiser(settings, numpy_backend):
    params = [make_params(((4, 3),), dtype, seed=i)[0] for i, dtype in enumerate(DTYPES)]
    theirs, ours = two_runs({"lr": 0.1} | settings, params)
    for one, two in zip(ours[0], theirs[0], strict=True):
        eps = torch.finfo(one.dtype).eps
        assert_within([one], [two], limit_of(*theirs, eps=eps))
        assert one.dtype == two.dtype


@every_class
@every_input
@pytest.mark.parametrize("dimensions", [0, 1])
def test_lr_in_a_tensor_does_the_steps_of_a_number(dimensions, settings, make):
    runs = []
    for kind in (float, lambda value: torch.full((1,) * dimensions, float(value))):
        params = make_params()
        opt = make(params, **settings | {"lr": kind(2.0**-7)})
        scheduler = torch.optim.lr_scheduler.StepLR(opt, 2, 0.5)
        steps(params, opt, range(5), scheduler.step)
        runs.append(params)
    assert_same_tensors(*runs)


@every_class
@every_input
def test_complex_parameters_are_updated_like_pairs_of_real_ones(settings, make):
    params = make_params(dtype=torch.complex64)
    pairs = [torch.nn.Parameter(torch.view_as_real(p.detach()).clone()) for p in params]
    one, two = make(params, **settings), make(pairs, **settings)
    for number in range(5):
        set_gradients(params, number)
        for p, pair in zip(params, pairs, strict=True):
            pair.grad = torch.view_as_real(p.grad).clone()
        one.step()
        two.step()
    limit = limit_of(pairs, two)  # torch multiplies by complex numbers
    assert_within([torch.view_as_real(p.detach()) for p in params], pairs, limit)


@every_class
@every_input
def test_step_changes_nothing_without_gradients(settings, make):
    params = make_params()
    before = copies_of(params)
    opt = make(params, **settings)
    for _ in range(3):
        opt.step()
    assert_same_tensors(params, before)
    assert state_of(opt) == []
    assert all(p._version == 0 for p in params)


@every_class
@every_input
@pytest.mark.parametrize("kind", ["zeros", "empty", "sparse"])
def test_step_changes_nothing_at_gradients_of_zeros(kind, settings, make, numpy_backend):
    settings = settings | {"weight_decay": 0.0}
    params = make_params(((0,), (3, 0)) if kind == "empty" else ((3, 2), (2,)))
    before = copies_of(params)
    if kind == "sparse":
        settings["nesterov"] = False  # torch cannot add a sparse buffer to a sparse gradient with alpha
    opt = make(params, **settings)
    for _ in range(3):
        for p in params:
            p.grad = torch.zeros_like(p.detach())
            p.grad = p.grad.to_sparse() if kind == "sparse" else p.grad
        opt.step()
    assert_same_tensors(params, before)


@every_class
@every_input
def test_optimiser_can_be_printed(settings, make):
    text = repr(make(make_params(), **settings))
    assert text.startswith("SGD (")
    for name, value in settings.items():
        assert f"{name}: {value}" in text


@every_class
def test_groups_have_their_own_weight_decay(make):
    params, closure = network()
    opt = make([{"params": [params[0]], "weight_decay": 0.5}, {"params": [params[1]]}], lr=1e-2)
    assert_goes_right(opt, closure)
    before = [p.detach().clone() for p in params]
    for p in params:
        p.grad = torch.zeros_like(p)
    opt.step()
    torch.testing.assert_close(params[0].detach(), before[0] * (1 - 1e-2 * 0.5))
    assert_same_tensors(params[1:], before[1:])


@every_class
@every_input
def test_groups_have_their_own_lr(settings, make):
    params, closure = network()
    before = copies_of(params)
    own = {"lr": 1e-3} | settings | {"weight_decay": 0.0}
    opt = make([{"params": [params[0]], "lr": 0.0}, {"params": [params[1]]}], **own)
    for _ in range(5):
        opt.step(closure)
    assert_same_tensors(params[:1], before[:1])
    assert (params[1] != before[1]).all()


def saved_and_loaded(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


WAYS = {
    "deepcopy": lambda opt: copy.deepcopy(opt.state_dict()),
    "pickle": lambda opt: pickle.loads(pickle.dumps(opt.state_dict())),
    "torch.save": lambda opt: saved_and_loaded(opt.state_dict()),
}


@every_class
@every_input
@pytest.mark.parametrize(
    ("way", "named"),
    [*((way, (False, False)) for way in WAYS), *(("deepcopy", (i, j)) for i, j in ((0, 1), (1, 0), (1, 1)))],
    ids=str,
)
def test_state_is_loaded_in_mid_run(way, named, settings, make):
    params = make_params()
    twins = copies_of(params)
    given = [
        [(f"p{i}", p) for i, p in enumerate(own)] if has_names else own
        for own, has_names in zip((params, twins), named, strict=True)
    ]
    opt, other = make(given[0], **settings), make(given[1], lr=1.0)  # the settings have to come with the state
    steps(params, opt, range(3))
    for one, two in zip(twins, params, strict=True):
        one.data.copy_(two)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns if only one of the two has names
        other.load_state_dict(WAYS[way](opt))
    for number in range(3, 6):
        steps(params, opt, [number])
        steps(twins, other, [number])
    assert_same_tensors(twins, params)
    assert_same_tensors(state_of(other), state_of(opt))


@every_class
@every_input
def test_state_without_later_flags_is_loaded(settings, make):
    params = make_params()
    opt = make(params, **settings)
    steps(params, opt, range(2))
    old = copy.deepcopy(opt.state_dict())
    for group in old["param_groups"]:
        for flag in LATER_FLAGS:
            group.pop(flag, None)
    twins = copies_of(params)
    other = make(twins, **settings)
    other.load_state_dict(old)
    settings_of = other.param_groups[0]
    assert not any(settings_of[flag] for flag in LATER_FLAGS if flag in settings_of)
    for group in opt.param_groups:
        group["maximize"] = False  # what is missing is off
    steps(params, opt, [2])
    steps(twins, other, [2])
    assert_same_tensors(twins, params)


@every_class
@every_input
@pytest.mark.parametrize("make_copy", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))])
def test_copy_has_all_public_attributes_and_goes_on_by_itself(make_copy, settings, make):
    params = make_params()
    opt = make(params, **settings)
    steps(params, opt, range(2))
    twin = make_copy(opt)
    public = {name for name in vars(opt) if not name.startswith("_")}
    assert public == {name for name in vars(twin) if not name.startswith("_")}
    own = twin.param_groups[0]["params"]
    assert all(one is not two for one, two in zip(own, params, strict=True))
    before = copies_of(params)
    steps(own, twin, [2])
    assert_same_tensors(params, before)
    steps(params, opt, [2])
    assert_same_tensors(own, params)


@every_class
@every_input
def test_hooks_of_a_step_run_around_it_in_order(settings, make):
    params, closure = network()
    opt = make(params, **settings)
    seen = []
    handles = [
        register_optimizer_step_pre_hook(lambda *_: seen.append("all before")),
        register_optimizer_step_post_hook(lambda *_: seen.append("all after")),
        opt.register_step_pre_hook(lambda own, args, kwargs: seen.append(("before", own is opt, params[0]._version))),
        opt.register_step_post_hook(lambda own, args, kwargs: seen.append(("after", own is opt, params[0]._version))),
    ]
    opt.step(closure)
    for handle in handles:
        handle.remove()
    opt.step(closure)
    versions = [entry[2] for entry in seen if type(entry) is tuple]
    assert [entry if type(entry) is str else entry[:2] for entry in seen] == [
        "all before",
        ("before", True),
        ("after", True),
        "all after",
    ]
    assert versions[0] == 0 < versions[1]


@every_class
def test_a_hook_before_a_step_replaces_its_arguments(make):
    params, closure = network()
    opt = make(params)
    opt.register_step_pre_hook(lambda own, args, kwargs: ((own, lambda: closure() * 0 + 7), {}))
    assert opt.step(closure) == 7


@every_class
@every_input
def test_hooks_of_state_dict_see_and_replace_it(settings, make):
    params = make_params()
    opt = make(params, **settings)
    steps(params, opt, range(2))
    seen = []
    opt.register_state_dict_pre_hook(lambda own: seen.append("before"))
    opt.register_state_dict_post_hook(lambda own, state: {**state, "ran": True})
    opt.register_load_state_dict_pre_hook(lambda own, state: {**state, "param_groups": changed(state)})
    opt.register_load_state_dict_post_hook(lambda own: seen.append("loaded"))

    def changed(state):
        return [{**group, "lr": 0.5} for group in state["param_groups"]]

    state = opt.state_dict()
    assert state["ran"]
    opt.load_state_dict(state)
    assert seen == ["before", "loaded"]
    twins = copies_of(params)
    other = torch.optim.SGD(twins, **settings | {"lr": 0.5}, foreach=False)
    other.load_state_dict(copy.deepcopy({name: state[name] for name in ("state", "param_groups")}))
    other.param_groups[0]["lr"] = 0.5
    steps(params, opt, [2])
    steps(twins, other, [2])
    assert_within(params, twins, limit_of(twins, other))


@every_input
@pytest.mark.parametrize(
    "flags", [{"foreach": True}, {"foreach": False}, {"fused": True}, {"capturable": True}], ids=str
)
def test_flags_of_implementations_change_nothing(flags, settings):
    runs = []
    for given in ({}, flags):
        params = make_params()
        steps(params, ft.SGD(params, **settings, **given), range(3))
        runs.append(params)
    assert_same_tensors(runs[1], runs[0])
    assert_same_tensors(runs[2], runs[0])


def test_differentiable_is_refused():
    with pytest.raises(ValueError, match="differentiable: expected False"):
        ft.SGD(make_params(), differentiable=True)


@every_class
@every_input
def test_steps_do_not_depend_on_the_default_dtype(settings, make):
    runs = []
    for dtype in (torch.float32, torch.float64):
        params = make_params()
        opt = make(params, **settings)
        torch.set_default_dtype(dtype)
        try:
            steps(params, opt, range(3))
        finally:
            torch.set_default_dtype(torch.float32)
        runs.append(params)
    assert_same_tensors(*runs)


@every_class
@every_input
def test_non_contiguous_parameters_are_updated_like_contiguous_ones(settings, make):
    plain, others = make_params(((6, 4), (5, 3))), []
    for p, layout in zip(plain, (lambda t: t.t().contiguous().t(), lambda t: torch.stack([t, t], -1)[..., 0])):
        others.append(torch.nn.Parameter(layout(p.detach())))
        assert not others[-1].is_contiguous()
    for params in (plain, others):
        steps(params, make(params, **settings), range(4))
    assert_same_tensors(others, plain)


@every_class
@every_input
def test_scaled_gradients_do_the_steps_of_plain_ones(settings, make):
    runs = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=128.0)):
        params, _ = network()
        opt = make(params, **settings)
        for _ in range(3):
            opt.zero_grad()
            loss = (params[0].mv(torch.ones(5)) + params[1]).pow(2).sum()
            if scaler is None:
                loss.backward()
                opt.step()
            else:
                scaler.scale(loss).backward()
                scaler.step(opt)
                scaler.update()
        runs.append(params)
    assert_same_tensors(*runs)  # a power of two scales exactly


@every_class
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("maximize", [False, True])
def test_sparse_gradients_go_in_the_right_direction(maximize, momentum, make):
    settings, schedulers = INFO.metadata_for_sparse
    table = torch.nn.Parameter(torch.linspace(-1.0, 1.0, 12).view(6, 2))
    opt = make([table], **settings | {"momentum": momentum, "maximize": maximize})
    made = [scheduler(opt) for scheduler in schedulers]

    def closure():
        opt.zero_grad()
        loss = torch.nn.functional.embedding(torch.tensor([0, 2, 2]), table, sparse=True).pow(2).sum()
        loss.backward()
        assert table.grad.is_sparse
        return loss

    before = table.detach().clone()
    assert_goes_right(opt, closure, made, maximize)
    assert torch.equal(table[[1, 3, 4, 5]], before[[1, 3, 4, 5]])


@every_class
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.optimizer_error_input.desc)
def test_wrong_arguments_are_refused_in_the_words_of_torch(error, make):
    given = error.optimizer_error_input
    params = make_params() if given.params is None else given.params
    if issubclass(error.error_type, Warning):
        with pytest.warns(error.error_type, match=error.error_regex):
            make(params, **given.kwargs)
    else:
        with pytest.raises(error.error_type, match=error.error_regex):
            make(params, **given.kwargs)
