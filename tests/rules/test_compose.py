"""Parts that are composed with a rule: correction for a changing lr, look-ahead.

With correct=True every rule takes the path of its pytorch form, with the same bits if all numbers are dyadic.
"""

import numpy as np
import pytest

import fastmomentum as fm
from fastmomentum.rules.compose import slots_scaled_by_lr
from tests.helpers.arrays import gradients, random_arrays
from tests.helpers.functions import annealed, falling, halving
from tests.helpers.ids import label
from tests.helpers.quadratics import CURVATURES as H
from tests.helpers.quadratics import START
from tests.helpers.reference import (
    BACKENDS,
    DTYPES,
    LOOKAHEADS,
    RULES,
    assert_same_bits,
)

CARRYING = {
    "classical": "pytorch",
    "classical_nesterov": "pytorch_nesterov",
    "heavy_ball": "pytorch",
    "nesterov_positions": "pytorch_nesterov",
}
STEPS = 9


def path(rule, lr, grads, assign=None, **settings):
    p = np.ones_like(grads[0])
    opt = fm.Momentum(p, rule=rule, lr=lr, momentum=0.5, **settings)
    found = []
    for step, grad in enumerate(grads):
        if assign:
            opt.lr = assign(step)
        opt.step(grad)
        found.append(p.copy())
    return np.array(found)


def test_carried_slots_finds_the_slots_that_are_scaled_by_lr():
    found = {name: slots_scaled_by_lr(fm.rules.find(name)) for name in RULES}
    expected = dict.fromkeys(RULES, ())
    expected |= dict.fromkeys(("classical", "classical_nesterov"), ("velocity",))
    expected |= dict.fromkeys(("heavy_ball", "nesterov_positions"), ("previous",))
    assert found == expected
    for name in ("ema_corrected", "quasi_hyperbolic", "aggmo", "signum", "lion"):
        assert slots_scaled_by_lr(fm.rules.find(name)) == ()
    assert slots_scaled_by_lr(fm.averaged("classical", 0.9)) == ("velocity",)
    assert slots_scaled_by_lr(fm.averaged(fm.chain(fm.stages.weight_decay(0.1), "heavy_ball"))) == ("previous",)


def two_velocities(p, v, w, g, lr, mu, beta):
    v = mu * v + lr * g
    w = beta * w + lr * g
    return p - v - w, v, w


def test_carried_slots_finds_the_slots_of_a_users_rule():
    rule = fm.Rule(two_velocities, state=(("fast", "zero"), ("slow", "zero")), hyper=("lr", "momentum", "beta"))
    assert slots_scaled_by_lr(rule) == ("fast", "slow")
    grads = gradients(4, STEPS, kind="dyadic")

    def by_hand():
        p, v, w = np.ones(4), np.zeros(4), np.zeros(4)
        for step, g in enumerate(grads):
            v, w = 0.5 * v + g, 0.25 * w + g
            p = p - halving(step) * v - halving(step) * w
            yield p

    assert_same_bits(path(rule, halving, grads, correct=True, beta=0.25), np.array(list(by_hand())))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("how", ["schedule", "assignment"])
@pytest.mark.parametrize("rule", CARRYING)
def test_correct_gives_the_path_of_the_pytorch_form(rule, how, dtype, backend):
    grads = gradients(7, STEPS, dtype, kind="dyadic")
    changes = {"lr": halving} if how == "schedule" else {"lr": 1.0, "assign": halving}
    expected = path(CARRYING[rule], grads=grads, **changes)
    assert_same_bits(path(rule, grads=grads, correct=True, backend=backend, **changes), expected)
    assert (path(rule, grads=grads, backend=backend, **changes)[3:] != expected[3:]).any()


def test_velocity_keeps_the_old_lr_without_correct():
    p = np.zeros(1)
    opt = fm.Momentum(p, rule="classical", lr=1.0, momentum=0.5)
    opt.step(np.array([1.0]))
    opt.lr = 0.25
    opt.step(np.array([0.0]))
    assert p == -1.0 - 0.5


@pytest.mark.parametrize("dtype", DTYPES)
def test_correct_rescales_the_lookahead_point(dtype):
    grads = gradients(5, STEPS, dtype, kind="dyadic")
    points = {}
    for rule in ("classical", "pytorch"):
        p = np.ones(5, dtype)
        opt = fm.Momentum(p, rule=rule, lr=halving, momentum=0.5, lookahead=True, correct=True)
        points[rule] = [(opt.step(grad), opt.point.copy(), p.copy())[1:] for grad in grads]
        opt.lr = 0.5
        points[rule].append((opt.point.copy(), p.copy()))
    assert_same_bits(np.array(points["classical"]), np.array(points["pytorch"]))


