"""Rules, their values and their arrays for tests of what runs inside compiled code."""

import numpy as np
import pytest

import fastmomentum as fm
from tests.helpers.reference import DTYPES, RULES, as_state
from tests.helpers.rules import ADAPTIVE

CHAIN = fm.chain(
    fm.stages.clip_value(0.5), fm.stages.weight_decay(0.1), "pytorch", fm.stages.decoupled_weight_decay(0.2)
)


VALUES = {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "beta": 0.99, "eps": 1e-8}


def given(rule):
    """Return a value for each setting of the rule, but for those with defaults."""
    return {name: VALUES[name] for name in rule.parameters if name in VALUES}


def rule_arrays(rule, size, dtype, seed=0):
    """Return p, the state slots (none is negative) and g."""
    rng = np.random.default_rng(seed)
    slots = [np.abs(rng.standard_normal(size)) for _ in rule.state]
    return [np.asarray(x, dtype) for x in (rng.standard_normal(size), *slots, rng.standard_normal(size))]


def stepped(rule, arrays, steps=1):
    """Return p and the state slots after steps of the NumPy backend, all with one gradient."""
    p, *state, g = (array.copy() for array in arrays)
    for _ in range(steps):
        fm.step(p, as_state(state), g, rule=rule, backend="numpy", **{"lr": 0.1} | given(rule))
    return [p, *state]


ALL = [*(fm.rules.find(name) for name in RULES), CHAIN, ADAPTIVE]


every_rule = pytest.mark.parametrize("rule", ALL, ids=lambda rule: str(rule.name or "chain"))


every_dtype = pytest.mark.parametrize("dtype", DTYPES)
