"""fm.SparseRows: rows are brought up to date when needed, and agree with a run that updates all of them."""

import copy
import json
import pickle
import warnings
from threading import Thread

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastmomentum as fm
from tests.helpers.ids import label
from tests.helpers.reference import BACKENDS, DTYPES, assert_all_same_bits, assert_same_bits, slots_of

ROWS, WIDTH = 11, 3
FORMS = [
    {"rule": "sgd"},
    {"rule": "pytorch", "dampening": 0.3},
    {"rule": "pytorch", "nesterov": True},
    {"rule": "classical"},
    {"rule": "classical", "nesterov": True},
    {"rule": "ema"},
    {"rule": "ema_nesterov"},
    {"rule": "heavy_ball"},
    {"rule": "nesterov_positions"},
    {"rule": "quasi_hyperbolic", "nu": 0.6},
    {"rule": "aggmo"},
    {"rule": "pytorch", "weight_decay": 0.1},
    {"rule": "ema", "decoupled_weight_decay": 0.1, "maximize": True},
    {"rule": fm.averaged("pytorch", 0.9)},
]


def names(form):
    return " ".join(str(value) for value in form.values())


def dense(param, touches, **settings):
    """Return (param, *state) of a run of fm.step, which updates every row in every step."""
    param = param.copy()
    state = fm.Momentum(param.copy(), **settings).state
    for rows, grads in touches:
        whole = np.zeros_like(param)
        for row, grad in zip(rows, grads, strict=True):
            whole[row] += grad
        fm.step(param, state, whole, **settings)
    return param, *slots_of(state)