@pytest.mark.parametrize("how", ["schedule", "assignment"])
@pytest.mark.parametrize("rule", ["classical", "heavy_ball"])
def test_correct_rescales_arrays_without_gradient(rule, how):
    grads = gradients((3, 4), STEPS, kind="dyadic")
    idle = [(step % 4 == 1, step % 3 == 2, step in (2, 3, 4)) for step in range(STEPS)]
    paths = {}
    for form in (rule, "pytorch"):
        params = [np.ones(4) for _ in range(3)]
        lr = halving if how == "schedule" else 1.0
        opt = fm.Momentum(params, rule=form, lr=lr, momentum=0.5, correct=True)
        paths[form] = []
        for step, grad in enumerate(grads):
            if how == "assignment":
                opt.lr = halving(step)
            opt.step([None if off else g for off, g in zip(idle[step], grad, strict=True)])
            paths[form].append(np.array(params))
    assert_same_bits(np.array(paths[rule]), np.array(paths["pytorch"]))


def test_correct_keeps_the_velocity_at_lr_times_that_of_the_pytorch_form():
    """Check ½h(p − 1)² with a schedule whose ratios are not exact, so that the paths agree to rounding."""
    h, lr = np.geomspace(0.1, 1.0, 6), fm.schedules.Cosine(1.0, 0.01, steps=200)
    settings = {"lr": lr, "momentum": fm.schedules.Linear(0.5, 0.9, steps=100), "correct": True}
    runs = {rule: fm.Momentum(np.zeros(6), rule=rule, **settings) for rule in ("classical", "pytorch")}
    worst = 0.0
    for _ in range(200):
        for opt in runs.values():
            opt.step(h * (opt.params - 1.0))
        expected = runs["pytorch"].lr * runs["pytorch"].velocity
        worst = max(worst, np.abs(runs["classical"].velocity - expected).max())
    # Each step rounds v three times more, |v| ≤ 1, and what an error does later dies out within some 1/(1 − μ) = 10.
    assert worst <= 3 * 10 * np.finfo(float).eps
    assert np.abs(runs["classical"].params - runs["pytorch"].params).max() <= 300 * np.finfo(float).eps


@pytest.mark.parametrize("rule", CARRYING)
def test_correct_changes_no_bits_when_lr_is_constant(rule):
    grads = gradients(9, 5, np.float32)
    assert_same_bits(path(rule, 0.1, grads, correct=True), path(rule, 0.1, grads))


def test_correct_may_differ_between_groups():
    grads = gradients((2, 4), STEPS, kind="dyadic")
    params = [np.ones(4), np.ones(4)]
    groups = [{"params": params[:1], "correct": True}, {"params": params[1:]}]
    opt = fm.Momentum(groups, rule="classical", lr=halving, momentum=0.5)
    for grad in grads:
        opt.step(list(grad))
    for p, correct, mine in zip(params, (True, False), grads.swapaxes(0, 1), strict=True):
        assert_same_bits(p, path("classical", halving, mine, correct=correct)[-1])


@pytest.mark.parametrize("stop", range(1, STEPS))
@pytest.mark.parametrize("rule", ["classical", "heavy_ball"])
def test_correct_continues_when_a_run_is_resumed(rule, stop, tmp_path):
    lr = fm.schedules.Cosine(1.0, 0.1, steps=STEPS)
    grads = gradients(9, STEPS)
    whole = path(rule, lr, grads, correct=True)
    p = np.ones(9)
    opt = fm.Momentum(p, rule=rule, lr=lr, momentum=0.5, correct=True)
    for grad in grads[:stop]:
        opt.step(grad)
    opt.save(tmp_path / "run.npz")
    again = fm.Momentum.load(tmp_path / "run.npz", p)
    for grad in grads[stop:]:
        again.step(grad)
    assert_same_bits(p, whole[-1])


def test_refused_step_does_not_rescale_arrays_without_gradient():
    grads = gradients((2, 4), STEPS, kind="dyadic")
    params = [np.ones(4), np.ones(4)]
    opt = fm.Momentum(params, rule="classical", lr=halving, momentum=0.5, correct=True)
    for grad in grads[:2]:
        opt.step(list(grad))
    before = np.array(opt.velocity)
    with pytest.raises(TypeError, match="grads"):
        opt.step([None, grads[2][1].astype(np.float32)])
    assert_same_bits(np.array(opt.velocity), before)
    opt.step([None, grads[2][1]])  # after it lr has halved
    assert_same_bits(opt.velocity[0], before[0] / 2)


