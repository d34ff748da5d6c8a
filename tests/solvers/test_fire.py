"""fm.minimize(rule="fire"): recorded points of ASE, minima of clusters, refused arguments, and how runs end."""

import copy
import inspect
import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numba
import numpy as np
import pytest
from scipy.optimize import Bounds, minimize, rosen, rosen_der

import fastmomentum as fm
from fastmomentum.solvers.step_sizes import METHODS, REFUSED, SETTINGS
from tests.helpers.processes import run_python
from tests.helpers.reference import DTYPES

FILE = json.loads((Path(__file__).parents[1] / "published" / "optimizer_runs.json").read_text())
RUNS = {run["key"]: run for run in FILE["runs"]}
PROBLEM = FILE["fire_problem"]
K, Q, C = np.array(PROBLEM["k"]), np.array(PROBLEM["q"]), PROBLEM["c"]
NAMES = {"lr": "dt", "max_step": "maxstep", "max_dt": "dtmax", "patience": "Nmin", "dt_growth": "finc"}
NAMES |= {"dt_shrink": "fdec", "alpha_start": "astart", "alpha_shrink": "fa"}


def energy(x, k, q, c):
    return np.sum(k * x**2 / 2 + q * x**4 / 4) + c * np.sum(x[:-1] * x[1:])


def slope(x, k, q, c):
    g = k * x + q * x**3
    g[:-1] += c * x[1:]
    g[1:] += c * x[:-1]
    return g


def both(x, k, q, c):
    return energy(x, k, q, c), slope(x, k, q, c)


compiled_energy, compiled_slope = numba.njit(energy), numba.njit(slope)
compiled_both = numba.njit(lambda x, k, q, c: (compiled_energy(x, k, q, c), compiled_slope(x, k, q, c)))


def relax(fun=energy, jac=slope, x0=PROBLEM["start"], **settings):
    return fm.minimize(fun, x0, (K, Q, C), **{"jac": jac, "rule": "fire"} | settings)


@pytest.mark.parametrize(
    ("fun", "jac"),
    [(energy, slope), (compiled_energy, compiled_slope), (both, True), (compiled_both, True)],
    ids=["python", "compiled", "python, jac=True", "compiled, jac=True"],
)
@pytest.mark.parametrize("key", ["fire/ase", "fire/ase:settings", "fire/ase:large"])
def test_fire_takes_the_points_of_ase(key, fun, jac):
    recorded, seen = RUNS[key], []
    settings = {ours: recorded["settings"][theirs] for ours, theirs in NAMES.items()}
    start = recorded.get("start", PROBLEM["start"])
    found = relax(fun, jac, start, gtol=0.0, maxiter=60, callback=seen.append, **settings)
    np.testing.assert_allclose(seen, recorded["x"], rtol=1e-10, atol=1e-10)  # the tolerance of the rule's own test
    assert (found.nit, found.status, found.lr) == (60, 1, settings["lr"])


def test_fire_takes_the_same_points_without_a_callback():
    seen = []
    relax(gtol=0.0, maxiter=300, callback=seen.append)
    for steps in (1, 2, 37, 300):
        opt = fm.Optimizer(x := np.array(PROBLEM["start"]), "fire")
        for _ in range(steps):
            opt.step(slope(x, K, Q, C))
        np.testing.assert_array_equal(x, seen[steps - 1])
        found = relax(gtol=0.0, maxiter=steps)
        assert any(np.array_equal(found.x, point) for point in [PROBLEM["start"], *seen[:steps]])


def lennard_jones(x):
    difference = x[:, None] - x[None]
    squares = np.sum(difference**2, axis=-1)
    np.fill_diagonal(squares, np.inf)
    sixth = squares**-3.0
    pairs = (sixth - 2.0 * sixth**2) / squares
    return 2.0 * np.sum(sixth**2 - sixth), 24.0 * np.sum(pairs[..., None] * difference, axis=1)


