"""Stages, and chains of stages and a rule."""

from fractions import Fraction

import numpy as np
import pytest

import fastmomentum as fm
from fastmomentum.backends.cpu import kernels as cpu_kernels
from fastmomentum.rules.options import with_options
from tests.helpers.arrays import arrays_of, random_arrays
from tests.helpers.copies import every_copy
from tests.helpers.reference import BACKENDS, DTYPES, POSITIONS, RULES, assert_same_bits, rest, soft_threshold, update

S = fm.stages


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", RULES)
def test_a_chain_has_the_bits_of_its_stages_in_order(rule, dtype):
    p, g = random_arrays(129, 2, dtype)
    c = dtype
    chained = fm.chain(
        S.scale(0.5), S.decoupled_weight_decay, S.clip_value(0.3), S.weight_decay(0.1), rule, S.decoupled_weight_decay
    )
    s = rest(rule, p)
    want_g = np.minimum(np.maximum(c(0.5) * g, c(-0.3)), c(0.3))
    want_p = p * c(1 - 0.1 * 0.2)
    want_p, want_s = update(rule, want_p, s, want_g + c(0.1) * want_p, c, lr=0.1, momentum=0.9)
    want_p = want_p * c(1 - 0.1 * 0.2)
    for backend in BACKENDS:
        q, t = p.copy(), s.copy()
        fm.step(
            q, None if rule == "sgd" else t, g, rule=chained, lr=0.1, momentum=0.9, backend=backend,
            decoupled_weight_decay=0.2,
        )  # fmt: skip
        assert_same_bits(q, want_p)
        assert_same_bits(t, want_s)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", POSITIONS)