def lr_squared(p, v, g, lr, mu):
    v = mu * v + g
    return p - lr * lr * v, v


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"rule": fm.Rule(lr_squared), "lr": 0.1}, ValueError, "correct: expected a rule whose displacement"),
        (
            {"rule": fm.chain("heavy_ball", fm.stages.soft_threshold(0.1)), "lr": 0.1},
            ValueError,
            "correct: expected no proximal map",
        ),
        (
            {"rule": fm.averaged(fm.chain("heavy_ball", fm.stages.soft_threshold(0.1))), "lr": 0.1},
            ValueError,
            "correct: expected no proximal map",
        ),
        ({"rule": "classical", "lr": 0.1, "correct": 1}, TypeError, "correct: expected True or False"),
        (
            {"rule": "classical_nesterov", "lr": 0.1, "lr_next": 0.1},
            ValueError,
            "lr_next: expected no value with correct=True",
        ),
    ],
    ids=label,
)
def test_correct_refuses_rules_and_rates_that_it_cannot_rescale(settings, error, message):
    with pytest.raises(error, match=message):
        fm.Momentum(np.ones(3), **{"correct": True, **settings})


@pytest.mark.parametrize("rule", ["classical", "heavy_ball"])
def test_correct_starts_from_rest_where_lr_is_zero(rule):
    """Check a warm-up from 0 and an annealing to 0, after which the state is at rest, against runs that start there."""
    for rates in ((0.0, 0.25, 0.5, 0.5), (0.5, 0.25, 0.0, 0.5, 0.25)):
        p = np.ones(3)
        opt = fm.Momentum(p, rule=rule, lr=rates.__getitem__, momentum=0.5, correct=True)
        fresh = None
        for step, lr in enumerate(rates):
            if lr == 0.0 or fresh is None:
                q = p.copy()
                fresh = fm.Momentum(q, rule=rule, lr=rates[step:].__getitem__, momentum=0.5, correct=True)
            g = np.array([1.0, -0.5, 2.0]) + step
            opt.step(g)
            fresh.step(g)
            assert_same_bits(p, q)


def test_correct_needs_no_rate_after_the_last_step():
    """Check that a table of four rates, and an annealing to 0 in four steps, serve four steps."""
    for lr in ((0.4, 0.3, 0.2, 0.1).__getitem__, fm.schedules.Cosine(0.1, 0.0, steps=4)):
        p, q = np.ones(3), np.ones(3)
        opt = fm.Momentum(p, rule="classical", lr=lr, momentum=0.5, correct=True)
        plain = fm.Momentum(q, rule="pytorch", lr=lr, momentum=0.5)
        for step in range(4):
            opt.step(np.full(3, 1.0 + step))
            plain.step(np.full(3, 1.0 + step))
        np.testing.assert_allclose(p, q, rtol=1e-15)
        assert "steps=4" in repr(opt)
        assert opt.state_dict()["steps"] == 4


def test_correct_refuses_a_ratio_that_the_dtype_cannot_hold():
    p, message = np.ones(3, np.float32), "carry: expected a number that float32 can hold; got 1.*e-60"
    opt = fm.Momentum(p, rule="classical", lr=1e30, correct=True)
    opt.step(np.ones(3, np.float32))
    with pytest.raises(ValueError, match=message):
        opt.lr = 1e-30
    opt.lr = lambda step: 1e30 if step < 3 else 1e-30
    opt.step(np.ones(3, np.float32))
    before = opt.velocity.copy()
    with pytest.raises(ValueError, match=message):
        opt.step(np.ones(3, np.float32))
    assert (opt.lr, opt.steps) == (1e30, 2)
    assert_same_bits(opt.velocity, before)


def test_correct_rescales_an_average_of_a_chain():
    rules = [fm.averaged(fm.chain(fm.stages.weight_decay(0.125), rule)) for rule in ("classical", "pytorch")]
    paths = [path(rule, halving, gradients(4, STEPS, kind="dyadic"), correct=True) for rule in rules]
    np.testing.assert_allclose(*paths, rtol=1e-14)


def test_step_refuses_correct():
    with pytest.raises(TypeError, match="correct: expected for Momentum alone"):
        fm.step(np.ones(2), np.zeros(2), np.ones(2), rule="classical", lr=0.1, correct=True)


