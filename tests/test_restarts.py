"""Restart schemes, each against a loop by hand, resets on the record, and runs taken up again at every step."""

import numpy as np
import pytest
from oracles import assert_same_bits

import fastmomentum as fm

CURVATURES = np.geomspace(0.01, 1.0, 8)
START = np.linspace(1.0, 2.0, 8)


def gradient(p):
    return CURVATURES * p


def objective(p):
    return float(0.5 * (CURVATURES * p * p).sum())


def by_hand(steps, momentum, restarts, lr=0.9):
    """Nesterov's method with a look-ahead; momentum of the updates since the last restart; (points, restarts)."""
    p, v, since, path, found, before = START.copy(), np.zeros(8), 0, [], [], None
    for step in range(steps):
        value = objective(p)
        if restarts == "function" and before is not None and value > before:
            v, since = np.zeros(8), 0
            found.append(step)
        before = value
        g = gradient(p - lr * momentum(since) * v)
        v = momentum(since) * v + g
        p = p - lr * v
        since += 1
        path.append(p)
        if restarts == "gradient" and (g * v).sum() < 0.0:  # the displacement is −lr·v
            v, since = np.zeros(8), 0
            found.append(step + 1)
        if isinstance(restarts, int) and since == restarts:
            v, since = np.zeros(8), 0
            found.append(step + 1)
    return np.array(path), found


MOMENTUM = fm.schedules.Constant(0.0).then(fm.schedules.NesterovSimple(), after=1)


def made(p, restart, **settings):
    settings = {"lr": 0.9, "momentum": MOMENTUM, "lookahead": True, **settings}
    return fm.Momentum(p, restart=restart, **settings)


def advance(opt):
    if opt.restart == "function":
        opt.report(objective(opt.params))
    opt.step(gradient(opt.point))


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
@pytest.mark.parametrize("restart", ["gradient", "function", 25, 1])
def test_a_scheme_is_what_it_is_by_hand(restart, backend):
    p = START.copy()
    opt = made(p, restart, backend=backend)
    path = []
    for _ in range(200):
        advance(opt)
        path.append(p.copy())
    expected, steps = by_hand(200, MOMENTUM, restart)
    assert_same_bits(np.array(path), expected)
    assert [reset.step for reset in opt.resets] == steps
    assert len(steps) >= 3
    assert {reset.scope for reset in opt.resets} == {"all"}


@pytest.mark.parametrize("restart", ["gradient", "function"])
def test_restarts_make_a_strongly_convex_problem_fast(restart):
    """O'Donoghue and Candès's point: the sequence for convex functions alone ripples, and falls as 1/k²."""
    (ours, theirs) = (by_hand(400, MOMENTUM, scheme)[0][-1] for scheme in (restart, None))
    p = START.copy()
    opt = made(p, restart)
    for _ in range(400):
        advance(opt)
    assert_same_bits(p, ours)
    assert objective(p) < 1e-6 * objective(theirs)


@pytest.mark.parametrize("restart", ["gradient", "function", 7])
def test_a_run_taken_up_again_at_any_step_goes_on(restart, tmp_path):
    expected, steps = by_hand(60, MOMENTUM, restart, lr=0.9)
    assert steps
    p = START.copy()
    opt = made(p, restart)
    for step in range(60):
        advance(opt)
        opt.save(tmp_path / "run.npz")
        opt = fm.Momentum.load(tmp_path / "run.npz", p)
        assert_same_bits(p, expected[step])
    assert [reset.step for reset in opt.resets] == steps


def test_the_record_says_which_scheme_it_was():
    reasons = {}
    for restart in ("gradient", "function", 25):
        opt = made(START.copy(), restart)
        while not opt.resets:
            advance(opt)
        reasons[restart] = opt.resets[0].reason
    assert reasons["gradient"] == "gradient scheme: the update went up the gradient"
    assert reasons["function"].startswith("function scheme: the objective rose from ")
    assert reasons[25] == "every 25 steps"


def test_warm_restarts_rest_the_velocity_where_a_period_begins():
    lr = fm.schedules.WarmRestarts(0.5, 0.1, period=3, growth=2).warmup(4, start=0.1)
    p, hand, v = START.copy(), START.copy(), np.zeros(8)
    opt = fm.Momentum(p, lr=lr, momentum=0.9, restart="schedule")
    for step in range(40):
        opt.step(gradient(p))
        v = 0.9 * v + gradient(hand)
        hand = hand - lr(step) * v
        if step + 1 in (4 + 3, 4 + 9, 4 + 21):
            v = np.zeros(8)
    assert_same_bits(p, hand)
    assert opt.resets == [(step, "lr begins a new period", "all") for step in (7, 13, 25)]


