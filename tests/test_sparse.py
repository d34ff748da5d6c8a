"""Rows that wait: whatever rows are touched, the table is that of the dense run."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import assert_same_bits

import fastmomentum as fm

DTYPES = (np.float32, np.float64)
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
    """The (param, *state) of a run that updates every row in every step, by fm.step."""
    param = param.copy()
    taken = fm.Momentum(param.copy(), **settings).state
    state = () if taken is None else taken if isinstance(taken, tuple) else (taken,)
    for rows, grads in touches:
        whole = np.zeros_like(param)
        for row, grad in zip(rows, grads, strict=True):
            whole[row] += grad
        fm.step(param, taken, whole, **settings)
    return param, *state


def some_touches(dtype, steps=60, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        rows = rng.integers(0, ROWS - 1, rng.integers(0, 4))  # the last row is never touched
        yield rows, rng.standard_normal((rows.size, WIDTH)).astype(dtype)


def table(dtype):
    return np.random.default_rng(9).standard_normal((ROWS, WIDTH)).astype(dtype)


def bound(dtype, steps):
    """Each dense step rounds a few times, and passes on what was rounded before; numbers stay below 8."""
    return 8 * 4 * steps * np.finfo(dtype).eps


@pytest.mark.parametrize("form", FORMS, ids=names)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", ["numpy", "cpu"])
def test_rows_that_wait_are_those_of_the_dense_run(form, dtype, backend):
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
def test_any_pattern_of_touches_and_reads_is_the_dense_run(touches, reads, momentum):
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
@pytest.mark.parametrize("backend", ["numpy", "cpu"])
def test_rows_that_every_step_touches_have_the_bits_of_the_dense_run(dtype, backend):
    rng = np.random.default_rng(2)
    settings = {"rule": "pytorch", "lr": 0.05, "momentum": 0.9, "backend": backend}
    touches = [(rng.permutation(ROWS), rng.standard_normal((ROWS, WIDTH)).astype(dtype)) for _ in range(20)]
    p = table(dtype)
    opt = fm.SparseRows(p, **settings)
    for rows, grads in touches:
        opt.step(rows, grads)
    for found, expected in zip((p, *opt.state), dense(table(dtype), touches, **settings), strict=True):
        assert_same_bits(found, expected)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("missed", [1, 2, 7, 1000, 10**6])
def test_a_row_catches_up_by_the_closed_form(momentum, missed):
    p = np.ones((2, 1))
    opt = fm.SparseRows(p, lr=0.5, momentum=momentum)
    opt.step([0], np.array([[2.0]]))
    for _ in range(min(missed, 7)):
        opt.step([], np.zeros((0, 1)))
    opt.steps = 1 + missed  # as if so many had been done: a million take a minute
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
        ({"rows": [1]}, ValueError, r"grads: expected shape \(1, 3\)"),
        ({"grads": np.ones((2, 3), np.float32)}, TypeError, "grads: expected float64"),
        ({"grads": [[1.0] * 3] * 2}, TypeError, "grads: expected a NumPy array"),
    ],
    ids=str,
)
def test_a_refused_step_changes_nothing(change, error, reason):
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
        ({"lookahead": True}, TypeError, "lookahead: expected of Momentum alone"),
        ({"max_norm": 1.0}, TypeError, "max_norm: expected of Momentum alone"),
        ({"lr": lambda step: 0.1}, TypeError, "lr: expected a finite number"),
        ({"momentum": 1.5}, ValueError, "momentum: expected a number in"),
        ({"beta": 0.5}, TypeError, "beta: rule 'pytorch' takes no such"),
        ({"backend": "cuda"}, (ValueError, RuntimeError), "cuda"),
    ],
    ids=str,
)
def test_what_cannot_wait_is_refused(settings, error, reason):
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


def test_the_rule_and_the_table_are_fixed():
    with pytest.raises(ValueError, match="param: expected a table of rows"):
        fm.SparseRows(np.ones(3), lr=0.1)
    with pytest.raises(TypeError, match="rule: expected of SparseRows alone"):
        fm.SparseRows(np.ones((3, 1)), lr=0.1).change(rule="sgd")
