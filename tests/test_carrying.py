"""A learning rate that changes in mid-run: with correct=True every rule draws the path of its pytorch form.

Where all numbers are dyadic nothing is rounded, and the paths are equal to the bit.
"""

import numpy as np
import pytest
from labels import label
from oracles import RULES, assert_same_bits

import fastmomentum as fm
from fastmomentum.backends import host_arrays
from fastmomentum.rules.compose import slots_scaled_by_lr

CARRYING = {
    "classical": "pytorch",
    "classical_nesterov": "pytorch_nesterov",
    "heavy_ball": "pytorch",
    "nesterov_positions": "pytorch_nesterov",
}
STEPS = 9


def halving(step):
    return 2.0 ** -(step // 3)


def gradients(shape, dtype=np.float64, steps=STEPS):
    """Multiples of 1/4, which do not depend on p."""
    rng = np.random.default_rng(1)
    return (rng.integers(-8, 9, (steps, *shape)) / 4).astype(dtype)


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


def test_the_rules_own_functions_tell_which_state_carries_lr():
    found = {name: slots_scaled_by_lr(fm.rules.find(name)) for name in RULES}
    expected = dict.fromkeys(RULES, ())
    expected |= dict.fromkeys(("classical", "classical_nesterov"), ("velocity",))
    expected |= dict.fromkeys(("heavy_ball", "nesterov_positions"), ("previous",))
    assert found == expected
    for name in ("ema_corrected", "quasi_hyperbolic", "aggmo", "signum", "lion"):
        assert slots_scaled_by_lr(fm.rules.find(name)) == ()
    assert slots_scaled_by_lr(fm.averaged("classical", 0.9)) == ("velocity",)
    assert slots_scaled_by_lr(fm.averaged(fm.chain(fm.stages.weight_decay(0.1), "heavy_ball"))) == ("previous",)


def two(p, v, w, g, lr, mu, beta):
    v = mu * v + lr * g
    w = beta * w + lr * g
    return p - v - w, v, w


def test_a_user_s_rule_is_read_likewise():
    rule = fm.Rule(two, state=(("fast", "zero"), ("slow", "zero")), hyper=("lr", "momentum", "beta"))
    assert slots_scaled_by_lr(rule) == ("fast", "slow")
    grads = gradients((4,))

    def by_hand():
        p, v, w = np.ones(4), np.zeros(4), np.zeros(4)
        for step, g in enumerate(grads):
            v, w = 0.5 * v + g, 0.25 * w + g
            p = p - halving(step) * v - halving(step) * w
            yield p

    assert_same_bits(path(rule, halving, grads, correct=True, beta=0.25), np.array(list(by_hand())))


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=label)
@pytest.mark.parametrize("how", ["schedule", "assignment"])
@pytest.mark.parametrize("rule", CARRYING)
def test_the_path_is_that_of_the_pytorch_form(rule, how, dtype, backend):
    grads = gradients((7,), dtype)
    changes = {"lr": halving} if how == "schedule" else {"lr": 1.0, "assign": halving}
    expected = path(CARRYING[rule], grads=grads, **changes)
    assert_same_bits(path(rule, grads=grads, correct=True, backend=backend, **changes), expected)
    assert (path(rule, grads=grads, backend=backend, **changes)[3:] != expected[3:]).any()


def test_without_it_the_velocity_goes_on_at_the_old_rate():
    p = np.zeros(1)
    opt = fm.Momentum(p, rule="classical", lr=1.0, momentum=0.5)
    opt.step(np.array([1.0]))
    opt.lr = 0.25
    opt.step(np.array([0.0]))
    assert p == -1.0 - 0.5


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=label)
def test_a_look_ahead_goes_over_too(dtype):
    grads = gradients((5,), dtype)
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
def test_arrays_without_gradient_go_over_too(rule, how):
    grads = gradients((3, 4))
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


def test_the_velocity_is_lr_times_that_of_the_pytorch_form():
    """On the bowls ½h(p − 1)², with a schedule whose ratios are not exact: to rounding, not to the bit."""
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
def test_a_constant_rate_has_the_bits_that_it_has_without(rule):
    grads = np.random.default_rng(0).standard_normal((5, 9)).astype(np.float32)
    assert_same_bits(path(rule, 0.1, grads, correct=True), path(rule, 0.1, grads))


