"""Checks of settings and arrays that fm.step and fm.Momentum share, and their messages."""

from inspect import signature

import numpy as np
import pytest

import fastmomentum as fm
from fastmomentum import checks
from tests.helpers.arrays import assert_untouched, random_arrays, read_only

NAN, INF = float("nan"), float("inf")
F4 = np.float32

BAD_NUMBERS = {
    "lr": (-0.1, NAN, INF, -INF, 1e39, "0.1", None, True, [0.1], np.array([0.1]), 0.1j, 10**400),
    "momentum": (-0.1, 1.0000001, NAN, INF, "0.9", None, False, np.array([0.9])),
    "dampening": (-0.1, 1.1, NAN, INF, "0", None),
    "weight_decay": (-0.1, NAN, INF, 1e39, "0", None, True),
    "decoupled_weight_decay": (-0.1, NAN, INF, 1e39, "0", None),
    "clip_value": (0.0, -1.0, NAN, INF, 1e39, 1e-60, "1"),
    "nesterov": (None, 1, 0.0, "yes"),
    "maximize": (None, 1, 0.0, "yes"),
    "threads": (0, -2, 1.0, True, "2"),
    "backend": ("gpu", 3),
    "rule": ("no such", None, 3),
}
GOOD_NUMBERS = (0, 1, np.float32(0.5), np.float64(0.5), np.int8(1), np.array(0.5), np.array(0.25, F4), -0.0)


@pytest.mark.parametrize(
    ("name", "value"), [(n, v) for n, values in BAD_NUMBERS.items() for v in values], ids=lambda x: str(x)[:20]
)
def test_step_and_momentum_refuse_settings_out_of_range(name, value):
    p, v, g = arrays = random_arrays(5, 3, F4)
    copies = [a.copy() for a in arrays]
    settings = {"lr": 0.1, name: value}
    if name == "momentum":  # also where the rule does not use it
        with pytest.raises((TypeError, ValueError), match=name):
            fm.step(p, None, g, rule="sgd", **settings)
    for call in (lambda: fm.step(p, v, g, **settings), lambda: fm.Momentum(p, **settings)):
        with pytest.raises((TypeError, ValueError), match=name) as raised:
            call()
        assert "expected" in str(raised.value) or name == "rule"
    if name not in ("threads", "backend", "rule"):
        with pytest.raises((TypeError, ValueError), match=name):
            fm.Momentum([{"params": p}, {"params": g, name: value}], lr=0.1)
    assert_untouched(arrays, copies)


@pytest.mark.parametrize("value", GOOD_NUMBERS, ids=repr)
def test_numbers_of_every_real_type_are_taken(value):
    expected = random_arrays(5, 3, F4)
    found = random_arrays(5, 3, F4)
    fm.step(*expected, lr=float(value) + 0.0, momentum=float(value) + 0.0)
    fm.step(*found, lr=value, momentum=value)
    assert_untouched(found, expected)
    opt = fm.Momentum(found[0], lr=value, momentum=value)
    opt.step(found[2])


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"nesterov": True, "rule": "sgd"}, "no folded Nesterov form"),
        ({"nesterov": True, "rule": "heavy_ball"}, "no folded Nesterov form"),
        ({"nesterov": True, "dampening": 0.5}, "dampening.*no dampened form"),
        ({"dampening": 0.5, "rule": "ema"}, "dampening.*no dampened form"),
        ({"dampening": 0.5, "rule": "classical"}, "dampening.*no dampened form"),
        ({"momentum_next": 0.5}, "momentum_next.*takes no such"),
        ({"learning_rate": 0.5}, "learning_rate.*takes no such.*it takes lr, momentum, dampening. Did you mean lr"),
        ({"weight_decy": 0.5}, "weight_decy.*Did you mean weight_decay"),
        ({"dampenning": 0.5}, "dampenning.*Did you mean dampening"),
        ({"beta": 0.5, "rule": "ema"}, "beta.*Did you mean momentum"),
        ({"foreach": True}, "foreach.*has all options"),
        ({"momentum_next": 1.5, "nesterov": True}, "momentum_next"),
    ],
)
def test_options_without_a_form_that_serves_them_are_refused(settings, reason):
    p, v, g = random_arrays(5, 3, F4)
    state = None if settings.get("rule") == "sgd" else v
    with pytest.raises((TypeError, ValueError), match=reason):
        fm.step(p, state, g, lr=0.1, **settings)
    with pytest.raises((TypeError, ValueError), match=reason):
        fm.Momentum(p, lr=0.1, **settings)


