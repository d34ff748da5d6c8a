"""Resets of a part: a group, an array, some rows; whole where a signal comes between, and on the record."""

import numpy as np
import pytest
from oracles import assert_same_bits

import fastmomentum as fm


def gradients(params, steps, seed=3):
    rng = np.random.default_rng(seed)
    return [[rng.standard_normal(p.shape).astype(p.dtype) for p in params] for _ in range(steps)]


def made(**settings):
    rng = np.random.default_rng(0)
    params = [rng.standard_normal(shape) for shape in ((5, 3), (4,), (2, 2))]
    groups = [{"params": params[:1]}, {"params": params[1:], "lr": 0.03}]
    return fm.Momentum(groups, lr=0.1, **settings), params


def assert_all_same(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        assert_same_bits(ours, theirs)


def velocities(opt):
    return [v.copy() for v in opt.velocity]


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
@pytest.mark.parametrize(
    ("where", "rested", "said"),
    [
        ({}, {0: slice(None), 1: slice(None), 2: slice(None)}, "all"),
        ({"group": 0}, {0: slice(None)}, "group 0"),
        ({"group": np.int64(1)}, {1: slice(None), 2: slice(None)}, "group 1"),
        ({"array": 2}, {2: slice(None)}, "array 2"),
        ({"array": 0, "rows": 4}, {0: slice(4, 5)}, "array 0, rows 4:5"),
        ({"array": 0, "rows": (1, 3)}, {0: slice(1, 3)}, "array 0, rows 1:3"),
        ({"array": 1, "rows": slice(2, None)}, {1: slice(2, 4)}, "array 1, rows 2:4"),
        ({"array": 1, "rows": slice(3, 3)}, {}, "array 1, rows 3:3"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_reset_rests_what_it_names_and_nothing_else(where, rested, said, backend):
    opt, params = made(backend=backend)
    for grads in gradients(params, 3):
        opt.step(grads)
    expected = velocities(opt)
    for i, rows in rested.items():
        expected[i][rows] = 0.0
    before = [p.copy() for p in params]
    opt.reset("a test", **where)
    assert_all_same(opt.velocity, expected)
    assert_all_same(params, before)
    assert opt.resets == [(3, "a test", said)]
    (grads,) = gradients(params, 1, seed=9)
    opt.step(grads)
    for p, v, g, old, lr in zip(params, expected, grads, before, (0.1, 0.03, 0.03), strict=True):
        assert_same_bits(p, old - lr * (0.9 * v + g))


def test_only_what_was_reset_has_a_first_step_again():
    """torch's first step: without dampening, though the run has some."""
    opt, params = made(dampening=0.5)
    for grads in gradients(params, 2):
        opt.step(grads)
    before = velocities(opt)
    opt.reset("array 1 is new", array=1)
    opt.reset("so is row 2", array=0, rows=2)
    (grads,) = gradients(params, 1, seed=9)
    opt.step(grads)
    before[0][2] = 0.0
    assert_same_bits(opt.velocity[0], 0.9 * before[0] + 0.5 * grads[0])
    assert_same_bits(opt.velocity[1], grads[1])
    assert_same_bits(opt.velocity[2], 0.9 * before[2] + 0.5 * grads[2])


def test_all_rows_are_the_array():
    opt, params = made(dampening=0.5)
    grads, again = gradients(params, 2)
    opt.step(grads)
    opt.reset("all of it", array=1, rows=(0, 4))
    opt.step(again)
    assert_same_bits(opt.velocity[1], again[1])


def test_positions_rest_at_the_parameter():
    opt, params = made(rule="heavy_ball")
    for grads in gradients(params, 3):
        opt.step(grads)
    before = [q.copy() for q in opt.state]
    opt.reset("new rows", array=0, rows=(1, 3))
    before[0][1:3] = params[0][1:3]
    assert_all_same(opt.state, before)


def test_the_point_comes_back_in_the_rows_alone():
    opt, params = made(lookahead=True)
    for grads in gradients(params, 3):
        opt.step(grads)
    before = [point.copy() for point in opt.point]
    opt.reset("new rows", array=0, rows=(1, 3))
    before[0][1:3] = params[0][1:3]
    assert_all_same(opt.point, before)
    assert (opt.point[0][:1] != params[0][:1]).all()


def test_one_array_needs_no_number():
    p = np.ones((3, 2), np.float32)
    opt = fm.Momentum(p, lr=0.1)
    opt.step(np.ones_like(p))
    opt.reset("a new row", rows=1)
    assert_same_bits(opt.velocity, np.array([[1, 1], [0, 0], [1, 1]], np.float32))
    assert opt.resets[0].scope == "array 0, rows 1:2"


@pytest.mark.parametrize(
    ("where", "error", "message"),
    [
        ({"group": 2}, ValueError, "group: expected a number below 2"),
        ({"array": 3}, ValueError, "array: expected a number below 3"),
        ({"array": -1}, ValueError, "array: expected a whole number from 0"),
        ({"array": 1.0}, TypeError, "array: expected a whole number"),
        ({"group": True}, TypeError, "group: expected a whole number"),
        ({"group": 0, "array": 0}, TypeError, "expected one of them"),
        ({"rows": 1}, TypeError, "rows: expected with array"),
        ({"group": 0, "rows": 1}, TypeError, "rows: expected with array"),
        ({"array": 0, "rows": 5}, ValueError, "0 <= start <= stop <= 5"),
        ({"array": 0, "rows": (3, 2)}, ValueError, "0 <= start <= stop <= 5"),
        ({"array": 0, "rows": slice(0, 4, 2)}, ValueError, "without a step"),
        ({"array": 0, "rows": (0, 1, 2)}, ValueError, "expected a range"),
        ({"array": 0, "rows": (-2, None)}, ValueError, "rows: expected a whole number from 0"),
        ({"array": 0, "rows": 1.5}, TypeError, "rows: expected a whole number"),
        ({"array": 0, "rows": [0, 2]}, TypeError, "rows: expected a whole number"),
    ],
)
def test_what_is_not_there_is_refused(where, error, message):
    opt, params = made()
    opt.step(gradients(params, 1)[0])
    before = velocities(opt)
    with pytest.raises(error, match=message):
        opt.reset("a test", **where)
    assert_all_same(opt.velocity, before)
    assert opt.resets == []


def test_a_number_has_no_rows():
    opt = fm.Momentum(np.array(1.0), lr=0.1)
    with pytest.raises(ValueError, match="has a first axis"):
        opt.reset("a test", rows=0)
    opt.step(np.array(2.0))
    opt.reset("all of it")
    assert opt.velocity == 0.0


def test_scopes_are_saved(tmp_path):
    opt, params = made()
    opt.step(gradients(params, 1)[0])
    opt.reset("new rows", array=0, rows=(1, 3))
    opt.reset("a new layer", group=1)
    opt.save(tmp_path / "run.npz")
    again = fm.Momentum.load(tmp_path / "run.npz", params)
    assert again.resets == [(1, "new rows", "array 0, rows 1:3"), (1, "a new layer", "group 1")]
    assert again.resets[1].scope == "group 1"


@pytest.mark.parametrize("at", range(3))
def test_a_reset_that_a_signal_tears_apart_is_whole_before_the_next_step(at, monkeypatch):
    from fastmomentum.backends import host_arrays

    opt, params = made(dampening=0.5)
    grads, again = gradients(params, 2)
    opt.step(grads)
    zero, calls = host_arrays.zero, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == at + 1:
            raise KeyboardInterrupt
        zero(*arguments)

    monkeypatch.setattr(host_arrays, "zero", interrupted)
    with pytest.raises(KeyboardInterrupt):
        opt.reset("a test")
    opt.step(again)
    assert_all_same(opt.velocity, again)
    assert opt.resets == [(1, "a test", "all")]


def test_a_reason_is_kept_as_a_plain_str():
    opt, _ = made()
    opt.reset(np.str_("a word of an array"))
    opt.load_state_dict(opt.state_dict())
    assert opt.resets[0].reason == "a word of an array"
