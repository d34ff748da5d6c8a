"""The variants of momentum against loops by hand, the special cases of their papers, optax and theory."""

from fractions import Fraction

import numba
import numpy as np
import optax
import pytest

import fastmomentum as fm
from tests.helpers.arrays import gradients, random_arrays
from tests.helpers.reference import BACKENDS, DTYPES, VARIANTS, as_state, assert_all_same_bits, assert_same_bits

SIZES = (0, 1, 7, 8, 9, 31, 1000)
LINEAR = ("quasi_hyperbolic", "aggmo")
SLOTS = {"aggmo": 3}


def by_hand(rule, p, state, g, cast, step, *, lr, momentum, nu=0.7, beta2=0.99):
    """Return (p, *state) after one update by the formulas of the papers. 1 − β and lr/K are formed in double."""
    a, beta, keep = cast(lr), cast(momentum), cast(1 - momentum)
    if rule == "ema_corrected":
        v = beta * state[0] + keep * g
        return p - a * (v / cast(1 - momentum**step)), v
    if rule == "quasi_hyperbolic":
        v = beta * state[0] + keep * g
        return p - a * (cast(1 - nu) * g + cast(nu) * v), v
    if rule == "aggmo":
        u, v, w = (cast(b) * slot + g for b, slot in zip((0.0, 0.9, 0.99), state))
        third = cast(lr / 3)
        return p - third * u - third * v - third * w, u, v, w
    if rule == "signum":
        v = beta * state[0] + keep * g
        return p - a * np.sign(v), v
    if rule == "lion":
        direction = np.sign(beta * state[0] + keep * g)
        return p - a * direction, cast(beta2) * state[0] + cast(1 - beta2) * g
    raise KeyError(rule)