def test_groups_may_differ():
    grads = gradients((2, 4))
    params = [np.ones(4), np.ones(4)]
    groups = [{"params": params[:1], "correct": True}, {"params": params[1:]}]
    opt = fm.Momentum(groups, rule="classical", lr=halving, momentum=0.5)
    for grad in grads:
        opt.step(list(grad))
    for p, correct, mine in zip(params, (True, False), grads.swapaxes(0, 1), strict=True):
        assert_same_bits(p, path("classical", halving, mine, correct=correct)[-1])


@pytest.mark.parametrize("stop", range(1, STEPS))
@pytest.mark.parametrize("rule", ["classical", "heavy_ball"])
def test_a_run_taken_up_again_goes_on(rule, stop, tmp_path):
    lr = fm.schedules.Cosine(1.0, 0.1, steps=STEPS)
    grads = np.random.default_rng(0).standard_normal((STEPS, 9))
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


def failing(function, at):
    """`function`, but for its call with this number, which a signal interrupts."""
    calls = []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == at + 1:
            raise KeyboardInterrupt
        function(*arguments)

    return interrupted


@pytest.mark.parametrize("at", [0, 1])
def test_an_assignment_that_a_signal_tears_apart_is_whole_before_the_next_step(at, monkeypatch):
    grads = gradients((2, 4))
    runs = []
    for torn in (False, True):
        params = [np.ones(4), np.ones(4)]
        opt = fm.Momentum(params, rule="classical", lr=1.0, momentum=0.5, correct=True)
        opt.step(list(grads[0]))
        with monkeypatch.context() as patch:
            if torn:
                patch.setattr(host_arrays, "copy", failing(host_arrays.copy, at))
                with pytest.raises(KeyboardInterrupt):
                    opt.lr = 0.25
            else:
                opt.lr = 0.25
        opt.step(list(grads[1]))
        assert opt.lr == 0.25
        runs.append(np.array([params, opt.velocity]))
    assert_same_bits(runs[1], runs[0])


def test_a_refused_step_leaves_arrays_without_gradient_where_they_were():
    grads = gradients((2, 4))
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


def squared(p, v, g, lr, mu):
    v = mu * v + g
    return p - lr * lr * v, v


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"rule": "classical", "lr": 0.0}, ValueError, "lr: expected a finite number > 0"),
        ({"rule": fm.Rule(squared), "lr": 0.1}, ValueError, "correct: expected a rule whose displacement"),
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
        ({"rule": "classical_nesterov", "lr": 0.1, "lr_next": 0.1}, ValueError, "lr_next: expected to follow from lr"),
    ],
    ids=label,
)
def test_what_cannot_go_over_is_refused(settings, error, message):
    with pytest.raises(error, match=message):
        fm.Momentum(np.ones(3), **{"correct": True, **settings})


def test_a_rate_that_falls_to_nothing_is_refused_before_anything_is_changed():
    p = np.ones(3)
    opt = fm.Momentum(p, rule="classical", lr=lambda step: 0.5 - 0.25 * step, correct=True)
    opt.step(np.ones(3))
    before = p.copy(), opt.velocity.copy()
    with pytest.raises(ValueError, match="lr_next: expected a finite number > 0"):
        opt.step(np.ones(3))
    assert_same_bits(np.array([p, opt.velocity]), np.array(before))
    with pytest.raises(ValueError, match="lr: expected a finite number > 0"):
        opt.lr = 0.0
    assert opt.steps == 1
    assert_same_bits(np.array([p, opt.velocity]), np.array(before))


def test_a_rate_that_would_lose_the_velocity_is_refused():
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


def test_an_average_of_a_chain_goes_over():
    rules = [fm.averaged(fm.chain(fm.stages.weight_decay(0.125), rule)) for rule in ("classical", "pytorch")]
    paths = [path(rule, halving, gradients((4,)), correct=True) for rule in rules]
    np.testing.assert_allclose(*paths, rtol=1e-14)


def test_step_has_no_such_option():
    with pytest.raises(TypeError, match="correct: expected of Momentum alone"):
        fm.step(np.ones(2), np.zeros(2), np.ones(2), rule="classical", lr=0.1, correct=True)