LEAST = {2: -1.0, 3: -3.0, 4: -6.0}
"""The energies of pairs, triangles and tetrahedra in which each distance is that of the pair potential's minimum."""


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("atoms", LEAST)
@pytest.mark.parametrize("dimensions", [1, 2])
def test_fire_relaxes_clusters_of_atoms(atoms, seed, dimensions):
    corners = np.array([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])[:atoms] * 2 ** (1 / 6) / 8**0.5
    start = corners + np.random.default_rng(seed).uniform(-0.15, 0.15, (atoms, 3))
    fun, x0 = lennard_jones, start
    if dimensions == 1:
        x0 = start.ravel()

        def fun(x):
            value, gradient = lennard_jones(x.reshape(-1, 3))
            return value, gradient.ravel()

    found = fm.minimize(fun, x0, jac=True, rule="fire", lr=0.01, max_dt=0.1, gtol=1e-8)
    assert found.success, found.message
    assert found.x.shape == found.jac.shape == x0.shape
    assert found.optimality == np.abs(found.jac).max() <= 1e-8
    assert found.fun == pytest.approx(LEAST[atoms], abs=1e-12)
    np.testing.assert_array_equal(start, x0.reshape(-1, 3))


@pytest.mark.parametrize("x0", [(-1.2, 1.0), (2.0, 2.0), (0.0, 0.0), (-3.0, -4.0)])
@pytest.mark.parametrize("jac", [rosen_der, None, "3-point"])
def test_fire_minimises_rosenbrock(x0, jac):
    found = fm.minimize(rosen, x0, jac=jac, rule="fire", lr=0.01, max_dt=0.05)
    assert found.success
    assert found.optimality <= 1e-5
    np.testing.assert_allclose(found.x, 1.0, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(6,), (2, 3), (3, 1, 2), (1, 6)])
def test_fire_takes_starts_of_any_shape_and_keeps_float32(shape, dtype):
    x0 = np.asfortranarray(np.reshape(PROBLEM["start"], shape).astype(dtype))

    def square(x):
        assert x.shape == shape
        assert x.dtype == dtype
        return float(np.sum(x * x))

    for jac in (lambda x: 2 * x, numba.njit(lambda x: 2 * x)):
        found = fm.minimize(square, x0, jac=jac, rule="fire", gtol=1e-4)
        assert (found.success, found.x.shape, found.x.dtype) == (True, shape, dtype)
        np.testing.assert_allclose(found.x, 0.0, atol=1e-4)


@pytest.mark.parametrize("jac", [None, "2-point", "3-point"])
def test_fire_takes_differences_of_any_shape(jac):
    asked = []

    def fun(x):
        asked.append(x.shape)
        return float(np.sum(x * x))

    found = fm.minimize(fun, np.ones((2, 3)), jac=jac, rule="fire", maxiter=5)
    assert set(asked) == {(2, 3)}
    assert (found.nfev, found.njev) == (len(asked), found.nit + 1)
    np.testing.assert_allclose(found.jac, 2 * found.x, rtol=1e-6)


def test_fire_accepts_one_number_and_wrong_shapes_are_refused():
    found = fm.minimize(lambda x: x[0] ** 2, 1.0, jac=lambda x: 2 * x, rule="fire")
    assert (found.success, found.x.shape) == (True, (1,))
    with pytest.raises(ValueError, match="x0: expected an array of at least one number; got shape \\(0, 3\\)"):
        relax(x0=np.ones((0, 3)))
    with pytest.raises(ValueError, match="jac: expected it to return numbers of shape \\(2, 3\\), as x0 has"):
        fm.minimize(lambda x: 1.0, np.ones((2, 3)), jac=lambda x: x.ravel(), rule="fire")
    found = fm.minimize(lambda x: 1.0, np.ones((2, 3)), jac=lambda x: np.diag([1, np.nan, 1])[:2], rule="fire")
    assert (found.status, found.message) == (2, "no step can be taken: at x0, jac is nan for parameter 4")


