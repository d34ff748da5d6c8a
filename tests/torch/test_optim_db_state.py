"""State, copies and hooks over torch's own optimizer database: each case with torch's for-loop SGD, and with ours."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from tests.helpers.optim_db import LATER_FLAGS, every_class, every_input, limit_of, network, state_of
from tests.helpers.tensors import assert_same_tensors, assert_within, copies_of, make_params, steps


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
