"""Schedules against torch, exact fractions, loops by hand, and the formulas that they print."""

import copy
import math
import pickle
from dataclasses import FrozenInstanceError
from decimal import Decimal, localcontext
from fractions import Fraction
from itertools import chain, count, islice

import numpy as np
import pytest
import torch

import fastmomentum as fm
from fastmomentum.schedules.base import Linear, Schedule
from fastmomentum.schedules.curves import Constant, Cosine, Cycle, Exponential, Step, WarmRestarts, one_cycle
from fastmomentum.schedules.sequences import Chebyshev, Nesterov, NesterovSimple, Sutskever
from tests.helpers.reference import DTYPES, assert_same_bits

NAN, INF = float("nan"), float("inf")
STEPS = 1000


def line(start, end, steps):
    """Yield a linear schedule in exact fractions."""
    start, end = Fraction(start), Fraction(end)
    return (start + (end - start) * min(Fraction(t, steps), 1) for t in count())


def arc(start, end, share):
    """Return half a cosine as the square of another cosine."""
    return end + (start - end) * math.cos(math.pi * share / 2) ** 2


def restarts(start, end, period, growth):
    while True:
        yield from (arc(start, end, u / period) for u in range(period))
        period *= growth


def staircase(start, factor, every):
    value = Fraction(start)
    while True:
        yield from [value] * every
        value *= Fraction(factor)


def cycle(start, peak, end, turn, last):
    """Yield a cycle whose peak is on a whole step."""
    yield from (arc(start, peak, t / turn) for t in range(turn))
    yield from (arc(peak, end, t / (last - turn)) for t in range(last - turn))
    while True:
        yield end


def nesterov():
    t = Decimal(1)
    while True:
        with localcontext() as context:
            context.prec = 40
            following = (1 + (1 + 4 * t * t).sqrt()) / 2
            value, t = (t - 1) / following, following
        yield value


def omegas(sigma):
    """Yield ω_t = 2σT_t(σ)/T_{t+1}(σ) in exact fractions, with T_{t+2} = 2σT_{t+1} − T_t."""
    yield Fraction(1)
    low, high = sigma, 2 * sigma * sigma - 1
    while True:
        yield 2 * sigma * low / high
        low, high = high, 2 * sigma * high - low


def quotients(sigma):
    """Yield (ω_t − 1)·ω_{t−1}/ω_t."""
    before = Fraction(1)
    for omega in omegas(sigma):
        yield (omega - 1) * before / omega
        before = omega