def test_where_periods_begin():
    s = fm.schedules
    warm = s.WarmRestarts(1.0, 0.0, period=2, growth=2)
    assert [t for t in range(40) if warm.begins(t)] == [2, 6, 14, 30]
    assert [t for t in range(12) if s.WarmRestarts(1.0, 0.0, period=4).begins(t)] == [4, 8]
    assert [t for t in range(20) if warm.warmup(3).begins(t)] == [5, 9, 17]
    assert [t for t in range(20) if warm.then(s.Constant(1.0), after=6).begins(t)] == [2]
    assert not any(s.Cosine(1.0, 0.0, steps=5).begins(t) for t in range(20))


def test_functions_of_the_step_begin_anew_with_a_reset_by_hand_too():
    asked = []

    def momentum(step):
        asked.append(step)
        return 0.5

    opt = fm.Momentum(np.ones(2), lr=0.1, momentum=momentum, restart=100)
    for _ in range(3):
        opt.step(np.ones(2))
    opt.reset("the data changed")
    asked.clear()
    opt.step(np.ones(2))
    assert set(asked) == {0}
    opt.reset("a row", rows=0)
    asked.clear()
    opt.step(np.ones(2))
    assert set(asked) == {1}


def test_a_step_that_is_left_out_restarts_nothing():
    opt = fm.Momentum(np.ones(2), lr=0.1, restart=2, skip_nonfinite=True)
    for grad in (1.0, np.nan, np.nan, 1.0, np.nan):
        opt.step(np.full(2, grad))
    assert (opt.steps, opt.skipped, opt.resets) == (2, 3, [(2, "every 2 steps", "all")])


def test_the_scheme_can_be_read():
    assert fm.Momentum(np.ones(2), lr=0.1).restart is None
    assert fm.Momentum(np.ones(2), lr=0.1, restart=3).restart == 3


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"restart": "warm"}, ValueError, "restart: expected 'gradient', 'function', 'schedule', a number of steps"),
        ({"restart": 0}, ValueError, "restart: expected a whole number from 1"),
        ({"restart": True}, TypeError, "restart: expected a whole number"),
        ({"restart": 2.0}, TypeError, "restart: expected a whole number"),
        ({"restart": "schedule"}, ValueError, "restart: expected an lr or momentum of fastmomentum.schedules"),
    ],
)
def test_what_is_no_scheme_is_refused(settings, error, message):
    with pytest.raises(error, match=message):
        fm.Momentum(np.ones(2), lr=0.1, **settings)


def test_a_scheme_is_of_the_whole():
    with pytest.raises(TypeError, match="restart is expected of the optimiser as a whole"):
        fm.Momentum([{"params": np.ones(2), "restart": 3}], lr=0.1)


@pytest.mark.parametrize("value", [np.nan, np.inf, "1", None])
def test_a_value_that_is_no_number_is_refused(value):
    opt = fm.Momentum(np.ones(2), lr=0.1, restart="function")
    with pytest.raises((TypeError, ValueError), match="value: expected a finite number"):
        opt.report(value)


def test_values_are_reported_to_the_function_scheme_alone():
    opt = fm.Momentum(np.ones(2), lr=0.1, restart="gradient")
    with pytest.raises(ValueError, match="restart: expected 'function'"):
        opt.report(1.0)


def test_a_rate_that_takes_the_scheme_its_schedule_is_refused_and_nothing_is_changed():
    lr = fm.schedules.WarmRestarts(0.5, 0.1, period=3)
    opt = fm.Momentum(np.ones(2), lr=lr, restart="schedule")
    opt.step(np.ones(2))
    with pytest.raises(ValueError, match="restart: expected an lr or momentum of fastmomentum.schedules"):
        opt.lr = 0.5
    assert opt.lr == lr(1)
    opt.step(np.ones(2))
    assert opt.steps == 2


def test_neither_a_level_step_nor_a_level_objective_restarts():
    flat = fm.Momentum(np.ones(2), lr=0.1, restart="gradient")
    for grad in (np.zeros(2), None, np.zeros(2)):
        flat.step(grad)
    level = fm.Momentum(np.ones(2), lr=0.1, restart="function")
    assert [level.report(value) for value in (2.0, 1.0, 1.0, 1.5)] == [False, False, False, True]
    assert (flat.resets, len(level.resets)) == ([], 1)