@pytest.mark.parametrize("rule", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", SIZES)
def test_a_variant_has_the_bits_of_its_formula(rule, dtype, backend, size):
    settings = {"rule": rule, "lr": 0.1, "momentum": 0.8, "backend": backend}
    grads = gradients(size, 6, dtype, kind="awkward")
    (p,) = random_arrays(size, 1, dtype, seed=1)
    wanted = (p.copy(), *(np.zeros(size, dtype) for _ in range(SLOTS.get(rule, 1))))
    state = tuple(slot.copy() for slot in wanted[1:])
    cut = [p[: size // 3].copy(), p[size // 3 :].copy()]
    opt = fm.Momentum(cut, **settings)
    for step, g in enumerate(grads, 1):
        wanted = by_hand(rule, wanted[0], wanted[1:], g, dtype, step, lr=0.1, momentum=0.8)
        fm.step(p, state, g, **settings, **({"step": step} if rule == "ema_corrected" else {}))
        opt.step([g[: size // 3], g[size // 3 :]])
    assert_all_same_bits((p, *state), wanted)
    assert_same_bits(np.concatenate(cut), wanted[0])


@pytest.mark.parametrize("rule", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_variant_is_a_scalar_function_and_a_kernel_for_compiled_code(rule, dtype):
    given = {"aggmo": {}, "ema_corrected": {"momentum": 0.8, "step": 3}}.get(rule, {"momentum": 0.8})
    hyper = fm.jit.hyper(rule, dtype, lr=0.1, **given)
    (g,) = gradients(33, 1, dtype, kind="awkward")
    start = np.linspace(-1, 1, 33).astype(dtype)
    rest = [np.full(33, 0.25, dtype) for _ in range(SLOTS.get(rule, 1))]
    scalar = getattr(fm.jit, rule)
    point = numba.njit(lambda p, state, g: scalar(p, *state, g, *hyper))
    found = [np.array(row, dtype) for row in zip(*(point(*row) for row in zip(start, zip(*rest), g)))]
    swept = [start.copy(), *(slot.copy() for slot in rest)]
    fm.jit.kernel(rule)(*swept, g, *hyper)
    wanted = by_hand(rule, start, rest, g, dtype, 3, lr=0.1, momentum=0.8)
    for mine, kernel, expected in zip(found, swept, wanted, strict=True):
        assert_same_bits(mine, expected)
        assert_same_bits(kernel, expected)


def exact(rule, grads, *hyper):
    """Return p after these gradients, from 0, in fractions, by the rule's own function."""
    now = [Fraction(0)] * (1 + len(rule.state))
    for g in grads:
        now = rule.build()(*now, g, *hyper)
    return now[0]


GRADS = [Fraction(n, 7) for n in (3, -2, 5, 0, 1, -4, 6)]


@pytest.mark.parametrize("nu", [Fraction(0), Fraction(7, 10), Fraction(1)])
def test_quasi_hyperbolic_weighs_gradients_as_its_closed_form_says(nu):
    lr, beta = Fraction(1, 10), Fraction(4, 5)
    averages = [sum((1 - beta) * beta ** (t - i) * g for i, g in enumerate(GRADS[: t + 1])) for t in range(len(GRADS))]
    wanted = -lr * sum((1 - nu) * g + nu * average for g, average in zip(GRADS, averages, strict=True))
    assert exact(fm.rules.quasi_hyperbolic, GRADS, lr, beta, 1 - beta, nu, 1 - nu) == wanted


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_aggregated_is_the_mean_of_its_momenta(count):
    lr, betas = Fraction(1, 10), [Fraction(i, i + 1) for i in range(count)]
    wanted = (
        -lr / count * sum(beta ** (t - i) * GRADS[i] for beta in betas for t in range(len(GRADS)) for i in range(t + 1))
    )
    assert exact(fm.rules.aggregated(map(float, betas)), GRADS, lr / count, *betas) == wanted


def test_ema_corrected_divides_by_one_minus_beta_to_the_step():
    lr, beta = Fraction(1, 10), Fraction(4, 5)
    wanted = -lr * sum(
        sum((1 - beta) * beta ** (t - i) * GRADS[i] for i in range(t + 1)) / (1 - beta ** (t + 1))
        for t in range(len(GRADS))
    )
    p, v = Fraction(0), Fraction(0)
    for t, g in enumerate(GRADS, 1):
        p, v = fm.rules.ema_corrected.update(p, v, g, lr, beta, 1 - beta, 1 - beta**t)
    assert p == wanted


def run(rule, size=64, dtype=np.float64, **settings):
    p = np.linspace(-1, 1, size).astype(dtype)
    opt = fm.Momentum(p, rule=rule, lr=0.05, **settings)
    for g in gradients(size, 6, dtype, kind="awkward"):
        opt.step(g)
    return p


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_papers_special_cases_hold_to_the_bit(dtype):
    for nu, same in ((1.0, "ema"), (0.0, "sgd"), (0.8, "ema_nesterov")):  # Ma and Yarats 2019, Section 4
        assert_same_bits(
            run("quasi_hyperbolic", dtype=dtype, momentum=0.8, nu=nu), run(same, dtype=dtype, momentum=0.8)
        )
    for beta in (0.0, 0.8, 1.0):
        found = run(fm.rules.aggregated([beta]), dtype=dtype)
        assert_same_bits(found, run("pytorch", dtype=dtype, momentum=beta))
    found = run("lion", dtype=dtype, momentum=0.8, beta2=0.8)  # Chen et al. 2023: signum, but for the order
    assert_same_bits(found, run("signum", dtype=dtype, momentum=0.8))
    assert_same_bits(run("aggmo", dtype=dtype), run(fm.rules.aggregated((0, 0.9, 0.99)), dtype=dtype))


@pytest.mark.parametrize(
    ("rule", "settings", "published"),
    [
        ("lion", {"momentum": 0.8, "beta2": 0.95}, optax.lion(0.05, b1=0.8, b2=0.95, weight_decay=0.0)),
        (
            "lion",
            {"momentum": 0.8, "decoupled_weight_decay": 0.3},
            optax.lion(0.05, b1=0.8, b2=0.99, weight_decay=0.3),
        ),
        (
            "signum",
            {"momentum": 0.8},
            optax.chain(optax.ema(0.8, debias=False), optax.scale_by_sign(), optax.scale(-0.05)),
        ),
        ("ema_corrected", {"momentum": 0.8}, optax.chain(optax.ema(0.8, debias=True), optax.scale(-0.05))),
    ],
    ids=["lion", "lion with decay", "signum", "ema_corrected"],
)
def test_a_variant_agrees_with_optax(rule, settings, published):
    grads = gradients(64, 20, np.float32)
    p = np.linspace(-1, 1, 64).astype(np.float32)
    theirs = p.copy()
    kept = published.init(theirs)
    opt = fm.Momentum(p, rule=rule, lr=0.05, **settings)
    for g in grads:
        updates, kept = published.update(g, kept, theirs)
        theirs = np.asarray(optax.apply_updates(theirs, updates))
        opt.step(g)
    np.testing.assert_allclose(p, theirs, atol=20 * 4e-7)  # 20 steps, each with a few roundings of numbers near 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rule", ["signum", "lion"])
def test_signs_are_exact(dtype, backend, rule):
    limits = np.finfo(dtype)
    least = limits.smallest_subnormal if dtype is np.float32 else dtype(2.0**-254)
    sizes = np.array([least, 3 * least, limits.smallest_normal, 1e-30, 1, limits.max, np.inf], dtype)
    sizes = sizes[sizes >= least]
    grads = np.concatenate([sizes, -sizes, np.array([0.0, -0.0, np.nan], dtype)])
    p, v = np.zeros_like(grads), np.zeros_like(grads)
    fm.step(p, v, grads, rule=rule, lr=1.0, momentum=0.0, backend=backend)
    np.testing.assert_array_equal(-p, np.sign(grads))


def test_sign_is_linear_below_the_smallest_exact_number_in_double_precision():
    p, v = np.zeros(2), np.zeros(2)
    fm.step(p, v, np.array([2.0**-256, -(2.0**-1000)]), rule="signum", lr=1.0, momentum=0.0)
    assert p.tolist() == [-0.25, 2.0**-746]


def test_corrected_average_of_a_constant_is_the_constant_from_each_array_s_own_start():
    p, late = np.zeros(3), np.zeros(3)
    opt = fm.Momentum([p, late], rule="ema_corrected", lr=1.0, momentum=0.9)
    for step in range(8):
        if step == 6:
            opt.reset("a test", array=0)
        opt.step([np.full(3, 0.75), np.full(3, 0.5) if step in (3, 4, 7) else None])
        np.testing.assert_allclose(p, -0.75 * (step + 1), rtol=1e-15 * 8)  # a rounding for each operation
    np.testing.assert_allclose(late, -1.5, rtol=1e-15 * 8)
    assert opt.state_dict()["updates"] == [2, 3]


def test_corrected_average_under_a_schedule_uses_the_momentum_of_its_step():
    betas, p, v, q = (0.5, 0.9, 0.99, 0.1), np.zeros(3), 0.0, 0.0
    opt = fm.Momentum(p, rule="ema_corrected", lr=1.0, momentum=betas.__getitem__)
    for step, beta in enumerate(betas, 1):
        opt.step(np.full(3, 0.75))
        v = beta * v + (1 - beta) * 0.75
        q = q - 1.0 * (v / (1 - beta**step))
        assert p.tolist() == [q] * 3


def growth(rule, lr, curvatures, steps=5000, **settings):
    """Return the factor by which a step of the kernels multiplies the error on ½h·p², for each h.

    The factor is the mean over the second half of the steps. Each coordinate is scaled to 1 now and then, which
    changes nothing for a linear rule.
    """
    p = np.ones(curvatures.size)
    state = tuple(np.zeros_like(p) if rest == "zero" else p.copy() for _, rest in fm.rules.find(rule).state)
    total = np.zeros_like(p)
    for step in range(1, steps + 1):
        fm.step(p, as_state(state), curvatures * p, rule=rule, lr=lr, **settings)
        if step % 50 == 0:
            norm = np.sqrt(p * p + sum(slot * slot for slot in state))
            for array in (p, *state):
                array /= norm
            total += np.log(norm) if 2 * step > steps else 0
    return np.exp(total / (steps / 2))


CURVATURES = np.array([0.01, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0])


@pytest.mark.parametrize(
    ("rule", "settings"),
    [
        ("quasi_hyperbolic", {"momentum": 0.9}),
        ("quasi_hyperbolic", {"momentum": 0.999, "nu": 0.7}),
        ("quasi_hyperbolic", {"momentum": 0.5, "nu": 0.3}),
        ("aggmo", {}),
        (fm.rules.aggregated([0.5, 0.8]), {}),
        (fm.averaged("pytorch", 0.99), {"momentum": 0.8}),
    ],
    ids=str,
)
def test_the_rate_of_a_linear_variant_is_measured(rule, settings):
    momentum, others = settings.get("momentum", 0.9), {k: v for k, v in settings.items() if k != "momentum"}
    predicted = fm.theory.spectral_radius(0.1, momentum, CURVATURES, rule=rule, **others)
    # over 2500 steps an oscillation's phase is worth log(10)/2500, as state and parameter have other units
    np.testing.assert_allclose(growth(rule, 0.1, CURVATURES, **settings), predicted, rtol=1e-3)


@pytest.mark.parametrize("nu", [0.0, 0.3, 0.7, 1.0])
def test_the_rate_of_quasi_hyperbolic_is_that_of_its_polynomial(nu):
    for beta, x in [(0.5, 0.2), (0.9, 1.5), (0.999, 0.01)]:
        polynomial = [1, -(1 + beta - x * (1 - nu * beta)), beta * (1 - x * (1 - nu))]
        found = fm.theory.spectral_radius(x, beta, 1.0, rule="quasi_hyperbolic", nu=nu)
        assert found == pytest.approx(np.abs(np.roots(polynomial)).max(), rel=1e-12)


@pytest.mark.parametrize("rule", LINEAR)
def test_the_iterations_of_a_linear_variant_are_counted(rule):
    h, start = np.array([0.1, 0.7, 3.0]), np.array([1.0, -2.0, 0.5])
    predicted = fm.theory.iterations(0.2, 0.9, h, 1e-6, rule=rule, error=start)
    p, steps = start.copy(), 0
    opt = fm.Momentum(p, rule=rule, lr=0.2, momentum=0.9)
    while np.linalg.norm(p) > 1e-6 * np.linalg.norm(start):
        opt.step(h * p)
        steps += 1
    assert steps == predicted > 20


@pytest.mark.parametrize("rule", ["ema_corrected", "signum", "lion", fm.averaged("sgd")], ids=str)
def test_a_variant_that_is_not_linear_has_no_rate(rule):
    with pytest.raises(ValueError, match="linear in p, state and g"):
        fm.theory.spectral_radius(0.1, 0.9, 1.0, rule=rule)


def test_variants_refuse_settings_out_of_range():
    p, two = np.ones(3), (np.zeros(3), np.zeros(3))
    with pytest.raises(TypeError, match="step: expected .*, as rule 'ema_corrected' needs this hyper-parameter"):
        fm.step(p, two[0], p.copy(), rule="ema_corrected", lr=0.1)
    with pytest.raises(ValueError, match="step: expected a number >= 1; got 0"):
        fm.step(p, two[0], p.copy(), rule="ema_corrected", lr=0.1, step=0)
    with pytest.raises(TypeError, match="step: expected none, as the optimiser counts"):
        fm.Momentum(p, rule="ema_corrected", lr=0.1, step=1)
    with pytest.raises(ValueError, match=r"momentum: expected a number in \[0, 1\); got 1.0"):
        fm.step(p, two[0], p.copy(), rule="ema_corrected", lr=0.1, momentum=1.0, step=1)
    with pytest.raises(ValueError, match=r"nu: expected a number in \[0, 1\]; got 1.5"):
        fm.step(p, two[0], p.copy(), rule="quasi_hyperbolic", lr=0.1, nu=1.5)
    for betas, error, reason in (
        ([], ValueError, r"betas: expected numbers in \[0, 1\], one at least; got none"),
        (0.9, TypeError, r"betas: expected numbers in \[0, 1\], one at least; got 0.9"),
        ([0.5, 1.5], ValueError, r"betas\[1\]: expected a number in \[0, 1\]; got 1.5"),
        ([True], TypeError, r"betas\[0\]: expected a number in \[0, 1\]; got True"),
        ("12", TypeError, r"betas\[0\]: expected a number in \[0, 1\]; got '1'"),
    ):
        with pytest.raises(error, match=reason):
            fm.rules.aggregated(betas)
    assert (p == 1).all()
