"""Records of rules, and rules of users."""

import numpy as np
import pytest

import fastmomentum as fm
from tests.helpers.arrays import gradients, random_arrays
from tests.helpers.ids import label
from tests.helpers.quadratics import AGGREGATED
from tests.helpers.reference import (
    ADAPTIVE_RULES,
    BACKENDS,
    DTYPES,
    RULES,
    SUMMING_RULES,
    VARIANTS,
    assert_same_bits,
)


def test_every_rule_has_its_record():
    assert fm.rules.names()[: len(RULES)] == RULES
    ours = [name for name in fm.rules.names() if hasattr(fm.rules, name)]
    assert ours == [
        *RULES,
        *VARIANTS,
        *ADAPTIVE_RULES,
        *SUMMING_RULES,
    ]  # what is not listed there no test of bits takes up
    for name in RULES:
        rule = fm.rules.find(name)
        assert rule is getattr(fm.rules, name)
        assert rule.name == name
        assert rule.formula
        rest = {"sgd": (), "heavy_ball": ("param",), "nesterov_positions": ("param",)}.get(name, ("zero",))
        assert tuple(kind for _, kind in rule.state) == rest
        assert rule.takes_prox == (rest == ("param",))


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"hyper": "lr"}, "hyper: expected a sequence of names"),
        ({"state": "velocity"}, "state: expected a sequence of pairs"),
        ({"state": ("velocity", "zero")}, "state: expected a sequence of pairs"),
        ({"state": (("v", "zero"), ("v", "zero"))}, "state: expected slots with names of their own"),
        ({"derived": {"keep": lambda momentum: momentum}}, "derived: expected names among lr, momentum; got 'keep'"),
        ({"defaults": {"beta": 0.5}}, "defaults: expected names among"),
        ({"defaults": {"momentum": 2.0}}, r"defaults: expected for momentum a number in \[0, 1\]; got 2.0"),
        ({"defaults": {"momentum": "beta"}}, "defaults: expected for momentum a number or another name"),
        ({"defaults": {"momentum": "momentum"}}, "defaults: expected for momentum a number or another name"),
        ({"ranges": {"beta": (0, 1)}}, "ranges: expected names among"),
        ({"name": 5}, "name: expected a str"),
    ],
    ids=label,
)
def test_rule_refuses_names_that_do_not_fit(record, reason):
    with pytest.raises((TypeError, ValueError), match=reason):
        fm.Rule(literal_free, **record)


def python_helper(x):
    return x + x


def test_rule_that_cannot_be_compiled_is_refused_with_a_reason():
    rule = fm.Rule(lambda p, v, g, lr, mu: (p - lr * python_helper(g), v + mu))
    p = np.ones(3)
    with pytest.raises(TypeError, match="the rule cannot be compiled"):
        fm.step(p, np.zeros(3), np.ones(3), rule=rule, lr=0.1)
    assert (p == 1).all()


def test_rule_refuses_an_unknown_initial_state():
    with pytest.raises(ValueError, match="one"):
        fm.Rule(literal_free, state=(("velocity", "one"),))


def literal_free(p, v, g, lr, mu):
    v = mu * v + g
    return p - lr * v, v


def adam_like(p, m, s, g, lr, beta1, keep1, beta2, keep2, eps):
    m = beta1 * m + keep1 * g
    s = beta2 * s + keep2 * g * g
    return p - lr * m / (np.sqrt(s) + eps), m, s