def test_a_proximal_map_stands_between_gradient_step_and_extrapolation(rule, dtype):
    p, g = random_arrays(129, 2, dtype)
    q = (p + dtype(0.25)).astype(dtype)
    c = dtype
    x = p - c(0.1) * g
    soft = soft_threshold(x, c(0.1 * 2.0))
    box = np.minimum(np.maximum(x, c(-0.5)), c(0.25))
    for stage, mapped, rounding in ((S.soft_threshold(2.0), soft, 1), (S.box(-0.5, 0.25), box, 0)):
        want = mapped + c(0.9) * ((p - q) if rule == "heavy_ball" else (mapped - q))
        kept = p if rule == "heavy_ball" else mapped
        for backend in BACKENDS:
            found, state = p.copy(), q.copy()
            fm.step(found, state, g, rule=fm.chain(stage, rule), lr=0.1, momentum=0.9, backend=backend)
            # x − clip(x) rounds as sign(x)·(|x| − t) does; only the order of the next sum's rounding is fixed by us
            np.testing.assert_allclose(found, want, rtol=0, atol=rounding * np.finfo(dtype).eps)
            np.testing.assert_allclose(state, kept, rtol=0, atol=rounding * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_box_at_zero_gives_positive_zero_on_every_backend(dtype):
    x = np.array([-0.0, 0.0, -1.0, 1.0, -0.0] * 7, dtype)
    for backend in BACKENDS:
        p, q = x.copy(), x.copy()
        rule = fm.chain(S.box(0.0, np.inf), "nesterov_positions")
        fm.step(p, q, np.zeros_like(x), rule=rule, lr=0.1, momentum=0.0, backend=backend)
        assert not np.signbit(q).any()
        assert_same_bits(q, np.where(x > 0, x, dtype(0)))


A, B = arrays_of([(30, 10), 30])
LASSO = {"lr": 1 / np.linalg.norm(A, 2) ** 2, "momentum": 0.8, "l1": 8.0}


def lasso_gradient(p):
    """Return the gradient of ½‖Ap − b‖²."""
    return A.T @ (A @ p - B)


@pytest.mark.parametrize("rule", POSITIONS)
def test_soft_threshold_solves_the_lasso(rule):
    """Check optimality for λ‖x‖₁ + ½‖Ax − b‖²: the gradient is −λ·sign(x) if x ≠ 0, and within ±λ if x = 0."""
    p, lam = np.zeros(10), LASSO["l1"]
    opt = fm.Momentum(p, rule=fm.chain(S.soft_threshold, rule), **LASSO)
    for _ in range(4000):
        opt.step(lasso_gradient(p))
    grad = lasso_gradient(p)
    on = abs(p) > 1e-12  # momentum leaves tiny numbers in p; nesterov_positions has exact zeros in its state
    assert 0 < on.sum() < p.size
    np.testing.assert_allclose(grad[on], -lam * np.sign(p[on]), atol=1e-9)  # converged in double
    assert (abs(grad[~on]) <= lam).all()
    if rule == "nesterov_positions":
        np.testing.assert_array_equal(opt.state == 0, ~on)


def test_chain_refuses_a_proximal_map_after_a_velocity():
    for rule in set(RULES) - set(POSITIONS):
        with pytest.raises(ValueError, match="state is a position.*another problem"):
            fm.chain(S.box(0.0, 1.0), rule)


def test_proximal_map_after_a_velocity_solves_another_problem():
    """Check that a soft threshold after classical momentum solves the lasso for λ(1 − μ) instead of λ."""
    lr, mu, lam = LASSO.values()
    p, v = np.zeros(10), np.zeros(10)
    for _ in range(4000):
        v = mu * v + lr * lasso_gradient(p)
        p = soft_threshold(p - v, lr * lam)
    grad = lasso_gradient(p)
    np.testing.assert_allclose(grad[p != 0], -lam * (1 - mu) * np.sign(p[p != 0]), atol=1e-8)


def test_chains_can_be_nested():
    inner = fm.chain(S.weight_decay(0.1), "heavy_ball", S.box(-1.0, 1.0))
    outer = fm.chain(S.scale(2.0), inner, S.decoupled_weight_decay(0.5))
    flat = fm.chain(S.scale(2.0), S.weight_decay(0.1), "heavy_ball", S.box(-1.0, 1.0), S.decoupled_weight_decay(0.5))
    assert outer.functions == flat.functions
    assert outer.hyper == flat.hyper
    p, g = random_arrays(129, 2, np.float32)
    found = []
    for rule in (outer, flat):
        q = p.copy()
        fm.step(q, p.copy(), g, rule=rule, lr=0.1)
        found.append(q)
    assert_same_bits(*found)


def test_a_chain_is_exact_on_fractions():
    chained = fm.chain(S.scale, S.clip_value, "classical")
    p, v, g, half = Fraction(1), Fraction(1, 3), Fraction(9), Fraction(1, 2)
    # scale 1/2 → 9/2; clip to ±4 → 4; v = 1/2·1/3 + 1/2·4 = 13/6; p = 1 − 13/6
    assert chained.update(p, v, g, half, Fraction(-4), Fraction(4), half, half) == (Fraction(-7, 6), Fraction(13, 6))


@pytest.mark.parametrize(
    ("links", "error", "reason"),
    [
        ((), TypeError, "exactly one rule; got 0"),
        (("sgd", "ema"), TypeError, "exactly one rule; got 2"),
        (("no such",), ValueError, "no such"),
        ((3, "sgd"), TypeError, "got 2"),
        (("sgd", S.clip_value(1.0)), ValueError, "before the rule"),
        ((S.scale(1.0), S.scale(2.0), "sgd"), ValueError, "different defaults for scale"),
    ],
)
def test_chain_refuses_links_that_do_not_fit(links, error, reason):
    with pytest.raises(error, match=reason):
        fm.chain(*links)


def test_a_stage_takes_its_values_by_place_or_name():
    assert S.box(-1.0, high=2.0).defaults == {"low": -1.0, "high": 2.0}
    with pytest.raises(TypeError, match="low, high"):
        S.box(1.0, 2.0, 3.0)
    with pytest.raises(TypeError, match="middle"):
        S.box(middle=1.0)
    with pytest.raises(ValueError, match="defaults: expected for clip_value a finite number > 0; got -1.0"):
        S.clip_value(-1.0)
    with pytest.raises(ValueError, match="kind"):
        fm.Stage(lambda g, p: g, kind="other")


def test_values_of_a_chain_are_checked():
    p, v, g = np.ones(3), np.ones(3), np.ones(3)
    for rule, hyper, error, reason in (
        (fm.chain(S.clip_value, "sgd"), {}, TypeError, "clip_value.*needs"),
        (fm.chain(S.clip_value, "sgd"), {"clip_value": -1.0}, ValueError, "clip_value.*> 0.*-1.0"),
        (fm.chain(S.box, "heavy_ball"), {"low": 2.0, "high": 1.0}, ValueError, "high must be >= low"),
        (fm.chain(S.box, "heavy_ball"), {"low": np.nan, "high": 1.0}, ValueError, "low"),
        (fm.chain(S.soft_threshold, "heavy_ball"), {"l1": -1.0}, ValueError, "l1.*>= 0"),
    ):
        with pytest.raises(error, match=reason):
            fm.step(p, None if rule.slots == () else v, g, rule=rule, lr=0.1, **hyper)
    assert (p == 1).all()


def test_an_option_is_given_to_the_chain_that_declares_it():
    p, g = np.ones(3), np.full(3, 5.0)
    fm.step(p, None, g, rule=fm.chain(S.clip_value, "sgd"), lr=0.5, clip_value=1.0)
    np.testing.assert_array_equal(p, 0.5)
    bound = fm.chain(S.weight_decay(1.0), "sgd")
    fm.step(p, None, 0 * g, rule=bound, lr=0.5)  # the option's default of 0 does not replace the chain's value
    np.testing.assert_array_equal(p, 0.25)
    fm.step(p, None, 0 * g, rule=bound, lr=0.5, weight_decay=2.0)
    np.testing.assert_array_equal(p, 0.0)


def test_an_absent_option_is_absent_from_the_compiled_code():
    plain = with_options(fm.rules.pytorch, frozenset(), False)
    assert plain is fm.rules.pytorch
    decayed = with_options(fm.rules.pytorch, frozenset({"weight_decay"}), False)
    assert decayed.functions == (*S.weight_decay.functions, *fm.rules.pytorch.functions)


def test_equal_chains_share_their_kernel():
    dtype = np.dtype(np.float32)
    kernels = {id(cpu_kernels.kernel(fm.chain(S.scale(x), "sgd"), dtype)) for x in (1.0, 2.0, 3.0)}
    assert len(kernels) == 1


def test_stages_of_different_kinds_have_different_kernels():
    """Check that halving the parameter after the rule (0.72, 1.665) differs from halving inside it (0.945, 2.34)."""

    def shrink(x, c):
        return x * c

    for backend in BACKENDS:
        for kind, expected in (("param", [0.72, 1.665]), ("prox", [0.945, 2.34])):
            p, q, g = np.array([1.0, 2.0]), np.array([0.5, 0.5]), np.array([0.1, 0.2])
            rule = fm.chain("heavy_ball", fm.Stage(shrink, kind=kind, hyper=("c",)))
            fm.step(p, q, g, rule=rule, lr=0.1, momentum=0.9, c=0.5, backend=backend)
            np.testing.assert_allclose(p, expected, rtol=1e-15)


def test_maximize_is_refused_twice():
    with pytest.raises(ValueError, match="maximize: expected once"):
        fm.step(np.ones(3), None, np.ones(3), rule=fm.chain(S.maximize, "sgd"), lr=0.1, maximize=True)


@every_copy
def test_a_copy_of_a_maximising_chain_is_recognised(make_copy):
    rule = make_copy(fm.chain(fm.stages.maximize, "pytorch"))
    with pytest.raises(ValueError, match="maximize: expected once"):
        fm.step(np.ones(2), np.zeros(2), np.ones(2), rule=rule, lr=0.1, maximize=True)
    opt = fm.Momentum(np.ones(2), rule=rule, lr=0.1, restart="gradient")
    for _ in range(3):
        opt.step(np.ones(2))
    assert opt.resets == []


def test_a_chain_allows_the_numbers_that_all_its_links_allow():
    stage = {"kind": "param", "hyper": ("momentum",)}
    wide, half = (
        fm.Stage(lambda p, momentum: p * momentum, ranges={"momentum": (0, high)}, **stage) for high in (2, 0.5)
    )
    for links, refused in (((wide,), 1.5), ((half,), 0.75), ((half, wide), 0.75), ((wide, half), 0.75)):
        with pytest.raises(ValueError, match=rf"momentum: expected a number in .*; got {refused}"):
            fm.step(np.ones(2), np.zeros(2), np.ones(2), rule=fm.chain("pytorch", *links), lr=0.1, momentum=refused)
    with pytest.raises(ValueError, match=r"momentum: expected a number in \[0, 1\); got 1.0"):
        fm.Momentum(np.ones(2), rule=fm.chain("ema_corrected", wide), lr=0.1, momentum=1.0)