REFUSALS = [
    ({"momentum": 0.9}, ValueError, "momentum: expected none with rule 'fire', .*alpha_start.*; got 0.9"),
    ({"momentum": 0.0}, ValueError, "momentum: expected none with rule 'fire'"),
    ({"spectrum": True}, ValueError, "spectrum: expected none with rule 'fire', .*max_dt.*; got True"),
    ({"restart": "gradient"}, ValueError, "restart: expected none with rule 'fire'.*; got 'gradient'"),
    ({"restart": True}, ValueError, "restart: expected none with rule 'fire'"),
    ({"l1": 0.1}, ValueError, "l1: expected none with rule 'fire', which has no proximal map.*; got 0.1"),
    ({"bounds": [(0, 1)] * 6}, ValueError, "bounds: expected none with rule 'fire'.*; got a list of 6"),
    ({"bounds": Bounds(0, 1)}, ValueError, "bounds: expected none with rule 'fire'"),
    ({"bounds": Bounds(0, 1), "x0": np.ones((2, 3))}, ValueError, "bounds: expected none with rule 'fire'"),
    ({"constraints": [{}]}, ValueError, "constraints: expected none; .*except with rule 'fire'"),
    ({"lr": lambda k: 0.1}, TypeError, "lr: expected a number with rule 'fire', whose first time step it is"),
    ({"lr": 0.0}, ValueError, "lr: expected a finite number > 0; got 0.0"),
    *[({name: -1.0}, ValueError, f"{name}: expected a finite number >= 0; got -1.0") for name in SETTINGS["fire"]],
    *[({name: np.nan}, ValueError, f"{name}: expected a finite number >= 0") for name in SETTINGS["fire"]],
    *[({name: "a"}, TypeError, f"{name}: expected a finite number >= 0; got 'a'") for name in SETTINGS["fire"]],
]


@pytest.mark.parametrize(("given", "error", "message"), REFUSALS)
def test_fire_refuses_arguments(given, error, message):
    with pytest.raises(error, match=message):
        relax(**given)


def test_each_refused_argument_of_fire_is_tested_and_has_no_effect_as_none():
    assert REFUSED["fire"].keys() <= {name for given, _, _ in REFUSALS for name in given}
    assert REFUSED.keys() <= METHODS.keys()
    assert set(SETTINGS["fire"]) == set(NAMES) - {"lr"}
    assert not set(SETTINGS["fire"]) & set(inspect.signature(fm.minimize).parameters)
    none = dict.fromkeys(REFUSED["fire"]) | {"l1": 0.0}
    for given in (none, none | {"restart": False}):
        np.testing.assert_array_equal(relax(**given).x, relax().x)


def test_settings_of_fire_are_unknown_to_other_rules_and_others_to_fire():
    with pytest.raises(
        TypeError, match="max_step, patience: .*; got unknown ones. max_step is a setting of rule 'fire'"
    ):
        relax(rule="nesterov_positions", max_step=0.1, patience=3)
    with pytest.raises(TypeError, match="weight_decay: expected no option but .*, max_step, .* with rule 'fire'"):
        relax(weight_decay=0.1, max_step=0.1)


def test_settings_of_fire_may_be_functions_of_the_step():
    seen, x = [], np.array(PROBLEM["start"])
    relax(gtol=0.0, maxiter=20, max_step=lambda step: 0.05 / (1 + step), callback=seen.append)
    lengths = np.linalg.norm(np.diff([x, *seen], axis=0), axis=1)
    assert np.all(lengths <= 0.05 / (1 + np.arange(20)) * (1 + 1e-12))
    assert lengths[0] == pytest.approx(0.05, rel=1e-12)


def test_the_rule_can_be_a_rule_or_its_copy_but_no_variant():
    expected = relax(maxiter=20)
    for rule in (fm.rules.fire, copy.copy(fm.rules.fire), pickle.loads(pickle.dumps(fm.rules.fire))):
        np.testing.assert_array_equal(relax(rule=rule, maxiter=20).x, expected.x)
    variant = replace(fm.rules.fire, defaults=fm.rules.fire.defaults | {"max_step": 0.1})
    for rule in (variant, fm.Rule(lambda p, v, g, lr, mu: (p, v), name="fire")):
        with pytest.raises(ValueError, match="rule: expected one of sgd, .*fire; got"):
            relax(rule=rule)


