"""fm.step checks every argument before it writes, and a refused step changes nothing."""

import re

import numpy as np
import pytest

import fastmomentum as fm
from tests.helpers.arrays import REFUSED_ARRAYS, assert_untouched, random_arrays, read_only
from tests.helpers.reference import BACKENDS

F4 = np.float32
NAN, INF = float("nan"), float("inf")
READ_ONLY = {"read-only": (read_only, ValueError, "read-only")}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", [*REFUSED_ARRAYS, *READ_ONLY])
@pytest.mark.parametrize("which", ["param", "state", "grad"])
def test_step_refuses_arrays_that_it_cannot_serve(which, kind, backend):
    make, error, reason = (REFUSED_ARRAYS | READ_ONLY)[kind]
    arrays = random_arrays(5, 3, F4)
    if which == "grad" and kind == "read-only":
        fm.step(arrays[0], arrays[1], make(arrays[2]), lr=0.1, backend=backend)  # a gradient may be read-only
        return
    place = ("param", "state", "grad").index(which)
    copies = [a.copy() for a in arrays]
    given = list(arrays)
    given[place] = make(arrays[place])
    # A parameter of another dtype, size or order is right in itself, and the message names the state, which differs.
    right = ("double", "short", "long", "empty", "2-D", "complex", "reversed")
    named = "state" if which == "param" and kind in right else which
    with pytest.raises(error, match=f"^{named}: expected|^state: rule.*expects") as raised:
        fm.step(*given, lr=0.1, backend=backend)
    if named == which:
        assert re.search(reason, str(raised.value))
    assert_untouched(arrays, copies)


def test_nesterov_selects_the_folded_form():
    for rule in ("pytorch", "classical", "ema"):
        (p, v, g), (q, w, _) = random_arrays(5, 3, F4), random_arrays(5, 3, F4)
        fm.step(p, v, g, rule=rule, nesterov=True, lr=0.1)
        fm.step(q, w, g, rule=f"{rule}_nesterov", lr=0.1)
        assert_untouched((p, v), (q, w))


@pytest.mark.parametrize("backend", BACKENDS)
def test_step_refuses_overlapping_arrays(backend):
    base = np.arange(12, dtype=F4)
    a, b = base[:5], base[4:9]  # they share one element
    apart = np.ones(5, F4)
    copy = base.copy()
    for given, named in (
        ((a, b, apart), "param.*velocity"),
        ((a, apart, b), "param.*grad"),
        ((apart, a, b), "velocity.*grad"),
        ((a, a, apart), "param.*velocity"),
        ((a, apart, a), "param.*grad"),
        ((apart, a, a), "velocity.*grad"),
        ((a, a, a), "param"),
    ):
        with pytest.raises(ValueError, match=f"{named}"):
            fm.step(*given, lr=0.1, backend=backend)
    assert_untouched([base], [copy])
    fm.step(base[:4], base[4:8], base[8:], lr=0.1, backend=backend)  # neighbours do not overlap


def test_step_refuses_a_state_that_the_rule_does_not_keep():
    p, v, g = random_arrays(5, 3, F4)
    for rule, state in (("sgd", v), ("sgd", (v,)), ("pytorch", None), ("pytorch", ()), ("pytorch", (v, v.copy()))):
        with pytest.raises(TypeError, match="state: rule.*expects"):
            fm.step(p, state, g, rule=rule, lr=0.1)
    fm.step(p, (v,), g, lr=0.1)
    fm.step(p, (), g, rule="sgd", lr=0.1)


def test_nan_and_infinite_gradients_are_data():
    p = np.zeros(4)
    fm.step(p, np.zeros(4), np.array([NAN, INF, -INF, 1.0]), lr=1.0)
    np.testing.assert_array_equal(p, [NAN, -INF, INF, -1.0])