def test_unusual_settings_are_refused_by_name():
    p, v, g = random_arrays(5, 3, F4)
    with pytest.raises(TypeError, match="dtype.*takes no such"):
        fm.step(p, v, g, lr=0.1, dtype=3)
    with pytest.raises(ValueError, match="lr: expected.*an integer of 16610 bits"):
        fm.step(p, v, g, lr=10**5000)
    with pytest.raises(ValueError, match="shrink"):
        fm.step(p, v, g, lr=1e30, decoupled_weight_decay=1e30)
    with pytest.raises(TypeError, match=r"params\[0\].*names of settings; got 3"):
        fm.Momentum([{"params": p, 3: 1}], lr=0.1)
    with pytest.raises(ValueError, match="lr.*nan"):
        fm.Momentum([{"params": p}, {"params": [], "lr": NAN}], lr=0.1)


def test_memory_maps_are_accepted(tmp_path):
    mapped = np.memmap(tmp_path / "p", np.float32, "w+", shape=(4,))
    g = np.ones(4, F4)
    fm.step(mapped, np.zeros(4, F4), g, lr=0.5)
    np.testing.assert_array_equal(np.asarray(mapped), -0.5)
    opt = fm.Momentum(mapped, lr=0.5)
    for _ in range(2):
        opt.step(np.memmap(tmp_path / "g", np.float32, "w+", shape=(4,)) + 1)
    np.testing.assert_array_equal(np.asarray(mapped), F4(-1.0) - F4(0.5) * (F4(0.9) + F4(1.0)))


def test_dtype_with_metadata_is_accepted():
    """Check a dtype that equals float32 without being the same object, as unpickled arrays have it."""
    dtype = np.dtype(F4, metadata={"unit": "m"})
    p, g = np.zeros(3, dtype), np.ones(3, dtype)
    opt = fm.Momentum(p, lr=1.0)
    opt.step(g)
    fm.step(p, np.zeros(3, F4), g, lr=1.0)
    np.testing.assert_array_equal(p, -2.0)


def test_messages_say_what_to_do():
    """Check that the errors of new users come with advice."""
    torch = pytest.importorskip("torch")
    p, g = np.ones(3), np.ones(3)
    for call, says in (
        (lambda: fm.step([1.0, 2.0, 3.0], None, g, lr=0.1), "numpy.array(..., dtype=numpy.float32) makes one"),
        (
            lambda: fm.step(np.ones(3, int), None, g, lr=0.1),
            "got int64. The array is updated in place: replace it everywhere by .astype(numpy.float32)",
        ),
        (lambda: fm.step(p, None, g, lr=0.1), "velocity (initially numpy.zeros_like(param)); got None"),
        (lambda: fm.step(p, None, g, lr=0.1, rule="heavy_ball"), "previous (initially numpy.array(param)); got None"),
        (
            lambda: fm.SparseRows(torch.nn.Parameter(torch.ones(3, 1)), lr=0.1),
            ".detach().numpy() returns one on the same memory",
        ),
        (lambda: fm.Momentum(p, lr=0.1).step(torch.ones(3)), "expected float64, as the parameter has; got float32"),
        (lambda: fm.Momentum(p, lr=fm.schedules.Nesterov), "got the class Nesterov itself"),
        (
            lambda: fm.Momentum(np.ones((2, 3)), lr=0.1).step(np.ones((3, 2)).T),
            "strides (8, 16) (a transposed or strided view?). Pass numpy.ascontiguousarray(...)",
        ),
        (lambda: fm.Momentum(p, lr=0.1).step([g]), "got a list of 1. Pass the array inside of it"),
        (lambda: fm.step(p, [np.zeros(3)], g, lr=0.1), "got a list of 1. Pass the array inside of it"),
        (lambda: fm.Momentum(read_only(p), lr=0.1), "replace it everywhere by numpy.array(...), a copy"),
    ):
        with pytest.raises((TypeError, ValueError)) as raised:
            call()
        assert says in str(raised.value)


def test_messages_name_all_parts_of_a_chain():
    lasso = fm.chain(fm.stages.scale(0.5), fm.stages.soft_threshold(0.1), "nesterov_positions")
    with pytest.raises(TypeError, match=r"rule chain\(scale, nesterov_positions, soft_threshold\) takes no such"):
        fm.Momentum(np.ones(3), lr=0.1, rule=lasso, gain=0.5)


def test_suggested_options_exist():
    known = {*signature(fm.Momentum).parameters} - {"self", "params", "hyper"}
    assert set(checks.OPTIONS) == known
    assert set(checks.ELSEWHERE.values()) <= known
