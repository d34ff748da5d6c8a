"""The explicit look-ahead, and momentum_next under a schedule."""

import numpy as np
import pytest
from labels import label
from oracles import assert_same_bits

import fastmomentum as fm

RULES = ("classical", "pytorch", "ema")
H = np.array([1.0, 10.0, 3.0])
START = np.array([10.0, 1.0, -4.0])


def annealed(step):
    return min(0.5 + 0.02 * step, 0.9)


def falling(step):
    return 0.08 / (1 + 0.05 * step)


def walk(opt, point, steps=80):
    path = []
    for _ in range(steps):
        path.append(point(opt).copy())
        opt.step(H * point(opt))
    return np.array(path)


@pytest.mark.parametrize(
    ("rule", "lr"), [(rule, 0.05) for rule in RULES] + [("classical", falling)], ids=lambda x: getattr(x, "__name__", x)
)
def test_folded_forms_walk_the_points_of_the_explicit_form_under_annealing(rule, lr):
    """To 1e-12, and without momentum_next they do not. (The scaled forms also fold the lr in, so it is constant.)"""
    settings = {"rule": rule, "lr": lr, "momentum": annealed}
    explicit = walk(fm.Momentum(START.copy(), lookahead=True, **settings), lambda opt: opt.point)
    folded = walk(fm.Momentum(START.copy(), nesterov=True, **settings), lambda opt: opt.params)
    assert abs(explicit - folded).max() < 1e-12
    p, v, path = START.copy(), np.zeros(3), []
    for step in range(80):
        path.append(p.copy())
        value = lr(step) if callable(lr) else lr
        fm.step(p, v, H * p, rule=rule, nesterov=True, lr=value, momentum=annealed(step))
    assert abs(explicit - np.array(path)).max() > 0.01


def by_hand(rule, p, v, y, g, cast, lr, mu, lr_next, mu_next, weight_decay=0.0):
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


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("rule", RULES)
def test_look_ahead_has_the_bits_of_numpy(rule, weight_decay, dtype, backend):
    rng = np.random.default_rng(13)
    p = rng.standard_normal((3, 43)).astype(dtype)
    q, v, y = p.copy(), np.zeros_like(p), p.copy()
    settings = {"rule": rule, "lookahead": True, "weight_decay": weight_decay, "backend": backend}
    opt = fm.Momentum(p, lr=falling, momentum=annealed, **settings)
    assert_same_bits(opt.point, q)
    for t in range(5):
        g = rng.standard_normal(p.shape).astype(dtype)
        opt.step(g)
        both = falling(t), annealed(t), falling(t + 1), annealed(t + 1)
        q, v, y = by_hand(rule, q, v, y, g, dtype, *both, weight_decay)
        for found, expected in ((p, q), (opt.velocity, v), (opt.state, v), (opt.point, y)):
            assert_same_bits(found, expected)


@pytest.mark.parametrize("rule", RULES)
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
        q, v, y = by_hand("classical", q * (1 - 0.1 * 0.5), v, y, g, float, 0.1, 0.5, 0.1, 0.5)
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
        ({"momentum_next": 0.5}, "momentum_next: expected to follow"),
        ({"rule": fm.chain("pytorch", fm.stages.decoupled_weight_decay(1.0))}, "no stage behind the rule"),
        (
            {"rule": fm.Rule(lambda p, v, g, lr: (p - lr * g, v), hyper=("lr",), ahead=lambda p, v, lr, mu: p)},
            "one state",
        ),
    ],
    ids=label,
)
def test_look_ahead_is_refused_where_there_is_none(settings, reason):
    with pytest.raises((TypeError, ValueError), match=reason):
        fm.Momentum(START.copy(), **({"lr": 0.1, "lookahead": True} | settings))


def test_options_of_the_whole_are_refused_elsewhere():
    p = START.copy()
    for option in ({"lookahead": True}, {"max_norm": 1.0}, {"skip_nonfinite": True}):
        with pytest.raises(TypeError, match="Momentum alone"):
            fm.step(p, np.zeros(3), H, lr=0.1, **option)
        with pytest.raises(TypeError, match="as a whole"):
            fm.Momentum([{"params": p, **option}], lr=0.1)
    assert_same_bits(p, START)


def test_a_momentum_next_given_by_the_user_is_used():
    p, v = START.copy(), np.zeros(3)
    fm.step(p, v, H, rule="classical_nesterov", lr=0.1, momentum=0.5, momentum_next=0.75)
    assert_same_bits(p, START - (0.75 * v + 0.1 * H))
    q = START.copy()
    fm.Momentum(q, rule="classical", nesterov=True, lr=0.1, momentum=annealed, momentum_next=0.75).step(H)
    assert_same_bits(q, p)


def test_an_overflowing_point_warns_of_nothing_and_is_whole():
    p = START.copy()
    opt = fm.Momentum(p, lr=0.1, lookahead=True)
    opt.step(np.full(3, 1e308))
    with np.errstate(all="raise"):
        opt.lr = 1e10
    assert opt.lr == 1e10
    assert np.isinf(opt.point).all()
