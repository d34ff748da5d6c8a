"""Updates have the bits of hand-written NumPy for every rule, option, dtype, size, shape and split into arrays."""

import numpy as np
import pytest

import fastmomentum as fm
from tests.helpers.arrays import random_arrays
from tests.helpers.reference import BACKENDS, DTYPES, RULES, assert_same_bits, rest, update, with_options

SIZES = (0, 1, 7, 15, 16, 17, 31, 33, 127, 128, 129)
SHAPES = ((), (3, 5), (2, 3, 7), (1, 1, 1), (4, 0))
OPTIONS = {
    "plain": {},
    "clip": {"clip_value": 0.7},
    "maximize": {"maximize": True},
    "decay": {"weight_decay": 0.03},
    "decoupled": {"decoupled_weight_decay": 0.4},
    "all": {"clip_value": 0.7, "maximize": True, "weight_decay": 0.03, "decoupled_weight_decay": 0.4},
}
CASES = [(rule, 0.0) for rule in RULES] + [("pytorch", 0.3), ("pytorch", 1.0)]
LR, MOMENTUM, STEPS = 0.1, 0.9, 3


def by_hand(rule, p, s, grads, options, dampening):
    cast = p.dtype.type
    for g in grads:
        p, g = with_options(p, g, cast, lr=LR, **options)
        p, s = update(rule, p, s, g, cast, lr=LR, momentum=MOMENTUM, dampening=dampening)
    return p, s


@pytest.mark.sampled(2)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize(("rule", "dampening"), CASES)
def test_step_has_the_bits_of_numpy(rule, dampening, option, dtype):
    for shape in (*SIZES, *SHAPES):
        p, s, *grads = random_arrays(shape, 2 + STEPS, dtype)
        expected = by_hand(rule, p.copy(), s.copy(), grads, OPTIONS[option], dampening)
        for backend in BACKENDS:
            found = p.copy(), s.copy()
            for g in grads:
                kept = g.copy()
                fm.step(
                    found[0],
                    None if rule == "sgd" else found[1],
                    g,
                    rule=rule,
                    lr=LR,
                    momentum=MOMENTUM,
                    dampening=dampening,
                    backend=backend,
                    **OPTIONS[option],
                )
                assert_same_bits(g, kept)
            assert_same_bits(found[0], np.asarray(expected[0], dtype))
            assert_same_bits(found[1], np.asarray(expected[1], dtype))


@pytest.mark.sampled(4)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize(("rule", "dampening"), CASES)
def test_momentum_has_the_bits_of_numpy_in_any_split_and_grouping(rule, dampening, option, dtype):
    whole, *grads = random_arrays(1009, 1 + STEPS, dtype)
    s = rest(rule, whole)
    expected, s = by_hand(rule, whole, s, grads[:1], OPTIONS[option], 0.0)  # an array's first velocity is undamped
    expected, s = by_hand(rule, expected, s, grads[1:], OPTIONS[option], dampening)
    settings = {"rule": rule, "lr": LR, "momentum": MOMENTUM, "dampening": dampening, **OPTIONS[option]}
    for cuts in ([], [500], [1, 2, 17, 17, 500, 1008]):
        for grouped in (False, True):
            for backend in BACKENDS:
                flat = whole.copy()
                params = np.split(flat, cuts)  # views: the parts of one buffer
                groups = [{"params": part} for part in params] if grouped else params
                opt = fm.Momentum(groups, backend=backend, **settings)
                for g in grads:
                    opt.step(np.split(g, cuts))
                assert_same_bits(flat, expected)
                if rule != "sgd":
                    assert_same_bits(np.concatenate(opt.state), s)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", RULES)