def test_device_scalars_are_found_in_all_parts_of_a_rule():
    from fastmomentum.backends.cuda.scalars import derived_from

    chain = fm.chain(fm.stages.clip_value(0.5), "pytorch", fm.stages.decoupled_weight_decay(0.1))
    rule = fm.chain(fm.stages.weight_decay(0.1), fm.averaged(chain, 0.9))
    assert len(rule.hyper) == sum(len(link.hyper) for link in rule.links)
    found = [rule.hyper[column.column] for column in derived_from(rule, {"lr"})]
    assert found == ["lr", "shrink"]


# The explicit look-ahead, and momentum_next under a schedule.


def walk(opt, point, steps=80):
    path = []
    for _ in range(steps):
        path.append(point(opt).copy())
        opt.step(H * point(opt))
    return np.array(path)


@pytest.mark.parametrize(
    ("rule", "lr"),
    [(rule, 0.05) for rule in LOOKAHEADS] + [("classical", falling)],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_nesterov_follows_the_lookahead_points_under_a_schedule(rule, lr):
    """Check agreement to 1e-12 with the next step's momentum, and disagreement without momentum_next.

    The lr of the scaled forms is constant, as their folded form contains it.
    """
    settings = {"rule": rule, "lr": lr, "momentum": annealed}
    explicit = walk(fm.Momentum(START.copy(), lookahead=True, **settings), lambda opt: opt.point)
    settings["momentum_next"] = lambda step: annealed(step + 1)
    folded = walk(fm.Momentum(START.copy(), nesterov=True, **settings), lambda opt: opt.params)
    assert abs(explicit - folded).max() < 1e-12
    p, v, path = START.copy(), np.zeros(3), []
    for step in range(80):
        path.append(p.copy())
        value = lr(step) if callable(lr) else lr
        fm.step(p, v, H * p, rule=rule, nesterov=True, lr=value, momentum=annealed(step))
    assert abs(explicit - np.array(path)).max() > 0.01


def look_ahead_by_hand(rule, p, v, y, g, cast, lr, mu, lr_next, mu_next, weight_decay=0.0):
    if weight_decay:
        g = g + cast(weight_decay) * y
    lr, lr_next, keep, mu, mu_next = (cast(x) for x in (lr, lr_next, 1 - mu if rule == "ema" else 1.0, mu, mu_next))
    if rule == "classical":
        v = mu * v + lr * g
        p = p - v
        return p, v, p - mu_next * v
    v = mu * v + keep * g
    p = p - lr * v
    return p, v, p - lr_next * mu_next * v


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("rule", LOOKAHEADS)
def test_look_ahead_has_the_bits_of_numpy(rule, weight_decay, dtype, backend):
    (p,) = random_arrays((3, 43), 1, dtype, seed=1)
    q, v, y = p.copy(), np.zeros_like(p), p.copy()
    settings = {"rule": rule, "lookahead": True, "weight_decay": weight_decay, "backend": backend}
    opt = fm.Momentum(p, lr=falling, momentum=annealed, **settings)
    assert_same_bits(opt.point, q)
    for t, g in enumerate(gradients(p.shape, 5, dtype)):
        opt.step(g)
        both = falling(t), annealed(t), falling(t + 1), annealed(t + 1)
        q, v, y = look_ahead_by_hand(rule, q, v, y, g, dtype, *both, weight_decay)
        for found, expected in ((p, q), (opt.velocity, v), (opt.state, v), (opt.point, y)):
            assert_same_bits(found, expected)


@pytest.mark.parametrize("rule", LOOKAHEADS)
def test_assigning_lr_or_momentum_moves_the_point(rule):
    p = START.copy()
    opt = fm.Momentum([p, START.copy()], rule=rule, lr=0.1, momentum=0.5, lookahead=True)
    opt.step([H, None])
    for lr, mu in ((0.1, 0.9), (0.2, 0.9), (falling, 0.9), (falling, annealed), (0.3, 0.25)):
        opt.lr, opt.momentum = lr, mu
        a, b = opt.lr, opt.momentum
        ahead = b * opt.velocity[0] if rule == "classical" else a * b * opt.velocity[0]
        assert_same_bits(opt.point[0], p - ahead)
        assert_same_bits(opt.point[1], START)


def test_the_point_of_an_array_without_gradient_follows_the_schedule():
    params = [START.copy(), START.copy()]
    opt = fm.Momentum(params, rule="classical", lr=0.1, momentum=annealed, lookahead=True)
    opt.step([H, H])
    opt.step([H, None])
    assert_same_bits(opt.point[1], params[1] - annealed(2) * opt.velocity[1])


def test_the_point_is_the_parameter_without_look_ahead_and_at_rest():
    p = START.copy()
    plain = fm.Momentum(p, lr=0.1)
    plain.step(H)
    assert plain.point is p
    opt = fm.Momentum(p, lr=0.1, lookahead=True)
    opt.step(H)
    assert (opt.point != p).all()
    opt.reset("to see the point come back")
    assert_same_bits(opt.point, p)
    assert opt.point is not p


def test_look_ahead_composes_with_chains_and_options():
    q, v, y = START.copy(), np.zeros(3), START.copy()
    p = START.copy()
    rule = fm.chain(fm.stages.scale(0.5), "classical")
    opt = fm.Momentum(p, rule=rule, lr=0.1, momentum=0.5, lookahead=True, maximize=True, decoupled_weight_decay=0.5)
    for _ in range(4):
        g = 0.5 * -(H * opt.point)
        opt.step(H * opt.point)
        q, v, y = look_ahead_by_hand("classical", q * (1 - 0.1 * 0.5), v, y, g, float, 0.1, 0.5, 0.1, 0.5)
        for found, expected in ((p, q), (opt.velocity, v), (opt.point, y)):
            assert_same_bits(found, expected)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"nesterov": True}, "lookahead=True: expected nesterov=False"),
        ({"rule": "sgd"}, "no look-ahead form"),
        ({"rule": "heavy_ball"}, "no look-ahead form"),
        ({"rule": "pytorch_nesterov"}, "no look-ahead form"),
        ({"rule": fm.chain(fm.stages.scale(1.0), "nesterov_positions")}, "no look-ahead form"),
        ({"lookahead": 1}, "lookahead: expected True or False"),
        ({"momentum_next": 0.5}, "momentum_next: expected no value with lookahead=True"),
        ({"rule": fm.chain("pytorch", fm.stages.decoupled_weight_decay(1.0))}, "no stage after the rule"),
        (
            {"rule": fm.Rule(lambda p, v, g, lr: (p - lr * g, v), hyper=("lr",), ahead=lambda p, v, lr, mu: p)},
            "one state",
        ),
    ],
    ids=label,
)
def test_lookahead_is_refused_for_rules_without_one(settings, reason):
    with pytest.raises((TypeError, ValueError), match=reason):
        fm.Momentum(START.copy(), **({"lr": 0.1, "lookahead": True} | settings))