SPECTRUM = (1.0, 9.0)  # σ = 5/4
CASES = {
    "constant": (Constant(0.1), (0.1 for _ in count())),
    "linear": (Linear(0.5, 0.9, steps=600), line(0.5, 0.9, 600)),
    "linear down": (Linear(0.95, 0.1, steps=900), line(0.95, 0.1, 900)),
    "cosine": (Cosine(0.1, 0.001, steps=800), (arc(0.1, 0.001, min(t / 800, 1)) for t in count())),
    "cosine up": (Cosine(0.1, 0.7, steps=1), (0.7 if t else 0.1 for t in count())),
    "restarts": (WarmRestarts(0.1, 0.01, period=70), restarts(0.1, 0.01, 70, 1)),
    "restarts that grow": (WarmRestarts(0.1, 0.01, period=30, growth=3), restarts(0.1, 0.01, 30, 3)),
    "exponential": (Exponential(0.1, 0.99), staircase(0.1, 0.99, 1)),
    "exponential up": (Exponential(1e-5, 1.01), staircase(1e-5, 1.01, 1)),
    "step": (Step(0.1, 0.5, every=30), staircase(0.1, 0.5, 30)),
    "cycle": (Cycle(0.02, 0.5, 1e-4, steps=1000), cycle(0.02, 0.5, 1e-4, 299, 999)),
    "cycle that ends": (Cycle(0.9, 0.8, 0.95, steps=500, rise=0.5), cycle(0.9, 0.8, 0.95, 249, 499)),
    "nesterov": (Nesterov(), nesterov()),
    "nesterov, simple": (NesterovSimple(), (Fraction(k - 1, k + 2) for k in count(1))),
    "sutskever": (Sutskever(), ([0.5, 0.75, 1 - Fraction(1, 6), 0.875][t // 250] for t in range(STEPS))),
    "sutskever, capped": (Sutskever(0.8, every=400), ([0.5, 0.75, 0.8][t // 400] for t in range(STEPS))),
    "chebyshev lr": (Chebyshev(*SPECTRUM).lr, (omega / 5 for omega in omegas(Fraction(5, 4)))),
    "chebyshev momentum": (Chebyshev(*SPECTRUM, rule="classical").momentum, (w - 1 for w in omegas(Fraction(5, 4)))),
    "chebyshev momentum, pytorch": (Chebyshev(*SPECTRUM, rule="pytorch").momentum, quotients(Fraction(5, 4))),
    "then": (
        Linear(0.5, 0.9, steps=300).then(Constant(0.99), after=200).then(Step(0.9, 0.5, every=7), after=600),
        chain(islice(line(0.5, 0.9, 300), 200), [0.99] * 400, staircase(0.9, 0.5, 7)),
    ),
    "cut short": (
        Cycle(0.02, 0.5, 1e-4, steps=1000).then(Constant(0.1), after=200),
        chain(islice(cycle(0.02, 0.5, 1e-4, 299, 999), 200), [0.1] * 800),
    ),
    "within": (
        Constant(0.1).then(Constant(0.2).then(Exponential(0.3, 0.5), after=20), after=10),
        (0.1 if t < 10 else 0.2 if t < 30 else 0.3 * 0.5 ** (t - 30) for t in count()),
    ),
    "warm-up": (
        Cosine(0.1, 0.0, steps=900).warmup(100, start=0.01),
        (0.01 + 0.09 * t / 100 if t < 100 else arc(0.1, 0, (t - 100) / 900) for t in count()),
    ),
}
SCHEDULES = {name: schedule for name, (schedule, _) in CASES.items()}
EXPECTED = {name: np.array([float(value) for value in islice(values, STEPS)]) for name, (_, values) in CASES.items()}
each = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


@pytest.mark.parametrize("name", CASES)
def test_a_schedule_is_its_formula(name):
    found = [SCHEDULES[name](t) for t in range(STEPS)]
    assert {type(value) for value in found} == {float}
    assert len(EXPECTED[name]) == STEPS
    # A few roundings, and those of cos(πx), which is right to 1e-16 of its greatest value.
    np.testing.assert_allclose(found, EXPECTED[name], rtol=1e-13, atol=1e-16)


PYTHON = [
    *[("−", "-"), ("·", "*"), ("^", "**"), ("π", "pi"), ("⌊", "floor("), ("⌋", ")"), ("≤", "<="), ("log₂", "log2")],
    *[(" mod ", " % "), (" for ", " if "), (", then ", " else "), ("[", "("), ("]", ")")],
]
IN_WORDS = {
    "restarts that grow": "0.01 + (0.1 − 0.01)·(1 + cos(π·u/T))/2, u steps into a period of T = 30, 90, 270, …",
    "nesterov": "(t_k − 1)/t_(k + 1), t_(k + 1) = (1 + √(1 + 4t_k²))/2, t_0 = 1, k = t",
    "chebyshev lr": "ω_k·2/(9 + 1), ω_0 = 1, ω_k = 2σT_k(σ)/T_(k + 1)(σ), σ = (9 + 1)/(9 − 1), k = t",
    "chebyshev momentum": "ω_k − 1, ω_0 = 1, ω_k = 2σT_k(σ)/T_(k + 1)(σ), σ = (9 + 1)/(9 − 1), k = t",
    "chebyshev momentum, pytorch": (
        "(ω_k − 1)·ω_(k − 1)/ω_k, ω_0 = 1, ω_k = 2σT_k(σ)/T_(k + 1)(σ), σ = (9 + 1)/(9 − 1), k = t"
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_schedule_prints_its_formula(name):
    text = str(SCHEDULES[name])
    if name in IN_WORDS:
        assert text == IN_WORDS[name]
        return
    for mark, python in PYTHON:
        text = text.replace(mark, python)
    names = {"min": min, "cos": math.cos, "pi": math.pi, "floor": math.floor, "log2": math.log2}
    found = [eval(text, names, {"t": t}) for t in range(STEPS)]
    np.testing.assert_allclose(found, EXPECTED[name], rtol=1e-12, atol=1e-15)


def test_formulas_read_as_the_field_writes_them():
    assert str(Linear(0.5, 0.9, steps=1000)) == "0.5 + (0.9 − 0.5)·min(t/1000, 1)"
    assert str(Sutskever(0.99)) == "min(1 − 2^(−1 − log₂(⌊t/250⌋ + 1)), 0.99)"
    assert str(Nesterov().warmup(5)).endswith("t_0 = 1, k = (t − 5)")
    assert str(WarmRestarts(1.0, 0.0, 2, growth=2).warmup(5)).endswith("T = 2, 4, 8, … from (t − 5) = 0")


def torch_s(make, lr=0.1, momentum=None, steps=STEPS):
    """Return the learning rates (and momenta) of torch's scheduler, step by step."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr, momentum=momentum or 0.0)
    scheduler, found = make(optimizer), []
    for t in range(steps):
        found.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]))
        optimizer.step()
        if t < steps - 1:
            scheduler.step()
    lrs, momenta = np.array(found).T
    return lrs if momentum is None else (lrs, momenta)


of_torch = torch.optim.lr_scheduler


@pytest.mark.parametrize(
    ("schedule", "make"),
    [
        (Linear(0.02, 0.08, steps=700), lambda opt: of_torch.LinearLR(opt, 0.2, 0.8, total_iters=700)),
        (Cosine(0.1, 0.003, steps=999), lambda opt: of_torch.CosineAnnealingLR(opt, 999, 0.003)),
        (WarmRestarts(0.1, 0.01, 70), lambda opt: of_torch.CosineAnnealingWarmRestarts(opt, 70, eta_min=0.01)),
        (WarmRestarts(0.1, 0.0, 30, 2), lambda opt: of_torch.CosineAnnealingWarmRestarts(opt, 30, 2)),
        (Exponential(0.1, 0.99), lambda opt: of_torch.ExponentialLR(opt, 0.99)),
        (Step(0.1, 0.7, every=30), lambda opt: of_torch.StepLR(opt, 30, 0.7)),
    ],
    ids=["LinearLR", "CosineAnnealingLR", "WarmRestarts", "growing WarmRestarts", "ExponentialLR", "StepLR"],
)
def test_schedule_agrees_with_torch(schedule, make):
    # torch multiplies from step to step: a thousand roundings of 1e-16.
    np.testing.assert_allclose([schedule(t) for t in range(STEPS)], torch_s(make), rtol=1e-11, atol=1e-14)


def test_warm_up_is_torch_s_linear_then_another():
    def make(optimizer):
        parts = [of_torch.LinearLR(optimizer, 0.1, 1.0, total_iters=100), of_torch.ExponentialLR(optimizer, 0.99)]
        return of_torch.SequentialLR(optimizer, parts, milestones=[100])

    schedule = Exponential(0.1, 0.99).warmup(100, start=0.01)
    np.testing.assert_allclose([schedule(t) for t in range(STEPS)], torch_s(make), rtol=1e-11)


@pytest.mark.parametrize("rise", [0.3, 0.1237, 0.77777])  # the peak on a step, and between two
def test_one_cycle_is_torch_s(rise):
    lr, momentum = torch_s(lambda opt: of_torch.OneCycleLR(opt, 0.5, STEPS, pct_start=rise), momentum=0.9)
    cycle = one_cycle(0.5, steps=STEPS, rise=rise)
    np.testing.assert_allclose([cycle.lr(t) for t in range(STEPS)], lr, rtol=1e-10)
    np.testing.assert_allclose([cycle.momentum(t) for t in range(STEPS)], momentum, rtol=1e-13)


def test_one_cycle_takes_torch_s_options():
    def make(opt):
        return of_torch.OneCycleLR(
            opt, 2.0, STEPS, base_momentum=0.7, max_momentum=0.9, div_factor=10.0, final_div_factor=100.0
        )

    lr, momentum = torch_s(make, momentum=0.9)
    cycle = one_cycle(2.0, steps=STEPS, start_ratio=10, end_ratio=100, low_momentum=0.7, high_momentum=0.9)
    np.testing.assert_allclose([cycle.lr(t) for t in range(STEPS)], lr, rtol=1e-12)
    np.testing.assert_allclose([cycle.momentum(t) for t in range(STEPS)], momentum, rtol=1e-13)


def test_learning_rate_and_momentum_of_one_cycle_are_in_opposite_phase():
    lr, momentum = (np.diff([part(t) for t in range(STEPS)]) for part in one_cycle(1.0, steps=STEPS))
    assert (np.sign(lr) == -np.sign(momentum)).all()
    assert (np.sign(lr[:299]) == 1).all()
    assert (np.sign(lr[299:]) == -1).all()


def test_nesterov_s_sequence_is_exact_at_late_steps():
    with localcontext() as context:
        context.prec = 40
        t = Decimal(1)
        for k in range(100_001):
            following = (1 + (1 + 4 * t * t).sqrt()) / 2
            if k < 3000 or k % 10_000 == 0:  # 255 is the last step that uses the recurrence
                assert abs(Decimal(Nesterov()(k)) - (t - 1) / following) < Decimal("3e-16"), k
            t = following


@pytest.mark.parametrize("k", [10**6, 10**9, 10**15, 2**62])
def test_nesterov_s_sequence_has_its_asymptotic_form_far_out(k):
    # 1 − μ_k = 3/k·(1 + O(log k/k)), from t_k = k/2 + log(k)/4 + O(1).
    assert 1 - Nesterov()(k) == pytest.approx(3 / k, rel=20 / k * math.log(k), abs=2e-16)


HELD = {
    "linear": 0.9,
    "linear down": 0.1,  # 0.95 + (0.1 − 0.95) is less
    "cosine": 0.001,
    "cosine up": 0.7,
    "cycle": 1e-4,
    "cycle that ends": 0.95,
    "sutskever": 0.999,
    "sutskever, capped": 0.8,
    "warm-up": 0.0,
}


@pytest.mark.parametrize("name", HELD)
def test_beyond_its_end_a_schedule_holds_its_last_value(name):
    assert [SCHEDULES[name](t) for t in (10**6, 2**62)] == [HELD[name]] * 2


def test_half_cosines_begin_exactly_where_they_say():
    for schedule in (Cosine(0.1, 0.7, steps=9), WarmRestarts(0.1, 0.7, period=5), Cycle(0.1, 0.7, 0.0, steps=9)):
        assert schedule(0) == 0.1
    assert WarmRestarts(0.1, 0.7, period=5)(10) == 0.1


def test_schedule_is_infinite_beyond_double_precision():
    assert Exponential(1.0, 2.0)(1024) == Step(1.0, 2.0, every=2)(2048) == INF
    assert Exponential(1.0, 2.0)(1023) == Step(1.0, 2.0, every=2)(2047) == 2.0**1023
    assert Exponential(-1.0, 2.0)(5000) == -INF
    assert Exponential(1.0, 0.5)(2**62) == 0.0


def test_schedule_is_finite_when_only_its_power_overflows():
    for schedule in (Exponential(0.0, 2.0), Step(0.0, 2.0, every=1)):
        assert schedule(5000) == schedule(2**62) == 0.0
    assert Exponential(1e-300, 10.0)(400) == pytest.approx(1e100, rel=1e-13)
    assert Exponential(1e300, 0.1)(400) == pytest.approx(1e-100, rel=1e-12)


@each
def test_schedule_can_be_called_in_any_order(schedule):
    forwards = [schedule(t) for t in range(STEPS)]
    order = np.random.default_rng(0).permutation(STEPS)
    assert [schedule(t) for t in order] == [forwards[t] for t in order]  # NumPy's integers, too
    assert {type(schedule(t)) for t in order} == {float}
    assert schedule(np.uint8(200)) == schedule(np.array(200)) == forwards[200]


@each
@pytest.mark.parametrize("step", [-1, 1.5, True, "1", None, NAN, 2**63, [1], np.timedelta64(1), np.array([1, 2])])
def test_schedule_refuses_what_is_no_step(schedule, step):
    kind = ValueError if isinstance(step, int) and not isinstance(step, bool) else TypeError
    with pytest.raises(kind, match="step: expected a whole number from 0 to .*; got"):
        schedule(step)


@each
def test_schedule_can_be_compared_hashed_and_copied(schedule):
    again = eval(repr(schedule), vars(fm.schedules))
    copies = [again, copy.deepcopy(schedule), *(pickle.loads(pickle.dumps(schedule, protocol)) for protocol in (2, 5))]
    for found in copies:
        assert found == schedule
        assert hash(found) == hash(schedule)
        assert (repr(found), str(found)) == (repr(schedule), str(schedule))
        assert [found(t) for t in range(0, STEPS, 37)] == [schedule(t) for t in range(0, STEPS, 37)]
    assert sum(schedule == other for other in SCHEDULES.values()) == 1
    for name in vars(schedule):
        with pytest.raises(FrozenInstanceError):
            setattr(schedule, name, 1)


def test_fields_are_kept_as_python_s_own_numbers():
    found = Linear(np.float32(0.5), -0.0, steps=np.array(8, np.int16))
    assert repr(found) == "Linear(start=0.5, end=0.0, steps=8)"
    assert found == Linear(0.5, 0, 8)


def test_chebyshev_is_the_theory_s_own():
    assert fm.schedules.Chebyshev is fm.theory.Chebyshev
    assert Chebyshev(1, 9).lr == Chebyshev(1.0, 9.0).lr
    another = fm.Rule(lambda p, v, g, lr, mu: (p - lr * g, v), name="pytorch")
    for rule in (another, "ema", fm.chain(fm.stages.scale(2.0), "pytorch")):
        with pytest.raises(ValueError, match="rule: expected one of heavy_ball, classical, pytorch; got "):
            Chebyshev(1.0, 9.0, rule=rule)
    assert Chebyshev(1.0, 9.0, rule=fm.rules.pytorch) == Chebyshev(1.0, 9.0, rule="pytorch")
    assert Chebyshev(1.0, 9.0).lr != Chebyshev(1.0, 9.5).lr
    assert Chebyshev(1.0, 9.0).lr != Chebyshev(1.0, 9.0).momentum
    assert eval(repr(Chebyshev(1.0, 9.0, rule="pytorch")), vars(fm.schedules)) == Chebyshev(1, 9, rule="pytorch")


def test_the_bound_of_chebyshev_is_one_over_its_polynomial():
    low, high = Fraction(1), Fraction(5, 4)
    for t in range(100):
        assert Chebyshev(*SPECTRUM).bound(t) == pytest.approx(float(1 / low), rel=1e-13)
        low, high = high, 2 * Fraction(5, 4) * high - low


@pytest.mark.parametrize("rule", ["heavy_ball", "classical", "pytorch"])
def test_chebyshev_of_one_curvature_needs_one_step(rule):
    of = Chebyshev(4.0, 4.0, rule=rule)
    assert [(of.lr(t), of.momentum(t)) for t in (0, 1, 10**9)] == [(0.25, 0.0)] * 3
    assert [of.bound(t) for t in (0, 1)] == [1.0, 0.0]


GOOD = {
    Constant: {"number": 0.1},
    Linear: {"start": 0.5, "end": 0.9, "steps": 10},
    Cosine: {"start": 0.5, "end": 0.9, "steps": 10},
    WarmRestarts: {"start": 0.5, "end": 0.9, "period": 10, "growth": 2},
    Exponential: {"start": 0.5, "factor": 0.9},
    Step: {"start": 0.5, "factor": 0.9, "every": 10},
    Cycle: {"start": 0.1, "peak": 0.5, "end": 0.0, "steps": 10, "rise": 0.3},
    Sutskever: {"limit": 0.9, "every": 10},
    Constant(0.1).then: {"second": Constant(0.2), "after": 10},
    Constant(0.1).warmup: {"steps": 10, "start": 0.0},
    one_cycle: {"peak": 0.5, "steps": 10}
    | {"rise": 0.3, "start_ratio": 25.0, "end_ratio": 1e4, "low_momentum": 0.85, "high_momentum": 0.95},
}
FINITE = [NAN, INF, "0.1", None, True, 1j, [0.1]]
WHOLE = [0, -1, 1.5, 10.0, True, "1", None, 2**63]
BAD = {
    **dict.fromkeys(("number", "start", "end", "peak"), FINITE),
    **dict.fromkeys(("steps", "period", "growth", "every", "after"), WHOLE),
    **{name: [*FINITE, 0.0, -0.5] for name in ("factor", "start_ratio", "end_ratio")},
    **{name: [*FINITE, -0.1, 1.1] for name in ("limit", "low_momentum", "high_momentum")},
    "rise": [*FINITE, 0.0, 1.0, -0.1, 0.1],  # 0.1 of 10 steps is one step, so that nothing rises
    "second": [0.2, None, abs, Constant],
}


@pytest.mark.parametrize(
    ("make", "name", "value"),
    [
        pytest.param(make, name, value, id=f"{make.__name__}-{name}-{value}")
        for make, good in GOOD.items()
        for name in good
        for value in BAD[name]
    ],
)
def test_a_bad_argument_is_refused_with_its_name_and_what_was_expected(make, name, value):
    make(**GOOD[make])
    with pytest.raises((TypeError, ValueError), match=f"^{name}: expected .*; got "):
        make(**GOOD[make] | {name: value})


def test_one_cycle_refuses_momenta_in_the_wrong_order():
    with pytest.raises(ValueError, match="low_momentum: expected a number up to high_momentum, 0.5; got 0.9"):
        one_cycle(0.5, steps=10, low_momentum=0.9, high_momentum=0.5)
    assert one_cycle(0.5, steps=10, low_momentum=0.9, high_momentum=0.9).momentum(5) == 0.9


def test_a_peak_that_is_no_learning_rate_is_refused():
    with pytest.raises(ValueError, match="peak: expected a finite number > 0; got -1"):
        one_cycle(-1.0, steps=10)


def quadratic():
    """Return the diagonal of a badly conditioned Hessian, and a start."""
    return np.geomspace(1e-4, 1.0, 40), np.random.default_rng(1).standard_normal(40)


def fista(h, x, steps):
    """Yield x_k and y_{k+1} of Beck and Teboulle 2009, equations 4.1 to 4.3, with L = 1, for k = 1, 2, …"""
    y, t = x, 1.0
    for _ in range(steps):
        new = y - h * y
        following = (1 + math.sqrt(1 + 4 * t * t)) / 2
        y, x, t = new + (t - 1) / following * (new - x), new, following
        yield x, y


def test_with_nesterov_positions_nesterov_s_sequence_is_fista():
    h, start = quadratic()
    p = start.copy()
    opt = fm.Momentum(p, rule="nesterov_positions", lr=1.0, momentum=Nesterov())
    found = []
    for k in range(1, STEPS + 1):
        opt.step(h * p)
        found.append((opt.state.copy(), p.copy()))
        assert (h * opt.state**2).sum() / 2 <= 2 * (start**2).sum() / (k + 1) ** 2  # their theorem 4.4
    np.testing.assert_allclose(found, list(fista(h, start, STEPS)), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "settings",
    [
        {"rule": "classical", "nesterov": True},
        {"rule": "pytorch", "nesterov": True},
        {"rule": "classical", "lookahead": True},
        {"rule": "pytorch", "lookahead": True},
    ],
    ids=str,
)
def test_with_a_velocity_fista_is_the_sequence_a_step_later(settings):
    h, start = quadratic()
    momentum = Constant(0.0).then(Nesterov(), after=1)
    if "nesterov" in settings:
        settings = {**settings, "momentum_next": lambda step: momentum(step + 1)}
    opt = fm.Momentum(start.copy(), lr=1.0, momentum=momentum, **settings)
    found = []
    for _ in range(STEPS):
        opt.step(h * opt.point)
        found.append(opt.point.copy())
    np.testing.assert_allclose(found, [y for _, y in fista(h, start, STEPS)], rtol=0, atol=1e-12)


def noisy(p, steps):
    rng = np.random.default_rng(2)
    return (p + rng.standard_normal(p.size, np.float32) for _ in range(steps))


@pytest.mark.parametrize("name", ["linear", "then", "nesterov", "sutskever", "chebyshev momentum, pytorch"])
def test_a_run_stopped_and_resumed_with_its_schedules_has_the_same_bits(name, tmp_path):
    settings = {"lr": Cosine(0.1, 0.001, steps=500).warmup(150), "momentum": SCHEDULES[name]}
    p, q = (np.linspace(-1, 1, 33, dtype=np.float32) for _ in range(2))
    straight, resumed = (fm.Momentum(array, rule="classical", nesterov=True, **settings) for array in (p, q))
    for t, (one, two) in enumerate(zip(noisy(p, 700), noisy(q, 700))):
        if t in (1, 100, 333, 650):
            resumed.save(tmp_path / "run.npz")
            again = pickle.loads(pickle.dumps(settings))  # as another process has them
            resumed = fm.Momentum.load(tmp_path / "run.npz", q, **again)
        assert (resumed.lr, resumed.momentum) == (settings["lr"](t), settings["momentum"](t))
        straight.step(one)
        resumed.step(two)
        assert_same_bits(q, p)
    assert_same_bits(resumed.velocity, straight.velocity)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("settings", "last", "message"),
    [
        ({"lr": lambda t: NAN if t == 7 else 0.1}, 7, "lr: expected a finite number >= 0; got nan"),
        ({"lr": 0.1, "momentum": lambda t: NAN if t == 7 else 0.5}, 7, "momentum: expected .*; got nan"),
        ({"lr": Linear(0.6, 0.0, steps=6).then(Constant(-0.1), after=7)}, 7, "lr: expected .* >= 0; got -0.1"),
        ({"lr": 0.1, "momentum": Linear(0.5, 1.5, steps=14)}, 8, r"momentum: expected a number in \[0, 1\]; got 1.07"),
    ],
    ids=["nan lr", "nan momentum", "negative lr", "momentum above 1"],
)
def test_a_value_out_of_range_is_refused_at_its_step_with_nothing_changed(settings, last, message, dtype):
    p = np.ones(5, dtype)
    opt = fm.Momentum(p, **settings)
    for _ in range(last):
        opt.step(0 * p)
        opt.velocity[:] = p  # so that a change would show
    before = p.copy(), opt.velocity.copy()
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            opt.step(np.ones(5, dtype))
        assert opt.steps == last
        assert_same_bits(p, before[0])
        assert_same_bits(opt.velocity, before[1])
    for name in settings:
        if callable(settings[name]):
            setattr(opt, name, 0.25)
    opt.step(np.ones(5, dtype))
    np.testing.assert_allclose(p, before[0] - opt.lr * (opt.momentum * before[1] + 1), rtol=1e-6)


@pytest.mark.parametrize(("dtype", "last"), [(np.float32, 1), (np.float64, 7)])
def test_a_growing_schedule_is_refused_where_it_leaves_the_arrays_dtype(dtype, last):
    p = np.ones(5, dtype)
    opt = fm.Momentum(p, lr=Exponential(1e-4, 1e45))
    for _ in range(last):
        opt.step(np.zeros(5, dtype))
    with pytest.raises(ValueError, match="lr: expected a finite number >= 0; got .*inf"):
        opt.step(np.ones(5, dtype))
    assert opt.steps == last
    assert (p == 1).all()


def test_fields_of_one_s_own_schedule_are_checked_where_annotations_are_kept_as_text():
    body = """
from __future__ import annotations
from dataclasses import dataclass
@dataclass(frozen=True)
class Mine(Schedule):
    start: float
    every: int
    parts: tuple[float, ...] = ()
    def _value(self, t): return self.start
    def _formula(self, t): return "mine"
"""
    names = {"Schedule": Schedule, "__name__": __name__}
    exec(body, names)
    assert names["Mine"](np.float32(0.5), 3)(7) == 0.5
    for arguments, name in (((NAN, 3), "start"), ((0.5, 0), "every")):
        with pytest.raises(ValueError, match=f"^{name}: expected .*; got "):
            names["Mine"](*arguments)


def test_base_class_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Schedule()


def test_a_cycle_of_one_step_is_refused_by_its_steps():
    with pytest.raises(ValueError, match="steps: expected a whole number >= 2; got 1"):
        Cycle(0.1, 1.0, 0.0, steps=1)


def test_chebyshev_takes_a_copy_of_its_rule():
    rule = pickle.loads(pickle.dumps(fm.rules.heavy_ball))
    assert Chebyshev(1.0, 4.0, rule=rule) == Chebyshev(1.0, 4.0, rule="heavy_ball")
