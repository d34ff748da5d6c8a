"""Numbers that rules keep from step to step: save and load, reset, errors and Ctrl-C."""

import copy
import math
import pickle

import numpy as np
import pytest

import fastmomentum as fm
from tests.helpers.arrays import arrays_of, gradients_of
from tests.helpers.interrupts import is_interrupted, places
from tests.helpers.reference import BACKENDS, assert_all_same_bits
from tests.helpers.rules import counted


@pytest.mark.parametrize("scope", ["array", "all"])
@pytest.mark.parametrize("how", ["state_dict", "file", "pickle", "deepcopy"])
def test_saved_run_goes_on_with_its_memory(how, scope, tmp_path):
    shapes, grads = ((4,), (3,)), [*gradients_of(((4,), (3,)), 6, np.float32)]
    rule = counted(scope, name=f"counted {scope}")
    straight = fm.Optimizer(arrays_of(shapes, np.float32), rule, lr=0.1, momentum=0.5)
    for each in grads:
        straight.step(each)
    opt = fm.Optimizer(arrays_of(shapes, np.float32), rule, lr=0.1, momentum=0.5)
    for each in grads[:3]:
        opt.step(each)
    if how in ("state_dict", "file"):
        again = fm.Optimizer([p.copy() for p in opt.params], rule, lr=0.1, momentum=0.5)
        if how == "state_dict":
            again.load_state_dict(opt.state_dict())
        else:
            opt.save(tmp_path / "run.npz")
            again = fm.Optimizer.load(tmp_path / "run.npz", again.params, rule=rule)
    elif how == "deepcopy":
        again = copy.deepcopy(opt)
    else:
        named = fm.Optimizer(arrays_of(shapes, np.float32), "schedule_free_sgd", lr=0.1)
        named.step(grads[0])
        copied = pickle.loads(pickle.dumps(named))
        for each in (named, copied):
            each.step(grads[1])
        assert copied._engine.state.memory == named._engine.state.memory
        assert_all_same_bits(named.params, copied.params)
        return
    for each in grads[3:]:
        again.step(each)
    assert_all_same_bits(again.params, straight.params)
    assert again._engine.state.memory == straight._engine.state.memory
    opt.step(grads[0])  # the copies have memory of their own
    assert again._engine.state.memory == straight._engine.state.memory


@pytest.mark.parametrize(
    ("memory", "message"),
    [
        (None, "memory: expected for each array"),
        ([{"count": 1.0}] * 2, "memory: expected for each array"),
        ([{"count": 1.0, "other": 1.0}] * 2, "memory: expected for each array"),
        ([{"count": 1, "last": 1.0}] * 2, "a float"),
        ([{"count": 1.0, "last": 1.0}], "memory"),
        ("text", "memory"),
        ([{"count": "1", "last": None}] * 2, "a float"),
    ],
)
def test_saved_memory_that_does_not_fit_is_refused(memory, message):
    rule = counted()
    opt = fm.Optimizer([np.ones(2), np.ones(3)], rule, lr=0.1, momentum=0.5)
    saved = opt.state_dict()
    if memory is None:
        del saved["memory"]
    else:
        saved["memory"] = memory
    with pytest.raises((TypeError, ValueError), match=message):
        opt.load_state_dict(saved)
    assert opt._engine.state.memory == [[0.0, 1.0]] * 2
    opt.step([np.ones(2), np.ones(3)])


def test_memory_in_a_state_of_a_rule_that_keeps_none_is_refused():
    opt = fm.Optimizer(np.ones(2), "pytorch", lr=0.1, momentum=0.5)
    with pytest.raises(ValueError, match="memory"):
        opt.load_state_dict(opt.state_dict() | {"memory": [{"count": 1.0}]})


def test_reset_of_whole_arrays_begins_memory_anew():
    for scope in ("array", "all"):
        params = [np.ones(2), np.ones(3)]
        opt = fm.Optimizer(params, counted(scope), lr=0.1, momentum=0.5)
        opt.step([np.ones(2), np.ones(3)])
        memory = opt._engine.state.memory
        opt.reset("rows", array=0, rows=0)
        assert [own[0] for own in memory] == [1.0, 1.0]
        opt.reset("one array", array=0)
        assert [own[0] for own in memory] == ([0.0, 1.0] if scope == "array" else [1.0, 1.0])
        opt.reset("all")
        assert memory == [[0.0, 1.0]] * 2