def some_touches(dtype, steps=60, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        rows = rng.integers(0, ROWS - 1, rng.integers(0, 4))  # the last row is never touched
        yield rows, rng.standard_normal((rows.size, WIDTH)).astype(dtype)


def table(dtype):
    return np.random.default_rng(9).standard_normal((ROWS, WIDTH)).astype(dtype)


def bound(dtype, steps):
    """Return the tolerance: each dense step rounds a few times and keeps earlier errors; numbers stay below 8."""
    return 8 * 4 * steps * np.finfo(dtype).eps


@pytest.mark.parametrize("form", FORMS, ids=names)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_sparse_rows_agree_with_the_dense_run(form, dtype, backend):
    settings = {"lr": 0.05, "momentum": 0.9, "backend": backend, **form}
    touches = list(some_touches(dtype))
    wanted = dense(table(dtype), touches, **settings)
    p = table(dtype)
    opt = fm.SparseRows(p, **settings)
    for rows, grads in touches:
        opt.step(rows, grads)
    assert opt.steps == len(touches)
    opt.flush()
    assert opt.param is p
    for found, expected in zip((p, *opt.state), wanted, strict=True):
        assert found.dtype == dtype
        np.testing.assert_allclose(found, expected, rtol=0, atol=bound(dtype, len(touches)))


@given(
    touches=st.lists(
        st.lists(st.tuples(st.integers(0, 4), st.integers(-8, 8)), max_size=4).map(tuple), min_size=1, max_size=40
    ),
    reads=st.sets(st.integers(0, 39)),
    momentum=st.sampled_from([0.0, 0.5, 0.99, 1.0]),
)
def test_sparse_rows_agree_with_the_dense_run_for_any_touches_and_reads(touches, reads, momentum):
    settings = {"lr": 0.01, "momentum": momentum, "backend": "numpy"}
    pairs = [([row for row, _ in each], np.array([[float(g)] for _, g in each]).reshape(-1, 1)) for each in touches]
    p = np.arange(5.0)[:, None]
    wanted = dense(p, pairs, **settings)
    opt = fm.SparseRows(p, **settings)
    for number, (rows, grads) in enumerate(pairs):
        opt.step(rows, grads)
        if number in reads:
            now = dense(np.arange(5.0)[:, None], pairs[: number + 1], **settings)[0]
            np.testing.assert_allclose(opt.read([3, 0, 3]), now[[3, 0, 3]], rtol=0, atol=1e-11)
    opt.flush()
    # at most 40 steps, whose velocity is below 40·32 and moves p by a hundredth of it, each rounded thrice
    np.testing.assert_allclose(p, wanted[0], rtol=0, atol=1e-11)
    np.testing.assert_allclose(opt.state[0], wanted[1], rtol=0, atol=1e-11)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_sparse_rows_have_the_bits_of_the_dense_run_when_all_are_touched(dtype, backend):
    rng = np.random.default_rng(2)
    settings = {"rule": "pytorch", "lr": 0.05, "momentum": 0.9, "backend": backend}
    touches = [(rng.permutation(ROWS), rng.standard_normal((ROWS, WIDTH)).astype(dtype)) for _ in range(20)]
    p = table(dtype)
    opt = fm.SparseRows(p, **settings)
    for rows, grads in touches:
        opt.step(rows, grads)
    assert_all_same_bits((p, *opt.state), dense(table(dtype), touches, **settings))


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("missed", [1, 2, 7, 1000, 10**6])
def test_a_row_catches_up_by_the_closed_form(momentum, missed):
    p = np.ones((2, 1))
    opt = fm.SparseRows(p, lr=0.5, momentum=momentum)
    opt.step([0], np.array([[2.0]]))
    for _ in range(min(missed, 7)):
        opt.step([], np.zeros((0, 1)))
    opt.load_state_dict(opt.state_dict() | {"steps": 1 + missed})  # instead of a million steps, which take a minute
    opt.flush()
    decayed = momentum**missed
    # repeated squaring errs like `missed` multiplications
    assert opt.state[0][0, 0] == pytest.approx(2 * decayed, rel=4e-16 * missed + 1e-15, abs=1e-300)
    assert p[0, 0] == pytest.approx(0.0 - 0.5 * 2 * momentum * (1 - decayed) / (1 - momentum), rel=1e-11, abs=1e-15)
    assert p[1, 0] == 1


def test_a_read_brings_only_its_rows_up_to_date():
    p = np.ones((3, 2))
    opt = fm.SparseRows(p, lr=0.5, momentum=0.5)
    opt.step([0, 1], np.ones((2, 2)))
    opt.step([2], np.ones((1, 2)))
    assert (p[:2] == 0.5).all()
    row = opt.read([1])
    assert (row == 0.25).all()
    assert (p[1] == 0.25).all()
    assert (p[0] == 0.5).all()
    row[:] = 7
    assert (p[1] == 0.25).all()


def test_gradients_of_a_row_that_comes_twice_are_added():
    p, once = np.ones((4, 2)), np.ones((4, 2))
    fm.SparseRows(p, lr=0.5).step([3, 0, 3], np.array([[1.0, 2], [3, 4], [5, 6]]))
    fm.SparseRows(once, lr=0.5).step([0, 3], np.array([[3.0, 4], [6, 8]]))
    assert_same_bits(p, once)
    assert p.tolist() == [[-0.5, -1], [1, 1], [1, 1], [-2, -3]]


def test_settings_change_from_the_next_step_on():
    p, q = np.ones((2, 1)), np.ones((2, 1))
    opt = fm.SparseRows(p, lr=0.5, momentum=0.5)
    opt.step([0], np.array([[1.0]]))
    opt.step([1], np.array([[1.0]]))
    opt.change(lr=0.25, momentum=0.75)
    opt.step([1], np.array([[1.0]]))
    opt.flush()
    v = np.zeros((2, 1))
    for lr, momentum, g in ((0.5, 0.5, (1, 0)), (0.5, 0.5, (0, 1)), (0.25, 0.75, (0, 1))):
        fm.step(q, v, np.array(g, float)[:, None], lr=lr, momentum=momentum)
    assert_same_bits(p, q)  # halves and quarters: nothing is rounded
    assert_same_bits(opt.state[0], v)


@pytest.mark.parametrize("rows", [0, 4095, 4096, 4097, 10_000])
def test_a_flush_reaches_every_row(rows):
    p = np.ones((rows, 2), np.float32)
    opt = fm.SparseRows(p, lr=0.5, momentum=0.5)
    opt.step(np.arange(rows), np.ones((rows, 2), np.float32))
    opt.step([], np.zeros((0, 2), np.float32))
    opt.flush()
    assert (p == 0.25).all()


GOOD = {"rows": [0, 2], "grads": np.ones((2, 3))}


@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [
        ({"rows": [0, 5]}, ValueError, "rows: expected numbers from 0 to 4; got 0 to 5"),
        ({"rows": [-1, 2]}, ValueError, "rows: expected numbers from 0 to 4; got -1 to 2"),
        ({"rows": [0.0, 2.0]}, TypeError, "rows: expected a sequence of row numbers"),
        ({"rows": [True, False]}, TypeError, "rows: expected a sequence of row numbers"),
        ({"rows": [[0, 2]]}, TypeError, "rows: expected a sequence of row numbers"),
        ({"rows": 1}, TypeError, "rows: expected a sequence of row numbers"),
        ({"rows": [[0], [1, 2]]}, TypeError, "rows: expected a sequence of row numbers; got a list of 2"),
        ({"rows": [1]}, ValueError, r"grads: expected shape \(1, 3\), a row for each of rows; got \(2, 3\)"),
        ({"grads": np.ones((2, 3), np.float32)}, TypeError, "grads: expected float64"),
        ({"grads": [[1.0] * 3] * 2}, TypeError, "grads: expected a NumPy array"),
    ],
    ids=str,
)
def test_refused_step_changes_nothing(change, error, reason):
    p = np.ones((5, 3))
    opt = fm.SparseRows(p, lr=0.5)
    opt.step([0], np.ones((1, 3)))
    before = p.copy(), opt.state[0].copy()
    with pytest.raises(error, match=reason):
        opt.step(**(GOOD | change))
    opt.flush()
    assert opt.steps == 1
    assert_same_bits(p, before[0])
    assert_same_bits(opt.state[0], before[1])


