"""Rules on exact fractions, and closed forms."""

from fractions import Fraction

import numpy as np
import pytest

import fastmomentum as fm
from tests.helpers.reference import DTYPES, RULES, assert_same_bits, update
from tests.helpers.runs import descend

THIRD, MU = Fraction(1, 3), Fraction(9, 10)


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_on_fractions_is_exact(rule):
    record = fm.rules.find(rule)
    p, s, g = Fraction(5, 7), Fraction(-2, 3), Fraction(11, 13)
    given = {"lr": THIRD, "momentum": MU, "momentum_next": MU, "dampening": Fraction(0)}
    hyper = [
        1 - MU if name == "keep" and "ema" in rule else Fraction(1) if name == "keep" else given[name]
        for name in record.hyper
    ]
    for _ in range(4):
        state = () if rule == "sgd" else (s,)
        expected = update(rule, p, s, g, Fraction, lr=THIRD, momentum=MU)
        found = record.update(p, *state, g, *hyper)
        assert found == (expected[0], *((expected[1],) if state else ()))
        p, s, g = *expected, g - THIRD


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", RULES)
def test_kernels_agree_with_exact_fractions_where_floats_are_exact(rule, dtype):
    """Check kernels on dyadic numbers with few bits, for which no operation rounds."""
    p, s, g = Fraction(5, 4), Fraction(-3, 2), Fraction(7, 8)
    arrays = [np.full(5, float(x), dtype) for x in (p, s, g)]
    for _ in range(3):
        p, s = update(rule, p, s, g, Fraction, lr=Fraction(1, 2), momentum=Fraction(1, 4))
        fm.step(arrays[0], None if rule == "sgd" else arrays[1], arrays[2], rule=rule, lr=0.5, momentum=0.25)
        assert [Fraction(float(x)) for x in arrays[0]] == [p] * 5
        assert [Fraction(float(x)) for x in arrays[1]] == [s] * 5


def test_constant_gradient_gives_the_geometric_sum():
    mu, g = 0.75, np.array([1.0, -2.0, 0.5])
    p = np.zeros(3)
    opt = fm.Momentum(p, lr=0.1, momentum=mu)
    for k in range(1, 40):
        opt.step(g)
        np.testing.assert_allclose(opt.velocity, g * (1 - mu**k) / (1 - mu), rtol=4e-16 * k)  # k roundings


def quadratic(rule, steps=60, lr=lambda t: 0.05, momentum=0.8):
    opt = fm.Momentum(np.array([10.0, 1.0]), rule=rule, lr=lr, momentum=momentum)
    return descend(opt, steps, np.array([1.0, 10.0]))


def test_classical_and_pytorch_agree_at_constant_lr_and_part_when_it_changes():
    assert abs(quadratic("classical") - quadratic("pytorch")).max() < 1e-13  # 60 steps from 10.0
    halved = [quadratic(rule, lr=lambda t: 0.05 if t < 5 else 0.025) for rule in ("classical", "pytorch")]
    assert abs(halved[0][:5] - halved[1][:5]).max() < 1e-13
    assert abs(halved[0][5] - halved[1][5]).max() > 0.1  # the old velocity carries the old lr


def test_heavy_ball_is_classical():
    assert abs(quadratic("heavy_ball") - quadratic("classical")).max() < 1e-13


def test_nesterov_positions_is_classical_nesterov_at_constant_lr_and_momentum():
    assert abs(quadratic("nesterov_positions") - quadratic("classical_nesterov")).max() < 1e-13
    assert abs(quadratic("nesterov_positions") - quadratic("classical")).max() > 0.1


def test_ema_is_pytorch_with_lr_scaled():
    scaled = quadratic("ema", lr=lambda t: 0.05 / (1 - 0.8))
    assert abs(scaled - quadratic("pytorch")).max() < 1e-13


def test_zero_lr_moves_nothing_but_the_velocity():
    p, v, g = np.array([1.0, -2.0]), np.zeros(2), np.array([3.0, 4.0])
    fm.step(p, v, g, lr=0.0, momentum=0.5)
    assert_same_bits(p, np.array([1.0, -2.0]))
    assert_same_bits(v, g)