def test_added_arrays_have_memory_of_their_own_or_share_it():
    for scope in ("array", "all"):
        opt = fm.Optimizer([np.ones(2)], counted(scope), lr=0.1, momentum=0.5)
        opt.step([np.ones(2)])
        opt.add_group({"params": [np.ones(3)]})
        opt.step([np.ones(2), np.ones(3)])
        assert [own[0] for own in opt._engine.state.memory] == ([2.0, 1.0] if scope == "array" else [2.0, 2.0])
        empty = fm.Optimizer([{"params": []}], counted(scope), lr=0.1, momentum=0.5)
        empty.add_group({"params": [np.ones(3), np.ones(2)]})
        empty.step([np.ones(3), np.ones(2)])
        assert [own[0] for own in empty._engine.state.memory] == [1.0, 1.0]


def test_skipped_and_refused_steps_leave_memory_as_it_is():
    opt = fm.Optimizer(np.ones(2), counted(), lr=0.1, momentum=0.5, skip_nonfinite=True)
    opt.step(np.ones(2))
    kept = copy.deepcopy(opt._engine.state.memory)
    opt.step(np.array([np.nan, 1.0]))
    assert opt.skipped == 1
    with pytest.raises(TypeError):
        opt.step(np.ones(2, np.float32))
    assert opt._engine.state.memory == kept


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("fails_at", [0, 1, 2])
def test_error_in_a_function_of_sums_leaves_whole_steps(fails_at, backend):
    def boost(size, count):
        if count == fails_at:
            raise ZeroDivisionError
        return 1.0

    derived = {"count": lambda count: count + 1.0, "last": lambda last: last, "boost": boost}
    rule = counted(derived=derived, defaults={})
    params = [np.ones(3), np.ones(2)]
    opt = fm.Optimizer(params, rule, lr=0.1, momentum=0.5, backend=backend)
    for _ in range(fails_at):
        opt.step([np.ones(3), np.ones(2)])
    before = [p.copy() for p in params]
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            opt.step([np.ones(3), np.ones(2)])
        assert_all_same_bits(params, before)
        assert opt.steps == fails_at
        assert opt._engine.state.memory == [[fails_at, 1.0]] * 2


def test_ctrl_c_leaves_memory_and_arrays_of_one_step():
    expected = []
    for count in range(4):
        opt = fm.Optimizer([np.ones(3), np.ones(2)], counted(), lr=0.1, momentum=0.5)
        for _ in range(count):
            opt.step([np.ones(3), np.ones(2)])
        expected.append((opt.steps, [p.tobytes() for p in opt.params], copy.deepcopy(opt._engine.state.memory)))
    found = set()
    for at in places("sums"):
        opt = fm.Optimizer([np.ones(3), np.ones(2)], counted(), lr=0.1, momentum=0.5)
        for _ in range(2):
            opt.step([np.ones(3), np.ones(2)])
        if not is_interrupted(lambda opt=opt: opt.step([np.ones(3), np.ones(2)]), at):
            break
        now = (opt.steps, [p.tobytes() for p in opt.params], opt._engine.state.memory)
        assert now in expected[2:]
        found.add(opt.steps)
    assert found == {2, 3}


def test_stage_keeps_no_memory():
    with pytest.raises(ValueError, match="memory: expected for a rule alone"):
        fm.Stage(lambda g, p, a: a * g, hyper=("a",), memory={"a": 1.0}, derived={"a": lambda a: a})


