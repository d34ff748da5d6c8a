"""State under torch's names: moved to torch.optim.SGD and back, replaced by users, made at the first gradient."""

import copy
import io
import pickle

import pytest
import torch

import fastmomentum.torch as ft
from tests.helpers.copies import every_copy
from tests.helpers.tensors import (
    assert_same_tensors,
    assert_within,
    copies_of,
    make_params,
    rounding_limit,
    set_gradients,
    steps,
)

SETTINGS = {"lr": 0.25, "momentum": 0.5, "dampening": 0.0, "weight_decay": 0.5, "nesterov": True}
CLASSES = {"torch": torch.optim.SGD, "fastmomentum": ft.SGD}


def saved_and_loaded(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


WAYS = {
    "torch.save": saved_and_loaded,
    "deepcopy": copy.deepcopy,
    "pickle": lambda state: pickle.loads(pickle.dumps(state)),
}


def grouped(params):
    """Return two groups with settings of their own."""
    return [{"params": params[:2], "lr": 0.125, "weight_decay": 0.25}, {"params": params[2:], "momentum": 0.25}]


def buffers_of(params, opt):
    return [opt.state[p].get("momentum_buffer") for p in params]


def assert_near(ours, theirs, count=12):
    """Check two runs, each (parameters, optimiser), to the rounding of `count` steps."""
    buffers = [buffers_of(*run) for run in (ours, theirs)]
    assert [b is None for b in buffers[0]] == [b is None for b in buffers[1]]
    found, expected = ([b for b in own if b is not None] for own in buffers)
    limit = rounding_limit(theirs[0], expected, count, lr=0.25, momentum=0.75)
    assert limit < 1e-3
    assert_within(ours[0], theirs[0], limit)
    assert_within(found, expected, 8 * limit)


def sides(make_groups=lambda params: params, **settings):
    """Return two runs with equal parameters, ours and torch's."""
    params = make_params()
    found = []
    for optimizer in (ft.SGD, torch.optim.SGD):
        own = copies_of(params)
        found.append((own, optimizer(make_groups(own), **SETTINGS | settings)))
    return found


@pytest.mark.parametrize("groups", [grouped, lambda params: params], ids=["groups", "one group"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("first", CLASSES)
def test_run_moves_to_the_other_side_and_back(first, way, groups):
    params = make_params()
    stays = copies_of(params)
    opt = torch.optim.SGD(groups(stays), **SETTINGS)
    steps(stays, opt, range(12))
    moved, own = copies_of(params), None
    names = [first, *(name for name in CLASSES if name != first), first]
    for name, begin in zip(names, (0, 4, 8), strict=True):
        moved = copies_of(moved)
        new = CLASSES[name](groups(moved), lr=1.0)
        if own is not None:
            new.load_state_dict(WAYS[way](own.state_dict()))
        else:
            new = CLASSES[name](groups(moved), **SETTINGS)
        own = new
        steps(moved, own, range(begin, begin + 4))
    assert_near((moved, own), (stays, opt))
    ours, theirs = own.state_dict()["param_groups"], opt.state_dict()["param_groups"]
    assert ours == theirs


def test_state_dict_has_the_entries_of_torch_and_no_others():
    ours, theirs = sides(grouped)
    for run in (ours, theirs):
        steps(*run, range(2))
    found, expected = (run[1].state_dict() for run in (ours, theirs))
    assert [*found] == [*expected]
    assert found["param_groups"] == expected["param_groups"]
    assert [*found["state"]] == [*expected["state"]]
    assert [[*entry] for entry in found["state"].values()] == [[*entry] for entry in expected["state"].values()]


@every_copy
def test_copies_of_an_optimiser_with_its_model_go_on_alike(make_copy):
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))
    opt = ft.SGD(model.parameters(), **SETTINGS)
    steps([*model.parameters()], opt, range(3))
    twin, other = make_copy((model, opt))
    before = copies_of(model.parameters())
    assert all(p is q for p, q in zip(twin.parameters(), other.param_groups[0]["params"], strict=True))
    steps([*twin.parameters()], other, range(3, 5))
    assert_same_tensors(model.parameters(), before)
    steps([*model.parameters()], opt, range(3, 5))
    assert_same_tensors(twin.parameters(), model.parameters())


def test_groups_that_are_added_in_mid_run_are_updated_as_in_torch():
    runs = sides(lambda params: params[:2])
    for params, opt in runs:
        steps(params, opt, range(3))
        opt.add_param_group({"params": params[2:], "lr": 0.125, "momentum": 0.25})
        steps(params, opt, range(3, 6))
    assert_near(*runs)


def test_refused_group_is_not_added():
    params = make_params()
    opt = ft.SGD(params[:1], **SETTINGS)
    for wrong in ({"lr": -1.0}, {"momentum": 2.0}, {"dampening": "a"}):
        with pytest.raises((TypeError, ValueError), match=f"^{next(iter(wrong))}: expected"):
            opt.add_param_group({"params": params[1:], **wrong})
    assert len(opt.param_groups) == 1
    opt.add_param_group({"params": params[1:]})
    steps(params, opt, range(2))
    assert len(opt.state) == 4


@pytest.mark.parametrize("way", ["requires_grad", "grad"])
def test_parameters_are_frozen_and_unfrozen_as_in_torch(way):
    runs = sides()
    for params, opt in runs:
        for number in range(9):
            set_gradients(params, number)
            if number in (3, 4, 5):
                before, buffer = params[0].detach().clone(), opt.state[params[0]]["momentum_buffer"].clone()
                params[0].requires_grad_(way == "grad")
                params[0].grad = None
            else:
                params[0].requires_grad_(True)
            opt.step()
            if number == 5:
                assert_same_tensors([params[0], opt.state[params[0]]["momentum_buffer"]], [before, buffer])
    assert_near(*runs)


def test_late_gradients_are_not_dampened_at_first_as_in_torch():
    runs = sides(dampening=0.5, nesterov=False)
    for params, opt in runs:
        for number in range(6):
            set_gradients(params, number)
            for i, p in enumerate(params):
                if number < i:
                    p.grad = None
            opt.step()
            assert len([p for p in params if opt.state.get(p)]) == min(number + 1, 4)
    assert_near(*runs)


def test_state_is_made_at_the_first_gradient_alone():
    params = make_params()
    opt = ft.SGD(params, lr=0.1, momentum=0.9)
    opt.step()
    assert len(opt.state) == 0
    params[1].grad = torch.ones_like(params[1])
    opt.step()
    assert [*opt.state] == [params[1]]
    assert opt.state_dict()["state"].keys() == {1}
    buffer = opt.state[params[1]]["momentum_buffer"]
    opt.step()
    assert opt.state[params[1]]["momentum_buffer"] is buffer
    assert_same_tensors([buffer], [torch.ones(10) * 0.9 + 1])


def test_momentum_zero_makes_no_state():
    params = make_params()
    opt = ft.SGD(params, lr=0.1)
    steps(params, opt, range(2))
    assert opt.state_dict()["state"] == {}


def replace_buffer(params, opt):
    opt.state[params[0]]["momentum_buffer"] = torch.full_like(params[0].detach(), 2.0)


def replace_entry(params, opt):
    opt.state[params[1]] = {"momentum_buffer": torch.full_like(params[1].detach(), -2.0)}


def replace_all(params, opt):
    for p in params:
        replace_entry([None, p], opt)


def write_in_place(params, opt):
    opt.state[params[0]]["momentum_buffer"].mul_(0.5)


def other_layout(params, opt):
    buffer = opt.state[params[0]]["momentum_buffer"]
    opt.state[params[0]]["momentum_buffer"] = buffer.t().contiguous().t()


def data_of_buffer(params, opt):
    buffer = opt.state[params[0]]["momentum_buffer"]
    buffer.data = torch.full_like(buffer, 3.0)


# For each way in which a user changes the state, the function that does it.
CHANGES = {
    "a buffer": replace_buffer,
    "an entry": replace_entry,
    "all entries": replace_all,
    "in place": write_in_place,
    "another layout": other_layout,
    "the data of a buffer": data_of_buffer,
    "a buffer of None": lambda params, opt: opt.state[params[0]].update(momentum_buffer=None),
    "no buffer": lambda params, opt: opt.state[params[0]].pop("momentum_buffer"),
    "no entry": lambda params, opt: opt.state.pop(params[1]),
    "empty entry": lambda params, opt: opt.state.update({params[1]: {}}),
    "cleared": lambda params, opt: opt.state.clear(),
    "another dict": lambda params, opt: setattr(opt, "state", type(opt.state)(dict, opt.state)),
    "exchanged": lambda params, opt: opt.state.update(
        {params[1]: opt.state[params[1]], params[0]: dict(opt.state[params[0]])}
    ),
    "param_groups": lambda params, opt: opt.param_groups[0].update(params=params[:2]),
    "a setting that is removed": lambda params, opt: opt.param_groups[0].update(nesterov=False, dampening=0.5),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("backend", ["cpu", "numpy"])
def test_state_that_a_user_changes_is_used_as_in_torch(backend, change, request):
    if backend == "numpy":
        request.getfixturevalue("numpy_backend")
    for first in (1, 3):
        compare_after_change(CHANGES[change], first)


def compare_after_change(change, first):
    runs = sides()
    for params, opt in runs:
        steps(params, opt, range(first))
        change(params, opt)
        steps(params, opt, range(first, first + 3))
    assert_near(*runs)


@pytest.mark.parametrize("shares", [True, False])
def test_momentum_is_turned_on_and_off_in_mid_run_as_in_torch(shares, numpy_backend):
    """Check parameters and buffers; one group or both turn momentum off."""
    runs = sides(lambda params: [{"params": params[:2]}, {"params": params[2:]}], momentum=0.0, nesterov=False)
    for params, opt in runs:
        for number, momentum in enumerate([0.0, 0.5, 0.5, 0.0, 0.0, 0.5, 0.25]):
            for group in opt.param_groups[: 2 if shares else 1]:
                group["momentum"] = momentum
            steps(params, opt, [number])
    assert_near(*runs)


def test_group_without_momentum_beside_one_with_it_has_no_state(numpy_backend):
    runs = sides(lambda params: [{"params": params[:2], "momentum": 0.0}, {"params": params[2:]}], nesterov=False)
    for params, opt in runs:
        steps(params, opt, range(3))
        assert [bool(opt.state.get(p)) for p in params] == [False, False, True, True]
        opt.param_groups[0]["momentum"] = 0.5
        steps(params, opt, range(3, 6))
    assert_near(*runs)


# Values that replace settings in mid-run, in turn.
ASSIGNED = [
    {"lr": 0.1},
    {"lr": torch.tensor(0.2)},
    {"weight_decay": 0.0},
    {"weight_decay": torch.tensor(0.25)},
    {"nesterov": False, "dampening": 0.5},
    {"dampening": 0.25},
    {"dampening": 0},
    {"maximize": True},
    {"lr": 0},
    {"lr": 1},
    {"maximize": False, "momentum": 0.25},
]


def test_settings_of_groups_are_read_at_each_step(numpy_backend):
    runs = sides(grouped)
    for params, opt in runs:
        for number, changed in enumerate(ASSIGNED):
            opt.param_groups[number // 4 % 2].update(changed)
            steps(params, opt, [number])
    assert_near(*runs)


def test_setting_in_a_tensor_is_read_at_each_step():
    lr = torch.tensor(0.5)
    (weight,) = make_params(((3,),))
    opt = ft.SGD([weight], lr=lr)
    for value in (0.5, 0.25, 0.125):
        lr.fill_(value)
        before = weight.detach().clone()
        weight.grad = torch.ones(3)
        opt.step()
        assert_same_tensors([weight], [before - value])
    assert opt.param_groups[0]["lr"] is lr


def test_wrong_setting_in_a_group_is_refused_before_anything_is_written():
    params = make_params()
    opt = ft.SGD(grouped(params), **SETTINGS)
    steps(params, opt, range(2))
    before = [p.detach().clone() for p in params]
    for name, value in (("lr", -1.0), ("momentum", 1.5), ("weight_decay", "a"), ("lr", None)):
        kept = opt.param_groups[1][name]
        opt.param_groups[1][name] = value
        with pytest.raises((TypeError, ValueError), match=f"^{name}: expected"):
            opt.step()
        assert_same_tensors(params, before)
        opt.param_groups[1][name] = kept
    opt.step()
    assert all((p != q).any() for p, q in zip(params, before, strict=True))


def test_state_of_another_dtype_is_cast_when_it_is_loaded(numpy_backend):
    for optimizer in (torch.optim.SGD, ft.SGD):
        params = make_params(dtype=torch.float64)
        opt = torch.optim.SGD(params, **SETTINGS)
        steps(params, opt, range(2))
        narrow = [torch.nn.Parameter(p.detach().float()) for p in params]
        other = optimizer(narrow, lr=1.0)
        other.load_state_dict(opt.state_dict())
        steps(narrow, other, [2])
        assert {buffer.dtype for buffer in buffers_of(narrow, other)} == {torch.float32}


def test_state_of_other_parameters_is_refused_in_the_words_of_torch():
    params = make_params()
    opt = ft.SGD(params, **SETTINGS)
    state = opt.state_dict()
    with pytest.raises(ValueError, match="doesn't match the size"):
        ft.SGD(params[:2], **SETTINGS).load_state_dict(state)
    with pytest.raises(ValueError, match="different number of parameter groups"):
        ft.SGD(grouped(params), **SETTINGS).load_state_dict(state)


def test_memory_that_parameters_share_is_saved_with_those_without_gradient():
    """A run that is made anew, as after a load, takes the memory from the state of the parameters."""
    params = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    opt = ft.Optimizer(params, "fire", lr=0.1)
    copies = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    other = ft.Optimizer(copies, "fire", lr=0.1)
    for number in range(12):
        for param in (*params, *copies):
            param.grad = None if number > 2 and (param is params[1] or param is copies[1]) else 20.0 * param.detach()
        opt.step()
        other.step()
        memories = [opt.state[param]["memory"] for param in params]
        assert memories[0] == memories[1]
        other.load_state_dict(copy.deepcopy(other.state_dict()))
    assert_same_tensors(params, copies)