def test_fire_can_be_a_method_of_scipy():
    options = {"rule": "fire", "lr": 0.05, "max_step": 0.1}
    found = minimize(energy, PROBLEM["start"], (K, Q, C), jac=slope, method=fm.minimize, tol=1e-9, options=options)
    assert found.success
    np.testing.assert_array_equal(found.x, relax(lr=0.05, max_step=0.1, gtol=1e-9).x)


def test_fire_reports_the_fields_of_other_rules():
    calls = {"fun": 0, "jac": 0}

    def fun(x):
        calls["fun"] += 1
        return energy(x, K, Q, C)

    def jac(x):
        calls["jac"] += 1
        return slope(x, K, Q, C)

    found = fm.minimize(fun, PROBLEM["start"], jac=jac, rule="fire", gtol=1e-7)
    assert found.keys() == relax(rule="sgd").keys()
    assert (found.nfev, found.njev) == (calls["fun"], calls["jac"]) == (2, found.nit + 1)  # fun at both ends alone
    assert (found.status, found.success, found.restarts, found.lr, found.momentum) == (0, True, 0, 0.1, 0.0)
    assert found.message == "converged: the largest element of the prox-gradient is at most gtol"
    assert found.fun == energy(found.x, K, Q, C)
    np.testing.assert_array_equal(found.jac, slope(found.x, K, Q, C))
    assert found.optimality == np.abs(found.jac).max() <= 1e-7
    before = fm.minimize(fun, PROBLEM["start"], jac=jac, rule="fire", gtol=1e-7, maxiter=found.nit - 1)
    assert (before.status, before.success) == (1, False)


def test_fire_does_no_step_if_maxiter_is_zero_or_the_start_is_a_minimum():
    found = relax(maxiter=0)
    assert (found.nit, found.status) == (0, 1)
    assert found.message == "Maximum number of iterations has been exceeded: maxiter steps are done"
    np.testing.assert_array_equal(found.x, PROBLEM["start"])
    assert found.optimality == np.abs(slope(found.x, K, Q, C)).max()
    for maxiter in (0, 10):
        found = relax(x0=np.zeros(6), maxiter=maxiter)
        assert (found.nit, found.status, found.success) == (0, 0, True)


def test_ftol_ends_a_run_of_fire():
    found = relax(gtol=0.0, ftol=1e-6)
    assert (found.status, found.message) == (0, "converged: the objective changes by at most ftol")
    assert found.fun < 1e-4  # the minimum is 0


def test_a_run_of_fire_without_end_returns_the_best_point_and_a_finite_one():
    found = relax(maxiter=7, callback=lambda x: None)
    seen = [np.array(PROBLEM["start"])]
    relax(maxiter=7, callback=seen.append)
    assert found.fun == min(energy(x, K, Q, C) for x in seen)
    with np.errstate(all="ignore"):
        found = fm.minimize(lambda x: -float(np.exp(x[0])), [0.0], jac=lambda x: -np.exp(x), rule="fire", max_step=1e3)
    assert (found.status, found.success) == (2, False)
    assert "a smaller lr, max_dt or max_step may help" in found.message
    assert np.isfinite([*found.x, found.fun]).all()


def interrupted_by(function, at, value):
    """Return the function, whose call of number `at` returns `value` instead."""
    calls = 0

    def wrapped(x):
        nonlocal calls
        calls += 1
        return value(x) if calls == at else function(x)

    return wrapped