def test_options_of_the_optimiser_are_refused_in_step_and_groups():
    p = START.copy()
    for option in ({"lookahead": True}, {"max_norm": 1.0}, {"skip_nonfinite": True}):
        with pytest.raises(TypeError, match="Momentum alone"):
            fm.step(p, np.zeros(3), H, lr=0.1, **option)
        with pytest.raises(TypeError, match="as all groups share it"):
            fm.Momentum([{"params": p, **option}], lr=0.1)
    assert_same_bits(p, START)


def test_momentum_next_can_be_given():
    p, v = START.copy(), np.zeros(3)
    fm.step(p, v, H, rule="classical_nesterov", lr=0.1, momentum=0.5, momentum_next=0.75)
    assert_same_bits(p, START - (0.75 * v + 0.1 * H))
    q = START.copy()
    fm.Momentum(q, rule="classical", nesterov=True, lr=0.1, momentum=annealed, momentum_next=0.75).step(H)
    assert_same_bits(q, p)


def test_lookahead_point_overflows_without_a_warning():
    p = START.copy()
    opt = fm.Momentum(p, lr=0.1, lookahead=True)
    opt.step(np.full(3, 1e308))
    with np.errstate(all="raise"):
        opt.lr = 1e10
    assert opt.lr == 1e10
    assert np.isinf(opt.point).all()


def test_links_that_keep_slots_of_one_name_are_refused():
    clash = fm.Stage(lambda g, v: (g + v, v), kind="filter", reads=("g", "velocity"), writes=("g", "velocity"),
                     state=(("velocity", "zero"),), name="clash")  # fmt: skip
    for make, slot in (
        (lambda: fm.chain(fm.stages.grokfast, fm.stages.grokfast, "sgd"), "filtered"),
        (lambda: fm.averaged(fm.averaged("sgd")), "average"),
        (lambda: fm.chain(clash, "pytorch"), "velocity"),
    ):
        with pytest.raises(ValueError, match=f"names of their own; got two links that keep '{slot}'"):
            make()
