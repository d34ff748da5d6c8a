"""Resets of an optimiser or of a part of it, and restart schemes, against loops by hand."""

import numpy as np
import pytest

import fastmomentum as fm
from tests.helpers.arrays import arrays_of, gradients_of
from tests.helpers.ids import text_or_none
from tests.helpers.reference import BACKENDS, RULES, assert_all_same_bits, assert_same_bits

CURVATURES = np.geomspace(0.01, 1.0, 8)
START = np.linspace(1.0, 2.0, 8)


def gradient(p):
    return CURVATURES * p


def objective(p):
    return float(0.5 * (CURVATURES * p * p).sum())


def by_hand(steps, momentum, restarts, lr=0.9):
    """Return the points and the restarts of Nesterov's method, with momentum by the steps since the last restart."""
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


def restarted_run(p, restart, **settings):
    settings = {"lr": 0.9, "momentum": MOMENTUM, "lookahead": True, **settings}
    return fm.Momentum(p, restart=restart, **settings)


def advance(opt):
    if opt.restart == "function":
        opt.report(objective(opt.params))
    opt.step(gradient(opt.point))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("restart", ["gradient", "function", 25, 1])
def test_restart_schemes_have_the_bits_of_a_loop_by_hand(restart, backend):
    p = START.copy()
    opt = restarted_run(p, restart, backend=backend)
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
    """Check what O'Donoghue and Candès show: without restarts the objective ripples, and falls as 1/k²."""
    (ours, theirs) = (by_hand(400, MOMENTUM, scheme)[0][-1] for scheme in (restart, None))
    p = START.copy()
    opt = restarted_run(p, restart)
    for _ in range(400):
        advance(opt)
    assert_same_bits(p, ours)
    assert objective(p) < 1e-6 * objective(theirs)


@pytest.mark.parametrize("restart", ["gradient", "function", 7])
def test_restart_schemes_continue_when_resumed_at_any_step(restart, tmp_path):
    expected, steps = by_hand(60, MOMENTUM, restart, lr=0.9)
    assert steps
    p = START.copy()
    opt = restarted_run(p, restart)
    for step in range(60):
        advance(opt)
        opt.save(tmp_path / "run.npz")
        opt = fm.Momentum.load(tmp_path / "run.npz", p)
        assert_same_bits(p, expected[step])
    assert [reset.step for reset in opt.resets] == steps


def test_resets_record_the_scheme():
    reasons = {}
    for restart in ("gradient", "function", 25):
        opt = restarted_run(START.copy(), restart)
        while not opt.resets:
            advance(opt)
        reasons[restart] = opt.resets[0].reason
    assert reasons["gradient"] == "gradient scheme: the update went up the gradient"
    assert reasons["function"].startswith("function scheme: the objective rose from ")
    assert reasons[25] == "every 25 steps"


def test_schedule_restarts_reset_the_velocity_when_a_period_begins():
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


def test_schedules_know_where_their_periods_begin():
    s = fm.schedules
    warm = s.WarmRestarts(1.0, 0.0, period=2, growth=2)
    assert [t for t in range(40) if warm.begins(t)] == [2, 6, 14, 30]
    assert [t for t in range(12) if s.WarmRestarts(1.0, 0.0, period=4).begins(t)] == [4, 8]
    assert [t for t in range(20) if warm.warmup(3).begins(t)] == [5, 9, 17]
    assert [t for t in range(20) if warm.then(s.Constant(1.0), after=6).begins(t)] == [2]
    assert not any(s.Cosine(1.0, 0.0, steps=5).begins(t) for t in range(20))


def test_reset_restarts_functions_of_the_step():
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


def test_skipped_steps_do_not_restart():
    opt = fm.Momentum(np.ones(2), lr=0.1, restart=2, skip_nonfinite=True)
    for grad in (1.0, np.nan, np.nan, 1.0, np.nan):
        opt.step(np.full(2, grad))
    assert (opt.steps, opt.skipped, opt.resets) == (2, 3, [(2, "every 2 steps", "all")])