@pytest.mark.parametrize(
    ("settings", "error", "reason"),
    [
        ({"rule": "lion"}, ValueError, "rule: expected one that is linear in p, state and g; got 'lion'"),
        ({"clip_value": 1.0}, ValueError, "linear in p, state and g"),
        ({"lookahead": True}, TypeError, "lookahead: expected only by Momentum"),
        ({"max_norm": 1.0}, TypeError, "max_norm: expected only by Momentum"),
        ({"lr": "0.1"}, TypeError, "lr: expected a finite number >= 0; got '0.1'"),
        ({"lr": lambda step: -0.1}, ValueError, "lr: expected a finite number >= 0; got -0.1"),
        ({"momentum": 1.5}, ValueError, "momentum: expected a number in"),
        ({"beta": 0.5}, TypeError, "beta: rule 'pytorch' takes no such"),
        ({"backend": "cuda"}, (ValueError, RuntimeError), "cuda"),
    ],
    ids=label,
)
def test_sparse_rows_refuse_rules_that_are_not_linear(settings, error, reason):
    with pytest.raises(error, match=reason):
        fm.SparseRows(np.ones((2, 2)), **({"lr": 0.1} | settings))
    if "backend" not in settings and "rule" not in settings:
        opt = fm.SparseRows(np.ones((2, 2)), lr=0.1)
        opt.step([0], np.ones((1, 2)))
        with pytest.raises(error, match=reason):
            opt.change(**settings)
        opt.step([], np.ones((0, 2)))
        opt.flush()
        assert opt.param[0, 0] == pytest.approx(1 - 0.1 - 0.1 * 0.9, rel=1e-15)


def test_change_refuses_another_rule():
    with pytest.raises(ValueError, match="param: expected a table of rows"):
        fm.SparseRows(np.ones(3), lr=0.1)
    with pytest.raises(TypeError, match="rule: expected only by the constructor"):
        fm.SparseRows(np.ones((3, 1)), lr=0.1).change(rule="sgd")


def test_step_keeps_the_sign_of_a_zero_gradient():
    p, q, g = (np.full((1, 1), -0.0) for _ in range(3))
    fm.SparseRows(p, lr=0.1, rule="sgd").step([0], g)
    fm.step(q, None, g, lr=0.1, rule="sgd")
    assert_same_bits(p, q)


@pytest.mark.parametrize("which", ["param", "velocity"])
def test_an_array_made_read_only_is_refused_with_nothing_changed(which):
    opt = fm.SparseRows(np.ones((4, 2)), lr=0.5)
    opt.step([0, 1], np.ones((2, 2)))
    array = opt.param if which == "param" else opt.state[0]
    before = opt.param.copy(), opt.state[0].copy()
    array.flags.writeable = False
    assert_all_same_bits([opt.read([1])], [before[0][1:2]])  # no step of this row is late, so nothing is written
    for attempt in (lambda: opt.step([1], np.ones((1, 2))), lambda: opt.step([2], np.ones((1, 2)))):
        with pytest.raises(ValueError, match=f"{which}: expected a writeable array; got a read-only one"):
            attempt()
    assert opt.steps == 1
    array.flags.writeable = True
    opt.flush()
    assert_all_same_bits((opt.param, opt.state[0]), before)


