"""Averages of the parameters in the rule's own pass: they leave the rule alone, and are those of its iterates."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from oracles import assert_same_bits

import fastmomentum as fm

DTYPES = (np.float32, np.float64)
CHAIN = fm.chain(fm.stages.clip_value(0.5), "pytorch", fm.stages.decoupled_weight_decay(0.1))
RULES = ["sgd", "pytorch", "heavy_ball", "lion", "aggmo", CHAIN]
SIZE, STEPS = 33, 12


def gradients(dtype):
    return np.random.default_rng(4).standard_normal((STEPS, SIZE)).astype(dtype)


def start(dtype):
    return np.linspace(-1, 1, SIZE).astype(dtype)


def slots(opt):
    return () if opt.state is None else opt.state if isinstance(opt.state, tuple) else (opt.state,)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", ["numpy", "cpu"])
@pytest.mark.parametrize("decay", [None, 0.9])
def test_an_average_has_the_bits_of_its_formula_and_leaves_the_rule_alone(rule, dtype, backend, decay):
    plain, p = start(dtype), start(dtype)
    settings = {"lr": 0.1, "backend": backend, "weight_decay": 0.05}
    alone = fm.Momentum(plain, rule=rule, **settings)
    opt = fm.Momentum(p, rule=fm.averaged(rule, decay), **settings)
    average = np.zeros(SIZE, dtype) if decay is None else start(dtype)
    for n, g in enumerate(gradients(dtype), 1):
        alone.step(g)
        opt.step(g)
        step = plain - average
        average = average + (step / dtype(n) if decay is None else dtype(1 - decay) * step)
        own = len(slots(alone))
        assert_same_bits(p, plain)
        for found, wanted in zip(slots(opt), (*slots(alone), average)):
            assert_same_bits(found, wanted)
        assert len(slots(opt)) == own + (2 if decay is None else 1)
        assert decay is not None or (slots(opt)[-1] == n).all()


def test_the_mean_is_the_mean_of_all_iterates_in_fractions():
    rule = fm.averaged("sgd")
    p, average, count, lr = Fraction(2), Fraction(0), Fraction(0), Fraction(1, 3)
    iterates = []
    for n in range(1, 10):
        p, average, count = rule.build()(p, average, count, Fraction(n, 5) - p, lr, Fraction(1))
        iterates.append(p)
        assert average == sum(iterates) / n


def test_the_exponential_average_weighs_iterates_as_its_closed_form_says():
    rule, d = fm.averaged("sgd", 0.75), Fraction(3, 4)
    p = average = Fraction(2)
    wanted = [p]
    for n in range(1, 10):
        p, average = rule.build()(p, average, Fraction(n, 5) - p, Fraction(1, 3), 1 - d)
        wanted.append(p)
    assert average == d**9 * wanted[0] + sum((1 - d) * d ** (9 - t) * wanted[t] for t in range(1, 10))


def test_the_mean_agrees_with_torch():
    module = torch.nn.Linear(SIZE, 1, bias=False, dtype=torch.float64)
    p = start(np.float64)
    with torch.no_grad():
        module.weight[:] = torch.from_numpy(p)
    theirs, swa = (
        torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9),
        torch.optim.swa_utils.AveragedModel(module),
    )
    opt = fm.Momentum(p, rule=fm.averaged("pytorch"), lr=0.1, momentum=0.9)
    for g in gradients(np.float64):
        module.weight.grad = torch.from_numpy(g[None])
        theirs.step()
        swa.update_parameters(module)
        opt.step(g)
    found = swa.module.weight.detach().numpy()[0]
    np.testing.assert_allclose(opt.state[1], found, atol=50 * 2.2e-16 * 4)  # numbers to 4, torch's rounding: test_torch


def test_a_stage_behind_the_rule_acts_before_or_after_the_average_as_it_is_written():
    decay = fm.stages.decoupled_weight_decay(1.0)
    found = []
    for rule in (fm.averaged(fm.chain("sgd", decay)), fm.chain(fm.averaged("sgd"), decay)):
        p = np.array([1.0])
        opt = fm.Momentum(p, rule=rule, lr=0.5)
        opt.step(np.array([1.0]))
        found.append((p[0], opt.state[0][0]))
    assert found == [(0.25, 0.25), (0.25, 0.5)]


def test_the_decay_is_a_hyper_parameter_with_a_default():
    p, average = np.array([1.0]), np.array([1.0])
    rule = fm.averaged("sgd", 0.5)
    fm.step(p, average, np.array([1.0]), rule=rule, lr=1.0)
    assert average[0] == 0.5
    fm.step(p, average, np.array([0.0]), rule=rule, lr=1.0, average_decay=0.75)
    assert average[0] == 0.375


def test_the_first_step_of_the_rule_stays_its_own():
    p, plain = np.ones(2), np.ones(2)
    for array, rule in ((p, fm.averaged("pytorch", 0.9)), (plain, "pytorch")):
        fm.Momentum(array, rule=rule, lr=0.1, dampening=0.5).step(np.ones(2))
    assert_same_bits(p, plain)
    assert p[0] == 0.9


def test_a_count_in_single_precision_stays_where_it_cannot_go_on():
    p, average, count = np.ones(1, np.float32), np.zeros(1, np.float32), np.full(1, 2**24, np.float32)
    fm.step(p, (average, count), np.zeros(1, np.float32), rule=fm.averaged("sgd"), lr=0.1)
    assert count[0] == 2**24
    assert average[0] == 2.0**-24


def test_an_array_that_starts_later_is_averaged_from_its_own_start():
    early, late = np.zeros(1), np.zeros(1)
    opt = fm.Momentum([early, late], rule=fm.averaged("sgd"), lr=1.0)
    for grads in (([1.0], None), ([1.0], None), ([1.0], [1.0])):
        opt.step([g if g is None else np.array(g) for g in grads])
    assert [(state[0][0], state[1][0]) for state in opt.state] == [(-2.0, 3.0), (-1.0, 1.0)]


def test_the_first_mean_is_the_parameter_to_the_bit_however_far_it_went():
    p = np.array([1e8, -1e8])
    opt = fm.Momentum(p, rule=fm.averaged("sgd"), lr=1.0)
    assert not opt.state[0].any()
    opt.step(np.array([1e8 - 0.1, -1e8 + 0.3]))
    assert_same_bits(opt.state[0], p)
    assert abs(p).max() < 1


def test_the_ranges_and_defaults_of_the_rule_stay_its_own():
    p = np.ones(2)
    for rule, setting in (("quasi_hyperbolic", {"nu": 1.5}), ("ema_corrected", {"momentum": 1.0})):
        with pytest.raises(ValueError, match=f"{next(iter(setting))}: expected a number in"):
            fm.Momentum(p, rule=fm.averaged(rule, 0.9), lr=0.1, **setting)
    assert fm.averaged("lion", 0.5).defaults == {"beta2": 0.99, "average_decay": 0.5}


def test_a_form_that_would_leave_the_average_out_is_refused():
    p = np.ones(3)
    with pytest.raises(ValueError, match="no folded Nesterov form"):
        fm.Momentum(p, rule=fm.averaged("pytorch"), lr=0.1, nesterov=True)
    with pytest.raises(ValueError, match="no look-ahead form"):
        fm.Momentum(p, rule=fm.averaged("pytorch"), lr=0.1, lookahead=True)
    for decay, error in ((1.5, ValueError), (float("nan"), ValueError), (True, TypeError), ("lr", TypeError)):
        with pytest.raises(error, match=rf"decay: expected a number in \[0, 1\]; got {decay!r}"):
            fm.averaged("pytorch", decay)
    with pytest.raises(ValueError, match="rule must be one of"):
        fm.averaged("no such rule")


def test_hyper_parameters_on_a_device_are_found_in_all_parts():
    from fastmomentum.backends.cuda.scalars import derived_from

    rule = fm.chain(fm.stages.weight_decay(0.1), fm.averaged(CHAIN, 0.9))
    assert len(rule.hyper) == len(rule.leaves[0].hyper) + sum(len(leaf.hyper) for leaf in rule.leaves[1:])
    found = [rule.hyper[column.column] for column in derived_from(rule, {"lr"})]
    assert found == ["lr", "shrink"]