AGGMO = fm.Rule(**AGGREGATED | {"defaults": {}})
ADAM = fm.Rule(
    adam_like,
    state=(("first_moment", "zero"), ("second_moment", "zero")),
    hyper=("lr", "momentum", "keep1", "beta2", "keep2", "eps"),
    derived={"keep1": lambda momentum: 1 - momentum, "keep2": lambda beta2: 1 - beta2},
    defaults={"beta2": 0.999, "eps": 1e-8},
    ranges={"beta2": (0.0, 1.0), "eps": (0.0, 1.0)},
    name="adam_like",
)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", [ADAM, AGGMO], ids=label)
@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1, "clip_value": 0.5}], ids=["plain", "options"])
def test_rule_of_two_slots_has_the_same_bits_on_every_backend(rule, dtype, options):
    (start,), grads = random_arrays(129, 1, dtype, seed=1), gradients(129, 4, dtype)
    settings = {"rule": rule, "lr": 0.1, "momentum": 0.9, "beta2": 0.99, **options}
    found = []
    for backend in BACKENDS:
        p, state = start.copy(), (np.zeros(129, dtype), np.zeros(129, dtype))
        a, b = start[:40].copy(), start[40:].copy()
        opt = fm.Momentum([a, b], **settings, backend=backend)
        for g in grads:
            fm.step(p, state, g, backend=backend, **settings)
            opt.step([g[:40], g[40:]])
        found.append((p, *state))
        assert_same_bits(np.concatenate([a, b]), p)
        for slot in range(2):
            assert_same_bits(np.concatenate([each[slot] for each in opt.state]), state[slot])
    for one, other in zip(*found, strict=True):
        assert_same_bits(one, other)
    one = dtype(1 - 0.9), dtype(1 - 0.99)
    if rule is ADAM and not options:
        p, m, s = start.copy(), np.zeros(129, dtype), np.zeros(129, dtype)
        for g in grads:
            m = dtype(0.9) * m + one[0] * g
            s = dtype(0.99) * s + one[1] * g * g
            p = p - dtype(0.1) * m / (np.sqrt(s) + dtype(1e-8))
        assert_same_bits(found[0][0], p)


def test_a_registered_rule_is_known_by_its_name():
    fm.rules.register(ADAM)
    fm.rules.register(ADAM)  # again changes nothing
    p, state = np.ones(3), (np.zeros(3), np.zeros(3))
    fm.step(p, state, np.ones(3), rule="adam_like", lr=0.1)
    assert (p < 1).all()
    assert fm.Momentum(np.ones(3), rule="adam_like", lr=0.1).state[0].shape == (3,)
    with pytest.raises(ValueError, match="adam_like"):
        fm.rules.register(fm.Rule(literal_free, name="adam_like"))
    with pytest.raises(ValueError, match="name"):
        fm.rules.register(fm.Rule(literal_free))
    with pytest.raises(TypeError, match="rule"):
        fm.rules.register(literal_free)


def test_hyper_parameters_of_a_users_rule_are_checked():
    p, state, g = np.ones(3), (np.zeros(3), np.zeros(3)), np.ones(3)
    with pytest.raises(ValueError, match=r"beta2.*\[0, 1\].*1.5"):
        fm.step(p, state, g, rule=ADAM, lr=0.1, beta2=1.5)
    with pytest.raises(TypeError, match="beta2.*needs"):
        fm.step(p, state, g, rule=AGGMO, lr=0.1)
    with pytest.raises(TypeError, match="tuple of 2 arrays"):
        fm.step(p, state[0], g, rule=ADAM, lr=0.1)
    assert (p == 1).all()


def swap(p, v, g, lr, mu):
    return v - lr * g, p


def test_rule_can_return_its_arguments_in_another_order():
    found = []
    for backend in BACKENDS:
        p, v = np.arange(5.0), np.arange(5.0) + 10
        fm.step(p, v, np.ones(5), rule=fm.Rule(swap), lr=0.5, backend=backend)
        found.append((p.tolist(), v.tolist()))
    assert found[0] == found[1] == ([9.5, 10.5, 11.5, 12.5, 13.5], [0.0, 1.0, 2.0, 3.0, 4.0])


def test_a_chain_is_a_rule():
    chained = fm.chain(fm.stages.scale(0.5), ADAM)
    assert isinstance(chained, fm.Rule)
    assert chained.slots == ADAM.slots