def test_overflow_and_underflow_are_silent():
    touches = [([0], np.ones((1, 1), np.float32)), *[([], np.zeros((0, 1), np.float32))] * 50]
    settings = {"lr": 0.1, "decoupled_weight_decay": 1e3, "backend": "cpu"}  # each step multiplies p by -99
    p = np.ones((2, 1), np.float32)
    opt = fm.SparseRows(p, **settings)
    with np.errstate(all="raise"), warnings.catch_warnings():
        warnings.simplefilter("error")
        for rows, grads in touches:
            opt.step(rows, grads)
        opt.flush()
    assert np.isinf(p).all()
    opt = fm.SparseRows(np.ones((2, 1), np.float32), lr=0.1, momentum=0.5)
    opt.load_state_dict(opt.state_dict() | {"steps": 1000, "state": [np.ones((2, 1), np.float32)]})
    with np.errstate(all="raise"):
        opt.flush()
    assert (opt.state[0] == 0).all()


KEPT = [
    {"rule": "pytorch", "nesterov": True, "weight_decay": 0.1},
    {"rule": "aggmo"},
    {"rule": "sgd", "decoupled_weight_decay": 0.1},
    {"rule": fm.averaged("heavy_ball", 0.9)},
]


def run(opt, touches):
    for number, (rows, grads) in enumerate(touches):
        opt.step(rows, grads)
        if number % 7 == 3:
            opt.read([number % ROWS])


def assert_same_rows(one, two):
    assert one.steps == two.steps
    for flushed in (False, True):
        assert_all_same_bits((one.param, *one.state), (two.param, *two.state))
        if not flushed:
            one.flush()
            two.flush()


def taken_up(opt, tmp_path):
    """Return the optimiser that another process restores from the table, the arrays of the dict, and JSON."""
    saved = opt.state_dict()
    arrays = {f"state_{i}": slot for i, slot in enumerate(saved["state"])} | {"seen": saved["seen"]}
    np.savez(tmp_path / "rows.npz", param=opt.param, **arrays)
    meta = json.loads(json.dumps({key: value for key, value in saved.items() if key not in ("state", "seen")}))
    with np.load(tmp_path / "rows.npz", allow_pickle=False) as found:
        state = [found[f"state_{i}"] for i in range(len(arrays) - 1)]
        again = fm.SparseRows(found["param"], rule=opt._settings.given["rule"], lr=9.0)
        again.load_state_dict(meta | {"state": state, "seen": found["seen"]})
    return again