def test_restart_attribute_is_the_scheme():
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
def test_unknown_restart_scheme_is_refused(settings, error, message):
    with pytest.raises(error, match=message):
        fm.Momentum(np.ones(2), lr=0.1, **settings)


def test_restart_is_refused_in_a_group():
    with pytest.raises(TypeError, match="expected no restart, as all groups share it"):
        fm.Momentum([{"params": np.ones(2), "restart": 3}], lr=0.1)


@pytest.mark.parametrize("value", [np.nan, np.inf, "1", None])
def test_report_refuses_what_is_no_finite_number(value):
    opt = fm.Momentum(np.ones(2), lr=0.1, restart="function")
    with pytest.raises((TypeError, ValueError), match="value: expected a finite number"):
        opt.report(value)


def test_report_is_refused_for_other_schemes():
    opt = fm.Momentum(np.ones(2), lr=0.1, restart="gradient")
    with pytest.raises(ValueError, match="restart: expected 'function'"):
        opt.report(1.0)


def test_lr_is_refused_when_the_scheme_would_lose_its_schedule():
    lr = fm.schedules.WarmRestarts(0.5, 0.1, period=3)
    opt = fm.Momentum(np.ones(2), lr=lr, restart="schedule")
    opt.step(np.ones(2))
    with pytest.raises(ValueError, match="restart: expected an lr or momentum of fastmomentum.schedules"):
        opt.lr = 0.5
    assert opt.lr == lr(1)
    opt.step(np.ones(2))
    assert opt.steps == 2


def test_restart_schemes_ignore_zero_steps_and_equal_objectives():
    flat = fm.Momentum(np.ones(2), lr=0.1, restart="gradient")
    for grad in (np.zeros(2), None, np.zeros(2)):
        flat.step(grad)
    level = fm.Momentum(np.ones(2), lr=0.1, restart="function")
    assert [level.report(value) for value in (2.0, 1.0, 1.0, 1.5)] == [False, False, False, True]
    assert (flat.resets, len(level.resets)) == ([], 1)


# Resets of a group, an array or some rows.

SHAPES = ((5, 3), (4,), (2, 2))


def grouped_run(**settings):
    params = arrays_of(SHAPES)
    groups = [{"params": params[:1]}, {"params": params[1:], "lr": 0.03}]
    return fm.Momentum(groups, lr=0.1, **settings), params


def velocities(opt):
    return [v.copy() for v in opt.velocity]


@pytest.mark.parametrize("backend", BACKENDS)
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
    ids=text_or_none,
)
def test_reset_changes_its_scope_and_nothing_else(where, rested, said, backend):
    opt, params = grouped_run(backend=backend)
    for grads in gradients_of(SHAPES, 3):
        opt.step(grads)
    expected = velocities(opt)
    for i, rows in rested.items():
        expected[i][rows] = 0.0
    before = [p.copy() for p in params]
    opt.reset("a test", **where)
    assert_all_same_bits(opt.velocity, expected)
    assert_all_same_bits(params, before)
    assert opt.resets == [(3, "a test", said)]
    (grads,) = gradients_of(SHAPES, 1, seed=9)
    opt.step(grads)
    for p, v, g, old, lr in zip(params, expected, grads, before, (0.1, 0.03, 0.03), strict=True):
        assert_same_bits(p, old - lr * (0.9 * v + g))


def test_reset_makes_the_next_step_of_its_scope_a_first_step():
    """Check that the first step after a reset has no dampening, as in torch."""
    opt, _ = grouped_run(dampening=0.5)
    for grads in gradients_of(SHAPES, 2):
        opt.step(grads)
    before = velocities(opt)
    opt.reset("array 1 is new", array=1)
    opt.reset("so is row 2", array=0, rows=2)
    (grads,) = gradients_of(SHAPES, 1, seed=9)
    opt.step(grads)
    before[0][2] = 0.0
    assert_same_bits(opt.velocity[0], 0.9 * before[0] + 0.5 * grads[0])
    assert_same_bits(opt.velocity[1], grads[1])
    assert_same_bits(opt.velocity[2], 0.9 * before[2] + 0.5 * grads[2])