@pytest.mark.parametrize("outside", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["fun", "jac", "one element of jac"])
@pytest.mark.parametrize("rule", ["fire", "heavy_ball"])
def test_a_value_that_is_not_finite_ends_the_run_with_status_2_whenever_it_comes(rule, where, outside):
    steps = 12
    kept = {"rule": rule, "gtol": 0.0, "maxiter": steps, "callback": lambda x: None, "lr": 0.1}

    def fun(x):
        return float(energy(x, K, Q, C))

    def jac(x):
        return slope(x, K, Q, C)

    def broken(x):
        return outside if where == "fun" else np.where(np.arange(6) == 3 if "one" in where else True, outside, jac(x))

    for at in range(1, steps + 2):
        functions = {"fun": fun, "jac": jac}
        name = where.split()[-1]
        functions[name] = interrupted_by(functions[name], at, broken)
        found = fm.minimize(functions["fun"], PROBLEM["start"], jac=functions["jac"], **kept)
        # A value that comes with the last step is seen by no step after it.
        assert (found.status, found.success, found.nit) == (2 if at <= steps else 1, False, min(at - 1, steps))
        assert np.isfinite(found.x).all()
        if at > 1:  # else there is no other point
            assert (found.fun, found.optimality) == (fun(found.x), np.abs(found.jac).max())
            assert np.isfinite(found.jac).all()


def test_fire_calls_callbacks_of_both_forms_and_stops_on_stopiteration():
    seen, results = [], []

    def told(intermediate_result):
        results.append(intermediate_result)
        if len(results) == 7:
            raise StopIteration

    one = relax(callback=lambda x: seen.append(x), maxiter=20, gtol=0.0)
    other = relax(callback=told, gtol=0.0)
    assert (len(seen), one.nit) == (20, 20)
    assert (other.status, other.success, other.nit) == (99, False, 7)
    for x, result in zip(seen, results):
        np.testing.assert_array_equal(x, result.x)
        assert result.fun == energy(x, K, Q, C)
    np.testing.assert_array_equal(other.x, results[-1].x)
    with pytest.raises(ZeroDivisionError):
        relax(callback=lambda x: 1 / 0)

    def overwrite(x):
        x[:] = np.nan

    np.testing.assert_array_equal(relax(callback=overwrite).x, relax().x)


def test_fire_writes_to_no_array_of_the_caller_and_keeps_none():
    start, buffer = np.array(PROBLEM["start"]), np.empty(6)

    def fun(x):
        value = energy(x, K, Q, C)
        x[:] = np.nan
        return value

    def jac(x):
        buffer[:] = slope(x, K, Q, C)
        x[:] = np.nan
        return buffer

    found = fm.minimize(fun, start, jac=jac, rule="fire")
    assert found.success
    np.testing.assert_array_equal(start, PROBLEM["start"])
    np.testing.assert_array_equal(found.x, relax().x)
    assert not np.shares_memory(found.jac, buffer)


INTERRUPTED = """
    import os, signal, threading, numpy as np, fastmomentum as fm, numba
    fun, jac = lambda x: np.sum(x * x), lambda x: 2 * x
    if {compiled}:
        fun, jac = numba.njit(fun), numba.njit(jac)
    settings = dict(jac=jac, rule="fire", lr=1e-12, max_dt=1e-12, gtol=0.0, maxiter=10**9)
    x = np.ones({size})
    fm.minimize(fun, x, **settings | dict(maxiter=3))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    for delay in (0.05, 0.2, 0.3):
        timer = threading.Timer(delay, lambda: os.kill(os.getpid(), signal.SIGINT))
        timer.start()
        try:
            fm.minimize(fun, x, **settings)
        except KeyboardInterrupt:
            pass
        else:
            raise AssertionError("it went on")
        timer.join()
        assert (x == 1).all()
    assert fm.minimize(fun, x[:3], jac=jac, rule="fire").success
    """


@pytest.mark.skipif(os.name != "posix", reason="no signals of this kind")
@pytest.mark.parametrize(("compiled", "size"), [(True, 3), (False, 3), (False, 2_000_000)])
def test_ctrl_c_ends_a_run_of_fire(compiled, size):
    run_python(INTERRUPTED.format(compiled=compiled, size=size))