@pytest.mark.parametrize("backend", BACKENDS)
def test_groups_that_share_memory_must_derive_the_same_next_values(backend):
    params = [np.ones(2), np.ones(2)]
    opt = fm.Optimizer([{"params": params[0], "lr": 0.1}, {"params": params[1], "lr": 0.3}], "fire", backend=backend)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"memory: .* in all groups.* got \{'dt': 0.1.* and \{'dt': 0.3"):
            opt.step([np.ones(2), np.ones(2)])
        assert opt.steps == 0
        assert opt._engine.state.memory == [[0.0, 0.0, 0.0]] * 2
        np.testing.assert_array_equal(params, np.ones((2, 2)))
    opt.lr = 0.1
    opt.groups[1]["max_step"] = 0.01  # on which no number in memory depends
    opt.step([np.ones(2), np.ones(2)])
    assert opt._engine.state.memory == [[0.1, 0.1, 0.0]] * 2


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rule", ["nadam", "schedule_free_sgd", "counted"])
def test_groups_with_and_without_a_stage_that_sums_keep_the_same_memory(rule, backend):
    made, grads = counted() if rule == "counted" else rule, [*gradients_of(((3,), (3,)), 4, np.float64)]
    found = []
    for own in ({}, {"clip_norm": 1e9}):
        params = arrays_of(((3,), (3,)), np.float64)
        groups = [{"params": params[0], **own}, {"params": params[1]}]
        opt = fm.Optimizer(groups, made, lr=0.1, momentum=0.5, backend=backend)
        for each in grads:
            opt.step(each)
        found.append((params, opt._engine.state.memory))
    assert_all_same_bits(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


def test_saved_memory_that_arrays_share_must_be_the_same_for_all():
    opt = fm.Optimizer([np.ones(2), np.ones(3)], "fire", lr=0.1)
    saved = opt.state_dict()
    saved["memory"] = [saved["memory"][0], saved["memory"][1] | {"dt": 0.5}]
    with pytest.raises(ValueError, match="memory: expected the same numbers for all arrays"):
        opt.load_state_dict(saved)
    assert opt._engine.state.memory == [[0.0, 0.0, 0.0]] * 2


def test_state_of_a_rule_that_cannot_be_converted_comes_without_that_advice():
    for source, target, can_convert in (("fire", "sgd", False), ("pytorch", "classical", True)):
        saved = fm.Optimizer(np.ones(2), source, lr=0.1, **({"momentum": 0.5} if can_convert else {})).state_dict()
        opt = fm.Optimizer(np.ones(2), target, lr=0.1, **({"momentum": 0.5} if can_convert else {}))
        with pytest.raises(ValueError, match="rule: expected") as refused:
            opt.load_state_dict(saved)
        assert ("opt.convert" in str(refused.value)) == can_convert


@pytest.mark.parametrize("rule", ["adamw", "heavy_ball", "lion"])
@pytest.mark.parametrize("around", ["alone", "in a chain"])
def test_cautious_rule_and_its_optimiser_can_be_pickled(rule, around):
    made = fm.cautious(rule)
    made = fm.chain(fm.stages.clip_value(0.5), made) if around == "in a chain" else made
    again = pickle.loads(pickle.dumps(made))
    assert (again.structure, again.description) == (made.structure, made.description)
    grads = [*gradients_of(((40,),), 4, np.float32)]
    opt = fm.Optimizer(np.ones(40, np.float32), made, lr=0.1, momentum=0.5)
    opt.step(grads[0][0])
    copies = [opt, pickle.loads(pickle.dumps(opt)), copy.deepcopy(opt)]
    for each in copies:
        for (grad,) in grads[1:]:
            each.step(grad)
    for other in copies[1:]:
        assert_all_same_bits([opt.params], [other.params])


@pytest.mark.parametrize(
    ("value", "message"),
    [(None, "got None"), ("1", "got '1'"), (1j, "got 1j"), (np.ones(2), "got an array of float64")],
)
def test_result_that_is_no_number_is_refused_with_the_name_of_the_number(value, message):
    p = np.ones(2)
    rule = counted(memory={}, derived={"boost": lambda size: value}, defaults={})
    opt = fm.Optimizer(p, rule, lr=0.1, momentum=0.5)
    with pytest.raises(TypeError, match=f"derived: expected a number for boost; {message}"):
        opt.step(np.ones(2))
    assert p.tolist() == [1.0, 1.0]


def test_error_of_a_users_function_says_which_number_it_derives_from_what():
    derived = {"boost": lambda size: math.log(-size), "count": lambda count: count, "last": lambda last: last}
    opt = fm.Optimizer(np.ones(2), counted(derived=derived, defaults={}), lr=0.1, momentum=0.5)
    with pytest.raises(ValueError, match="math domain error") as raised:
        opt.step(np.array([1.0, 2.0]))
    assert raised.value.__notes__ == ["raised by the function that derives boost from {'size': 5.0}"]
