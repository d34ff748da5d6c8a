"""The small version of the validation: its measurements are right, and it fails when a formula is wrong."""

import json

import numpy as np
import pytest

import fastmomentum as fm
from fastmomentum import cli, theory
from fastmomentum.cli.validation import formulas, limits, noise, plane, quadratics, report

NAN = float("nan")


def test_the_small_validation_holds_and_leaves_its_record_and_pictures(tmp_path, capsys):
    assert cli.main(["validate", "--small", "--out", str(tmp_path / "new" / "folder")]) == 0
    shown = capsys.readouterr().out
    assert "0 missed" in shown
    assert "MISSED" not in shown
    record = json.loads((tmp_path / "new" / "folder" / "validation.json").read_text())
    assert len(record["rows"]) > 300
    assert all(row["holds"] for row in record["rows"])
    assert record["small"] is True
    assert len({row["topic"] for row in record["rows"]}) == 24
    for name in ("plane", "critical", "tunings"):
        assert (tmp_path / "new" / "folder" / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_validation_fails_when_a_row_misses(tmp_path, capsys, monkeypatch):
    missed = formulas.Row("a wrong prediction", 1.0, 2.0, 1.0, 0.5, "group", "topic")
    held = formulas.Row("a right one", 1.0, 1.0, 0.0, 0.5, "group", "topic")
    monkeypatch.setattr(report, "parts", lambda sizes, planes: iter([("part", lambda: iter([held, missed, held]))]))
    monkeypatch.setattr(report, "draw", lambda planes, folder: [])
    assert cli.main(["validate", "--small", "--out", str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert "MISSED: a wrong prediction: predicted 1, measured 2" in shown
    assert "3 predictions, 1 missed" in shown


@pytest.mark.parametrize(
    ("error", "limit", "holds"),
    [(0.0, 0.0, True), (1.0, 0.0, False), (0.5, 0.5, True), (0.6, 0.5, False), (NAN, 0.5, False), (NAN, 0.0, False)],
)
def test_a_row_holds_up_to_its_limit_and_never_where_the_error_is_no_number(error, limit, holds):
    row = formulas.Row("what", 1.0, 1.0, error, limit, "group", "topic")
    assert row.holds is holds
    good, other = formulas.Row("good", 1.0, 1.0, 0.0, 1.0, "group", "topic"), row._replace(group="other")
    assert formulas.worst([good, row, other, good]) == [(row if error else good, 3), (other, 1)]
    assert formulas.worst([good, row, other, good], "topic")[0][1] == 4


@pytest.mark.parametrize("rule", formulas.RULES)
def test_the_plane_misses_where_the_prediction_is_of_another_rule_or_a_thousandth_off(rule):
    mu, ah = plane.grid(8, 15)
    measured = plane.measure(rule, mu, ah, 2048)
    assert all(row.holds for row in plane.rows(measured, worst=1e-2, median=1e-9))
    off = measured._replace(predicted=measured.predicted * 1.001)
    assert any(not row.holds for row in plane.rows(off, worst=1e-2, median=1e-9))
    shifted = measured._replace(predicted=np.log(np.exp(measured.predicted) + 0.5))
    assert any(not row.holds for row in plane.rows(shifted) if "wrong" in row.what)


def test_log_rates_are_those_of_runs_that_leave_double_precision():
    h, lr, mu = np.array([0.5, 3.9, 40.0]), np.ones(1), np.array([0.25])
    rates, flips = plane.log_rates("heavy_ball", lr, mu, h, 2048)
    measured = rates[0]
    assert flips[0, 1] == flips[0, 2] == 1
    assert flips[0, 0] == pytest.approx(np.arccos(0.75) / np.pi, abs=2e-3)  # θ/π: trace = 2·√μ·cos θ
    # By hand: complex roots give √μ, real ones the larger of the two.
    trace = 1.25 - h[1:]
    by_hand = np.log([0.5, *np.abs((np.abs(trace) + np.sqrt(trace**2 - 1.0)) / 2)])
    np.testing.assert_allclose(measured[1:], by_hand[1:], rtol=1e-12)
    assert measured[0] == pytest.approx(by_hand[0], rel=1e-4)
    assert 2048 * measured[2] > 710  # e^that is beyond double precision


def test_growth_at_critical_damping_is_told_from_growth_beside_it():
    momentum = plane.MOMENTA["heavy_ball"]
    exact = plane.run("heavy_ball", plane.LR, momentum, 4096).over(plane.RATE)
    # From rest e_t = ρ^t·(1 + (1 − ρ)t), by hand from e_0 = 1, e_1 = 1 − αh and the double root.
    t = np.arange(1, 4097)
    by_hand = np.hypot(1 + 0.1 * t, (1 + 0.1 * (t - 1)) / 0.9)
    np.testing.assert_allclose(exact, by_hand, rtol=1e-9)
    assert [row.holds for row in plane.critical_rows(2048)] == [True] * 12


def test_the_measured_iterations_are_those_of_a_loop_by_hand():
    problem = quadratics.prescribed(50.0, 12)
    tuning = theory.optimal(*problem.ends, rule="heavy_ball")
    x = before = problem.start
    steps, first = 0, np.linalg.norm(x - problem.solution)
    while np.linalg.norm(x - problem.solution) > 1e-6 * first:
        x, before = x - tuning.lr * problem.grad(x) + tuning.momentum * (x - before), x
        steps += 1
    settings = {"rule": "heavy_ball", "lr": tuning.lr, "momentum": tuning.momentum}
    measured = quadratics.count_iterations(problem.grad, problem.start, problem.solution, 1e-6, **settings)
    assert measured == steps
    endless = quadratics.count_iterations(problem.grad, problem.start, problem.solution, 1e-6, **settings | {"lr": 1.0})
    assert endless == float("inf")
    np.testing.assert_allclose(problem.spectrum[[0, -1]], [1.0, 50.0], rtol=1e-12)


def test_counting_misses_where_the_initial_error_is_another():
    problem = quadratics.least_squares("diabetes")
    wrong = problem._replace(error=np.roll(problem.error, 3))
    assert all(row.holds for row in quadratics.counting_rows(problem, rules=("heavy_ball", "ema")))
    assert any(not row.holds for row in quadratics.counting_rows(wrong, rules=("heavy_ball", "ema")))


def test_a_laplacian_has_the_eigenvalues_of_the_textbook():
    side = 6
    line = 2 - 2 * np.cos(np.arange(1, side + 1) * np.pi / (side + 1))
    by_hand = np.sort((line[:, None] + line).ravel())
    np.testing.assert_allclose(quadratics.laplacian(side).spectrum, by_hand, rtol=1e-12)


def test_a_bound_that_is_too_high_or_too_low_is_a_miss(monkeypatch):
    problem, right = quadratics.prescribed(50.0, 12), theory.iterations
    for wrong in (2, -2, 10**4):

        def biased(*given, error=None, wrong=wrong, **settings):
            return right(*given, error=error, **settings) + (wrong if error is None else 0)

        monkeypatch.setattr(theory, "iterations", biased)
        assert any(not row.holds for row in quadratics.counting_rows(problem, rules=("heavy_ball",)))
    monkeypatch.setattr(theory, "iterations", right)
    assert all(row.holds for row in quadratics.counting_rows(problem, rules=("heavy_ball",)))


def test_a_rule_that_is_written_down_wrongly_is_a_miss(monkeypatch):
    """Check that the published formulas reveal a wrong rule, as kernel and theory read the same function and agree."""

    def forgets_the_momentum(p, v, g, lr, mu, mu_next):
        v = mu * v + g
        return p - lr * (g + v), v

    wrong = fm.Rule(
        forgets_the_momentum, hyper=fm.rules.pytorch_nesterov.hyper, defaults=fm.rules.pytorch_nesterov.defaults
    )
    monkeypatch.setitem(fm.rules.registry._named, "pytorch_nesterov", wrong)
    missed = [row.topic for row in formulas.rows() if not row.holds]
    assert missed
    measured = plane.measure("pytorch_nesterov", *plane.grid(8, 15), 2048)
    missed = [row.topic for row in plane.rows(measured, worst=1e-2, median=1e-9) if not row.holds]
    assert "ρ over the (αh, μ) plane, against the published polynomials (relative)" in missed


@pytest.mark.parametrize(
    "wrong",
    [{"lr": 100.0}, {"iterations": 1}, {"headroom": 9.0}, {"headroom": 0.0}],
    ids=str,
)
def test_a_wrong_tuning_is_a_miss(wrong, monkeypatch):
    right, chosen = theory.tune, (("diabetes",), ("heavy_ball", "pytorch_nesterov"))
    assert all(row.holds for row in quadratics.tuning_rows(*chosen))
    monkeypatch.setattr(theory, "tune", lambda *given, **settings: right(*given, **settings)._replace(**wrong))
    assert any(not row.holds for row in quadratics.tuning_rows(*chosen))


@pytest.mark.parametrize("name", ["regime", "certificate", "optimal", "max_stable_lr"])
def test_a_wrong_theory_is_a_miss(name, monkeypatch):
    right = getattr(theory, name)
    wrong = {
        "regime": lambda *given, **settings: np.roll(right(*given, **settings), 1),
        "certificate": lambda *given, **settings: 1e9,
        "optimal": lambda *given, **settings: right(*given, **settings)._replace(rate=0.123),
        "max_stable_lr": lambda *given, **settings: right(*given, **settings) * (1 + 1e-9),
    }

    def every():
        yield from plane.rows(plane.measure("heavy_ball", *plane.grid(16, 30), 2048), worst=1e-2, median=1e-9)
        yield from plane.critical_rows(2048)
        yield from formulas.rows()

    assert all(row.holds for row in every())
    monkeypatch.setattr(theory, name, wrong[name])
    assert any(not row.holds for row in every())


def test_noise_misses_where_the_predicted_variance_is_a_tenth_off():
    found = noise.variance("pytorch", 0.1, 0.9, 400, 512)
    assert abs(found.mean - 0.19 / 0.37) < noise.SIGMAS * found.error  # α(1 + μ)/(h(1 − μ)(2(1 + μ) − αh))
    assert abs(found.mean - 1.1 * 0.19 / 0.37) > noise.SIGMAS * found.error


def test_the_cycle_is_one_of_the_gradient_as_published():
    p = np.array([3.3, 0.5, 1.5])
    np.testing.assert_array_equal(limits.lessard_gradient(p), [25 * 3.3 - 24, 12.5, 25.5])
    orbit = sorted(limits.CYCLE)
    for x, before in ((orbit[1], orbit[2]), (orbit[0], orbit[1]), (orbit[2], orbit[0])):
        after = x - limits.lessard_gradient(np.array(x)) / 9 + 4 / 9 * (x - before)
        assert min(abs(after - point) for point in orbit) < 1e-6  # published with seven decimals


def test_the_logistic_regression_s_hessian_is_that_of_its_gradient():
    problem = limits.Logistic()
    assert np.abs(problem.grad(problem.solution)).max() < 1e-14
    direction = np.random.default_rng(0).standard_normal(problem.solution.size)
    ends = [problem.grad(problem.solution + s * direction) for s in (1e-6, -1e-6)]
    # central differences: their error is of the order of 1e-9
    np.testing.assert_allclose((ends[0] - ends[1]) / 2e-6, problem.hessian(problem.solution) @ direction, rtol=1e-6)


def test_the_public_theory_is_complete():
    assert set(theory.__all__) <= set(dir(fm.theory))