def test_reset_of_all_rows_is_a_reset_of_the_array():
    opt, _ = grouped_run(dampening=0.5)
    grads, again = gradients_of(SHAPES, 2)
    opt.step(grads)
    opt.reset("all of it", array=1, rows=(0, 4))
    opt.step(again)
    assert_same_bits(opt.velocity[1], again[1])


@pytest.mark.parametrize(
    ("settings", "attribute"),
    [({"rule": "heavy_ball"}, "state"), ({"lookahead": True}, "point")],
    ids=["state", "point"],
)
def test_reset_of_rows_copies_the_parameter_to_positions_of_these_rows_alone(settings, attribute):
    opt, params = grouped_run(**settings)
    for grads in gradients_of(SHAPES, 3):
        opt.step(grads)
    before = [array.copy() for array in getattr(opt, attribute)]
    opt.reset("new rows", array=0, rows=(1, 3))
    before[0][1:3] = params[0][1:3]
    assert_all_same_bits(getattr(opt, attribute), before)
    assert (before[0][:1] != params[0][:1]).all()


def test_reset_of_rows_needs_no_array_number_for_one_array():
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
def test_reset_refuses_a_scope_that_does_not_exist(where, error, message):
    opt, _ = grouped_run()
    opt.step(gradients_of(SHAPES, 1)[0])
    before = velocities(opt)
    with pytest.raises(error, match=message):
        opt.reset("a test", **where)
    assert_all_same_bits(opt.velocity, before)
    assert opt.resets == []


def test_reset_of_rows_is_refused_for_a_zero_dimensional_array():
    opt = fm.Momentum(np.array(1.0), lr=0.1)
    with pytest.raises(ValueError, match="has a first axis"):
        opt.reset("a test", rows=0)
    opt.step(np.array(2.0))
    opt.reset("all of it")
    assert opt.velocity == 0.0


def test_reset_scopes_are_saved(tmp_path):
    opt, params = grouped_run()
    opt.step(gradients_of(SHAPES, 1)[0])
    opt.reset("new rows", array=0, rows=(1, 3))
    opt.reset("a new layer", group=1)
    opt.save(tmp_path / "run.npz")
    again = fm.Momentum.load(tmp_path / "run.npz", params)
    assert again.resets == [(1, "new rows", "array 0, rows 1:3"), (1, "a new layer", "group 1")]
    assert again.resets[1].scope == "group 1"


def test_reset_keeps_its_reason_as_a_plain_str():
    opt, _ = grouped_run()
    opt.reset(np.str_("a word of an array"))
    opt.load_state_dict(opt.state_dict())
    assert opt.resets[0].reason == "a word of an array"


@pytest.mark.parametrize("rule", RULES)
def test_reset_gives_the_run_of_a_new_optimiser(rule):
    params = arrays_of(SHAPES)
    opt = fm.Momentum(params, rule=rule, lr=0.1, **({"dampening": 0.5} if rule == "pytorch" else {}))
    grads = gradients_of(SHAPES, 5)
    for g in grads[:3]:
        opt.step(g)
    fresh = [p.copy() for p in params]
    other = fm.Momentum(fresh, rule=rule, lr=0.1, **({"dampening": 0.5} if rule == "pytorch" else {}))
    opt.reset("the test says so")
    assert_all_same_bits([s for s in opt.state if s is not None], [s for s in other.state if s is not None])
    for g in grads[3:]:
        opt.step(g)
        other.step(g)
    assert_all_same_bits(params, fresh)
    assert opt.steps == 5
    assert opt.resets == [(3, "the test says so", "all")]
    assert opt.resets[0].reason == "the test says so"


@pytest.mark.parametrize(("reason", "error"), [("", ValueError), ("  ", ValueError), (None, TypeError), (3, TypeError)])
def test_reset_refuses_a_missing_reason(reason, error):
    opt = fm.Momentum(np.zeros(3), lr=0.1)
    opt.step(np.ones(3))
    with pytest.raises(error, match="reason"):
        opt.reset(reason)
    assert opt.velocity.any()
