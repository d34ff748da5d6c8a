"""fm.diagnose finds faults made on purpose, and nothing in healthy runs."""

import numpy as np
import pytest

import fastmomentum as fm
from tests.helpers.reference import BACKENDS, DTYPES, RULES, VARIANTS

H = np.geomspace(0.01, 1.0, 40)


def run(opt, steps, grad, between=lambda step: None, every=1):
    trace = opt.trace(every)
    for step in range(steps):
        opt.step(grad(step))
        between(step)
    return trace


def kinds(trace, spectrum=None):
    return fm.diagnose(trace, spectrum).kinds


def quadratic(dtype=np.float64, h=H):
    p = np.ones(len(h), dtype)
    return p, lambda step: (h * p).astype(dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_diagnose_finds_the_article_s_reset_bug_in_an_optimiser(backend):
    theta = np.array([1.0, 2.0])
    opt = fm.Momentum(theta, rule="ema", lr=0.1, momentum=0.9, backend=backend)
    trace = opt.trace()
    grads = [np.array([0.5, -0.2]), np.array([0.3, 0.1]), np.array([0.3, 0.1])]
    for step, grad in enumerate(grads):
        if step == 2:
            opt.velocity[:] = 0
        opt.step(grad)
    found = fm.diagnose(trace)
    assert found.kinds == ["zeroed"]
    assert found[0].steps == (1, 2)
    v = 0.9 * 0.1 * grads[0] + 0.1 * grads[1]
    assert found[0].numbers["left"] == pytest.approx(np.hypot(*v), rel=1e-14)
    assert "without a reset on record" in str(found)


def sgd_momentum_bugged(theta, grad, v, beta, learning_rate, reset_flag):
    """Update as the third example of the article does, bug included."""
    if reset_flag:
        v = np.array([0.0, 0.0])  # BUG: inadvertent reset
    v_new = beta * v + (1 - beta) * grad
    theta_new = theta - learning_rate * v_new
    return theta_new, v_new


@pytest.mark.parametrize("bug", [False, True])
def test_diagnose_finds_the_bug_inside_the_article_s_own_function(bug):
    theta, v = np.array([1.0, 2.0]), np.array([0.0, 0.0])
    trace = fm.Trace(rule="ema")
    for grad, flag in (([0.5, -0.2], False), ([0.3, 0.1], False), ([0.3, 0.1], bug)):
        grad = np.array(grad)
        trace.record(theta, v, grad, lr=0.1, momentum=0.9)
        theta, v = sgd_momentum_bugged(theta, grad, v, 0.9, 0.1, flag)
    trace.record(theta, v, None)
    found = fm.diagnose(trace)
    assert found.kinds == ["zeroed"] * bug
    assert not bug or "discarded the velocity" in str(found)
    assert len(trace) == 3


def test_diagnose_finds_a_velocity_made_anew_between_two_updates_of_a_loop_by_hand():
    theta, v = np.array([1.0, 2.0]), np.array([0.0, 0.0])
    trace = fm.Trace(rule="ema")
    for step in range(3):
        v = np.array([0.0, 0.0]) if step == 2 else v
        trace.record(theta, v, theta, lr=0.1, momentum=0.9)
        v = 0.9 * v + 0.1 * theta
        theta = theta - 0.1 * v
    assert kinds(trace) == ["zeroed"]


@pytest.mark.parametrize("rule", [*RULES[1:], *VARIANTS])
def test_diagnose_finds_any_write_to_the_state(rule):
    p, grad = quadratic()
    opt = fm.Momentum(p, rule=rule, lr=0.01, backend="numpy")

    def between(step):
        state = opt.state[0] if isinstance(opt.state, tuple) else opt.state
        if step == 5:
            state[3] *= 1 + 1e-9

    trace = run(opt, 10, grad, between)
    assert kinds(trace) == ["written"]
    assert fm.diagnose(trace)[0].steps == (5, 6)


def test_diagnose_names_the_group_written_to():
    params = [np.ones(3), np.ones(4), np.ones(5)]
    opt = fm.Momentum([{"params": params[:1]}, {"params": params[1:], "lr": 0.2}], lr=0.1)

    def between(step):
        if step == 1:
            opt.velocity[2][:] = 2.0

    trace = run(opt, 4, lambda step: [p.copy() for p in params], between)
    assert [(each.kind, each.group, each.numbers["array"]) for each in fm.diagnose(trace)] == [("written", 1, 2.0)]


def test_diagnose_finds_a_cold_start():
    p = np.ones(5)
    opt = fm.Momentum.from_optax(np.zeros(5), p, lr=0.1, momentum=0.9, steps=1000)
    assert kinds(run(opt, 3, lambda step: p.copy())) == ["cold start"]
    by_hand = fm.Trace(steps=1000)
    by_hand.record(p, np.zeros(5), p, lr=0.1)
    assert kinds(by_hand) == ["cold start"]


def test_diagnose_finds_no_cold_start_where_none_is(tmp_path):
    p = np.ones(5)
    opt = fm.Momentum(p, lr=0.1, backend="numpy")
    run(opt, 3, lambda step: p.copy()).stop()
    opt.save(tmp_path / "run.npz")
    again = fm.Momentum.load(tmp_path / "run.npz", p, backend="numpy")
    trace = run(again, 3, lambda step: p.copy())
    assert kinds(trace) == []
    assert trace.starts[0].step == 3
    opt.reset("new data")
    assert kinds(run(opt, 3, lambda step: p.copy())) == []
    warm = fm.Momentum(p, rule="classical", lr=lambda step: 0.1 * step, backend="numpy")
    run(warm, 1, lambda step: p.copy()).stop()
    assert kinds(run(warm, 3, lambda step: p.copy())) == []
    sgd = fm.Momentum(p, rule="sgd", lr=0.1, backend="numpy")
    run(sgd, 1, lambda step: p.copy()).stop()
    assert kinds(run(sgd, 3, lambda step: p.copy())) == []


def test_diagnose_reports_no_write_for_a_load_during_a_trace():
    p = np.ones(5)
    opt = fm.Momentum(p, lr=0.1)
    trace = opt.trace()
    saved = []
    for step in range(8):
        opt.step(p.copy())
        if step == 2:
            saved.append(opt.state_dict())
        if step == 5:
            opt.load_state_dict(saved[0])
    assert kinds(trace) == []
    assert [start.step for start in trace.starts] == [0, 3]


@pytest.mark.parametrize("rule", ["classical", "heavy_ball"])
def test_diagnose_reports_no_write_for_lr_correction(rule):
    p, grad = quadratic()
    opt = fm.Momentum(p, rule=rule, lr=0.1, correct=True, backend="numpy")
    assert kinds(run(opt, 9, grad, lambda step: setattr(opt, "lr", 0.1 / (2 + step)))) == []


@pytest.mark.parametrize("rule", ["pytorch", "classical", "pytorch_nesterov", "heavy_ball", "nesterov_positions"])
def test_diagnose_finds_a_diverging_run(rule):
    p, grad = quadratic()
    lr = 1.05 * fm.theory.max_stable_lr(0.9, 1.0, rule=rule)
    trace = run(fm.Momentum(p, rule=rule, lr=lr, backend="numpy"), 400, grad)
    assert kinds(trace) == ["diverging"]
    assert kinds(trace, (0.01, 1.0)) == ["unstable", "diverging"]


@pytest.mark.parametrize("rule", ["pytorch", "pytorch_nesterov", "heavy_ball"])
def test_diagnose_finds_an_oscillating_run(rule):
    p, grad = quadratic()
    lr = fm.theory.max_stable_lr(0.9, 1.0, rule=rule)
    trace = run(fm.Momentum(p, rule=rule, lr=lr, backend="numpy"), 400, grad)
    assert kinds(trace) == ["oscillating"]


def test_diagnose_finds_a_stalled_run():
    p = np.full(10, 1000.0, np.float32)
    opt = fm.Momentum(p, lr=1e-9, momentum=0.5, backend="numpy")
    assert kinds(run(opt, 20, lambda step: np.ones(10, np.float32))) == ["stalled"]


def test_diagnose_finds_what_is_not_finite():
    p = np.ones(10)
    opt = fm.Momentum(p, lr=0.1, backend="numpy")
    found = fm.diagnose(run(opt, 5, lambda step: np.full(10, np.nan if step == 3 else 1.0)))
    assert found.kinds == ["not finite"]
    assert found[0].steps[0] == 3


def test_diagnose_holds_lr_against_the_spectrum_rule_by_rule():
    for rule in RULES:
        limit = fm.theory.max_stable_lr(0.9, 2.0, rule=rule)
        for factor, expected in ((0.99, []), (1.01, ["unstable"])):
            p = np.ones(1)
            trace = run(fm.Momentum(p, rule=rule, lr=factor * limit, backend="numpy"), 3, lambda step, p=p: 2.0 * p)
            assert kinds(trace, (0.5, 2.0)) == kinds(trace, 2.0) == expected


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kappa", [2, 100, 10_000])
def test_diagnose_finds_nothing_in_the_best_tuning(rule, kappa, dtype):
    h = np.geomspace(1 / kappa, 1.0, 30)
    best = fm.theory.optimal(1 / kappa, 1.0, rule=rule)
    p, grad = quadratic(dtype, h)
    opt = fm.Momentum(p, rule=rule, lr=best.lr, momentum=best.momentum, backend="numpy")
    trace = run(opt, 1200, grad)
    assert kinds(trace, (1 / kappa, 1.0)) == []
    for steps in (10, 30, 50, 100, 200, 400):  # the same run, diagnosed earlier
        trace._steps, trace._rows = trace._steps[:steps], trace._rows[:steps]
        assert kinds(trace) == []


@pytest.mark.parametrize("rule", [*RULES, "quasi_hyperbolic", "ema_corrected", "aggmo"])
@pytest.mark.parametrize("size", [1, 40])
def test_diagnose_finds_nothing_in_noise_schedules_clipping_and_steps_left_out(rule, size):
    rng = np.random.default_rng(size)
    h = np.geomspace(0.01, 1.0, size)
    p = np.ones(size)
    opt = fm.Momentum(
        p,
        rule=rule,
        lr=lambda step: 0.05 / (1 + step / 100),
        momentum=lambda step: min(0.5 + step / 100, 0.9),
        max_norm=1.0,
        skip_nonfinite=True,
        backend="numpy",
    )

    def between(step):
        if step == 300:
            opt.reset("a break")

    def grad(step):
        noise = rng.standard_normal(size)
        return np.full(size, np.nan) if step % 97 == 5 else np.zeros(size) if step % 89 == 3 else h * p + noise

    assert kinds(run(opt, 600, grad, between)) == []


def test_diagnose_finds_nothing_where_arrays_begin_late_or_pause():
    params = [np.ones(3), np.ones(4)]
    opt = fm.Momentum(params, lr=0.1, dampening=0.5)
    trace = run(opt, 12, lambda step: [params[0].copy(), params[1].copy() if step > 3 and step % 3 else None])
    assert kinds(trace) == []


def test_diagnose_refuses_what_is_no_trace_or_spectrum():
    with pytest.raises(TypeError, match="trace: expected a Trace"):
        fm.diagnose([1.0])
    for spectrum in ("x", (2.0, 1.0), -1.0):
        with pytest.raises((TypeError, ValueError), match="spectrum"):
            fm.diagnose(fm.Trace(), spectrum)
    assert str(fm.diagnose(fm.Trace())) == "nothing found"