WAYS = {
    "state_dict": taken_up,
    "pickle": lambda opt, _: pickle.loads(pickle.dumps(opt)),
    "deepcopy": lambda opt, _: copy.deepcopy(opt),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", KEPT, ids=names)
def test_resumed_sparse_rows_have_the_same_bits(form, way, tmp_path):
    touches = list(some_touches(np.float32))
    straight, stopped = (fm.SparseRows(table(np.float32), lr=0.05, **form) for _ in range(2))
    run(straight, touches[:25])
    run(stopped, touches[:25])
    again = WAYS[way](stopped, tmp_path)
    straight.change(lr=0.02)
    again.change(lr=0.02)
    run(straight, touches[25:])
    run(again, touches[25:])
    assert_same_rows(again, straight)
    assert stopped.steps == 25
    for array in (again.param, *again.state):
        assert not any(np.may_share_memory(array, other) for other in (stopped.param, *stopped.state))


def test_load_state_dict_accepts_another_memory_order():
    ours, theirs = (fm.SparseRows(np.ones((3, 2)), lr=0.5) for _ in range(2))
    ours.step([0, 1], np.array([[1.0, 2.0], [3.0, 4.0]]))
    saved = ours.state_dict()
    theirs.param[:] = ours.param
    theirs.load_state_dict(saved | {"state": [np.asfortranarray(slot) for slot in saved["state"]]})
    for opt in (ours, theirs):
        opt.step([0], np.ones((1, 2)))
    assert_same_rows(theirs, ours)


def test_a_saved_state_shares_no_memory():
    opt = fm.SparseRows(np.ones((3, 1)), lr=0.5)
    saved = opt.state_dict()
    again = fm.SparseRows(np.ones((3, 1)), lr=0.5)
    again.load_state_dict(saved)
    opt.step([0], np.ones((1, 1)))
    again.step([0, 1], np.ones((2, 1)))
    assert saved["seen"].tolist() == [0, 0, 0]
    assert not saved["state"][0].any()


@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [
        (3, TypeError, "state_dict: expected a dict from state_dict.*; got 3"),
        ({"schema": 3}, ValueError, "schema: expected 1 or 2; got 3"),
        ({"rule": "ema"}, ValueError, "rule: expected 'pytorch'; got 'ema'"),
        ({"made_of": "another"}, ValueError, "made_of: expected .*; got 'another'"),
        ({"more": 1}, ValueError, "more: unknown"),
        ({"steps": -1}, ValueError, "steps: expected a whole number from 0 .*; got -1"),
        ({"steps": 2.0}, ValueError, "steps: expected a whole number from 0 .*; got 2.0"),
        ({"steps": 0}, ValueError, "seen: expected numbers from 0 to steps; got 0 to 1"),
        ({"seen": np.array([0, -1, 0])}, ValueError, "seen: expected numbers from 0 to steps; got -1 to 0"),
        ({"seen": np.zeros(2, np.int64)}, ValueError, r"seen: .*shape \(3,\); got .*shape \(2,\)"),
        ({"seen": [0, 0, 0]}, ValueError, "seen: expected an array"),
        ({"state": []}, ValueError, r"state: expected \[an array of float64, shape \(3, 1\)\]; got \[\]"),
        ({"state": [np.zeros((3, 1), np.float32)]}, ValueError, "state: expected .*float64.*; got .*float32"),
        ({"settings": {"lr": -1.0}}, ValueError, "lr: expected a finite number >= 0; got -1.0"),
        ({"settings": {"lr": 0.1, "rule": "sgd"}}, ValueError, "settings: expected names of settings; got 'rule'"),
        ({"schema": 0, "steps": None}, ValueError, "(?s)schema: .*steps: "),
    ],
    ids=str,
)
def test_a_saved_state_that_does_not_fit_is_refused_with_nothing_changed(change, error, reason):
    opt = fm.SparseRows(np.ones((3, 1)), lr=0.5)
    opt.step([0], np.ones((1, 1)))
    opt.load_state_dict(opt.state_dict())  # computes what a rule computes once
    before = pickle.dumps(opt)
    with pytest.raises(error, match=reason):
        opt.load_state_dict(change if change == 3 else opt.state_dict() | change)
    with pytest.raises(ValueError, match="steps: missing"):
        opt.load_state_dict({key: value for key, value in opt.state_dict().items() if key != "steps"})
    assert pickle.dumps(opt) == before


def test_one_caller_is_served_at_a_time():
    opt = fm.SparseRows(np.ones((4, 1)), lr=0.5)
    refused = []

    def another():
        for attempt in (opt.flush, opt.state_dict, lambda: opt.read([0]), lambda: opt.step([0], np.ones((1, 1)))):
            try:
                attempt()
            except RuntimeError as error:
                refused.append(str(error))

    with opt._lock:
        thread = Thread(target=another)
        thread.start()
        thread.join()
    assert len(refused) == 4
    assert all("one caller at a time" in reason for reason in refused)
    assert opt.steps == 0


@pytest.mark.parametrize("name", ["nesterov", "maximize", "correct"])
def test_switches_are_assigned_and_read_as_other_settings_are(name, tmp_path):
    """Compare with rows that have the switch from the start, and with a saved run that gets it when it is loaded."""
    tables = [np.ones((3, 2)) for _ in range(3)]
    late, early, loaded = (fm.SparseRows(table, lr=0.5, backend="numpy") for table in tables)
    assert getattr(late, name) is False
    loaded.save(tmp_path / "rows.npz")
    setattr(late, name, True)
    early = fm.SparseRows(tables[1], lr=0.5, backend="numpy", **{name: True})
    loaded = fm.SparseRows.load(tmp_path / "rows.npz", tables[2], backend="numpy", **{name: True})
    for opt in (late, early, loaded):
        assert getattr(opt, name) is True
        for row in (0, 1):
            opt.step([row], np.full((1, 2), 0.25))
        opt.flush()
    assert_all_same_bits(tables[:2], tables[1:])
    setattr(late, name, False)
    assert getattr(late, name) is False


@pytest.mark.parametrize("name", ["step", "read", "steps", "param", "rule", "flush"])
def test_attributes_that_are_no_settings_are_not_replaced(name):
    opt = fm.SparseRows(np.ones((3, 2)), lr=0.5, backend="numpy")
    with pytest.raises(AttributeError, match=f"{name}: expected one of the settings dampening"):
        setattr(opt, name, 1.0)
    opt.step([0], np.ones((1, 2)))
    assert opt.steps == 1
