"""fm.minimize on real problems, against solvers of other kinds that were asked for the same accuracy.

The tolerances are the cases' own: both sides promise an objective within `gap` of the least (benchmarks/solver_cases.py
says how), between 4e-12 and 4e-9 of it. Objectives are NumPy's, written apart from the compiled functions.
"""

import json
from functools import cache

import numpy as np
import pytest

from benchmarks import report, solver_data, solvers
from benchmarks.solver_cases import ALPHA, BOX, CASES, NONNEGATIVE, RATIO


@cache
def answered(name):
    case = CASES[name]()
    return case, case.ours()[0], case.peer()[0]


def radius(case):
    """Return the largest distance from the minimiser within the gap, by F(x) − F* ≥ m‖x − x*‖²/2."""
    return np.sqrt(2 * case.gap / case.m)


@pytest.mark.parametrize("name", CASES)
def test_minimize_reaches_the_objective_of_the_peer(name):
    case, ours, theirs = answered(name)
    least = case.objective(theirs)
    assert abs(case.objective(ours) - least) <= case.gap  # either may be the one that is a gap above the least
    assert case.gap < 1e-8 * abs(least)


@pytest.mark.parametrize("name", CASES)
def test_minimize_reaches_the_minimiser_of_the_peer(name):
    case, ours, theirs = answered(name)
    assert np.linalg.norm(ours - theirs) <= 2 * radius(case)  # each within one of the minimiser


def slack(case, X, ridge=0.0):
    """Return how near to the threshold a slope at the peer's answer can be on the wrong side.

    A coordinate stays at zero while |x/lr − slope| is below it: with lr ≥ 1/2L, as backtracking leaves it, that is off
    by at most 3L of our distance from the minimiser, and the peer's slope by L of its own.
    """
    return 4 * (np.linalg.eigvalsh(X.T @ X / len(X))[-1] + ridge) * radius(case)


@pytest.mark.parametrize(
    ("name", "pair", "l1", "ridge"),
    [
        ("lasso, diabetes", solver_data.diabetes, ALPHA, 0.0),
        ("lasso, digits", solver_data.zeros, ALPHA, 0.0),
        ("elastic net, diabetes", solver_data.diabetes, ALPHA * RATIO, ALPHA * (1 - RATIO)),
    ],
)
def test_minimize_has_the_zeros_of_coordinate_descent(name, pair, l1, ridge):
    X, y = pair()
    case, ours, theirs = answered(name)
    slope = X.T @ (X @ theirs - y) / len(y) + ridge * theirs
    zero = theirs == 0
    assert zero.any()
    assert np.all(np.abs(slope[zero]) < l1 - slack(case, X, ridge))  # all are clear of the threshold,
    assert np.all(np.abs(theirs[~zero]) > 2 * radius(case))
    np.testing.assert_array_equal(ours == 0, zero)  # so that the comparison covers all coordinates


@pytest.mark.parametrize(
    ("name", "pair", "box"),
    [
        ("non-negative least squares, digits", solver_data.mixture, NONNEGATIVE),
        ("bounded least squares, diabetes", solver_data.diabetes, BOX),
    ],
)
def test_minimize_has_the_active_set_of_the_active_set_method(name, pair, box):
    X, y = pair()
    case, ours, theirs = answered(name)
    slope = X.T @ (X @ theirs - y) / len(y)
    for end, inwards in zip(box, (1, -1)):
        active = theirs == end
        assert np.all(inwards * slope[active] > slack(case, X))
        np.testing.assert_array_equal(ours == end, active)
    assert np.all((ours >= box[0]) & (ours <= box[1]))
    assert np.isin(theirs, box).any()


def test_pixels_stay_in_their_box_and_some_lie_on_its_sides():
    _, ours, _ = answered("deblurring in [0, 1], china.jpg")
    assert (ours.min(), ours.max()) == (0, 1)


def test_the_benchmark_records_what_its_table_shows(tmp_path, monkeypatch, capsys):
    name = "elastic net, diabetes"
    monkeypatch.setattr(solvers, "CASES", {name: CASES[name]})
    monkeypatch.setattr("sys.argv", ["solvers", "--smoke", "--out", str(tmp_path)])
    solvers.main()
    record = json.loads((tmp_path / "solvers.json").read_text())
    (found,) = record["cases"]
    assert found.keys() == {"case", "peer", "difference", "ratio", "iterations"}
    assert abs(found["difference"]) <= 1e-8
    assert report.TABLES["solvers"][2](record) == capsys.readouterr().out.splitlines()


def test_a_table_leaves_out_iterations_that_a_peer_does_not_tell():
    case = {"case": "one", "peer": "other", "difference": -2e-13, "ratio": 0.256, "iterations": [1234, None]}
    versions = dict.fromkeys(solvers.USED, "1")
    record = {"processor": "any", "versions": versions, "date": "2026-01-01", "rounds": 15, "cases": [case]}
    goal = {"name": "a goal", "value": 1.2345, "aim": 1.5, "most": True, "met": True}
    lines = solvers.table(record | {"embedded": [goal, goal | {"most": False, "met": False}]})
    assert lines[-2:] == ["| a goal | 1.23 × | ≤ 1.5 |", "| a goal | 1.23 × | ≥ 1.5 (missed) |"]
    assert lines[4] == "| one | other | 0.26 | -2e-13 | 1,234 |  |"