def test_large_arrays_have_the_bits_of_numpy(rule, dtype):
    p, g = random_arrays(100_003, 2, dtype)
    s = rest(rule, p)
    expected = by_hand(rule, p.copy(), s.copy(), [g, g], {}, 0.0)
    opt = fm.Momentum(mine := p.copy(), rule=rule, lr=LR, momentum=MOMENTUM)
    for _ in range(2):
        fm.step(p, None if rule == "sgd" else s, g, rule=rule, lr=LR, momentum=MOMENTUM)
        opt.step(g)
    for found in (p, mine):
        assert_same_bits(found, expected[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", RULES)
def test_special_values_propagate_as_in_numpy(rule, dtype):
    info = np.finfo(dtype)
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, info.max, -info.max, info.tiny, info.smallest_subnormal, -1.0]
    p, s, g = (np.ascontiguousarray(x.ravel()) for x in np.meshgrid(*[np.array(special, dtype)] * 3))
    with np.errstate(all="ignore"):
        expected = by_hand(rule, p.copy(), s.copy(), [g], {}, 0.0)
        clipped = by_hand(rule, p.copy(), s.copy(), [g], {"clip_value": 0.5, "weight_decay": 0.1}, 0.0)
    for backend in BACKENDS:
        for options, (want_p, want_s) in (
            ({}, expected),
            ({"clip_value": 0.5, "weight_decay": 0.1}, clipped),
        ):
            q, t = p.copy(), s.copy()
            fm.step(q, None if rule == "sgd" else t, g, rule=rule, lr=LR, momentum=MOMENTUM, backend=backend, **options)
            assert_same_bits(q, want_p)
            assert_same_bits(t, want_s)


@pytest.mark.parametrize("rule", RULES)
def test_float32_arithmetic_stays_in_float32(rule):
    """Check that no Python float or literal makes the compiled arithmetic double, which would change these bits."""
    p, s, g = random_arrays(4096, 3, np.float32)
    double = update(rule, *(x.astype(np.float64) for x in (p, s, g)), np.float64, lr=0.1, momentum=0.9)[0]
    single = update(rule, p, s, g, np.float32, lr=0.1, momentum=0.9)[0]
    assert (double.astype(np.float32) != single).mean() > 0.02  # otherwise the next check could not fail
    fm.step(p, None if rule == "sgd" else s, g, rule=rule, lr=0.1, momentum=0.9)
    assert_same_bits(p, single)


@pytest.mark.parametrize("rule", [rule for rule in RULES if "ema" in rule])
def test_one_minus_beta_is_formed_in_double(rule):
    p, s, g = (np.ones(3, np.float32) for _ in range(3))
    fm.step(p, s, g, rule=rule, lr=0.1, momentum=0.999)
    right = np.float32(0.999) + np.float32(1 - 0.999)
    assert_same_bits(s, np.full(3, right))
    assert np.float32(1) - np.float32(0.999) != np.float32(1 - 0.999)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", RULES)
def test_nan_comes_out_where_numpy_has_one_and_its_sign_and_payload_are_left_open(rule, dtype):
    """An operation of two NaNs returns either, and compilers may exchange its operands; all other bits are fixed."""
    words = np.dtype(f"u{np.dtype(dtype).itemsize}").type
    quiet, sign = words(np.array(np.nan, dtype).view(words)), words(1) << words(8 * np.dtype(dtype).itemsize - 1)
    special = np.array([quiet, quiet | words(7), quiet | sign, quiet | sign | words(5)], words).view(dtype)
    values = np.concatenate([special, np.array([1.0, -2.0, 0.0], dtype)])
    p, s, g = (np.ascontiguousarray(x.ravel()) for x in np.meshgrid(*[values] * 3))
    assert len({*special.view(words).tolist()}) == 4
    want = by_hand(rule, p.copy(), s.copy(), [g], {}, 0.0)
    for backend in BACKENDS:
        q, t = p.copy(), s.copy()
        fm.step(q, None if rule == "sgd" else t, g, rule=rule, lr=LR, momentum=MOMENTUM, backend=backend)
        for found, expected in zip((q, t), want, strict=True):
            are_nan = np.isnan(expected)
            assert are_nan.any() or (rule == "sgd" and expected is want[1])
            np.testing.assert_array_equal(np.isnan(found), are_nan)
            np.testing.assert_array_equal(found.view(words)[~are_nan], expected.view(words)[~are_nan])
