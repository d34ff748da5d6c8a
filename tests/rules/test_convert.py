"""fm.convert: a run continues on the same path under another rule."""

from itertools import product

import numpy as np
import pytest

import fastmomentum as fm
from fastmomentum.rules.convert import CONVENTIONS
from tests.helpers.ids import label
from tests.helpers.quadratics import CURVATURES as H
from tests.helpers.quadratics import START
from tests.helpers.reference import DTYPES, LOOKAHEADS, RULES
from tests.helpers.runs import descend

BALL = ("classical", "pytorch", "ema", "heavy_ball")
FOLDED = ("classical_nesterov", "pytorch_nesterov", "ema_nesterov", "nesterov_positions")
LR, MU, SWITCH, STEPS = 0.02, 0.8, 13, 40
EPS = 1e-12


def go_on(params, state, rule, lr, momentum, **settings):
    opt = fm.Momentum(params, rule=rule, lr=lr, momentum=momentum, **settings)
    if state is not None:
        opt.state[...] = state
    return opt


def lr_for(rule, alpha=LR, tau=0.0):
    """Return the lr at which a gradient has the weight alpha."""
    return alpha / (1 - MU if "ema" in rule else 1 - tau if rule == "pytorch" else 1)


@pytest.mark.parametrize("dampening", [0.0, 0.5])
@pytest.mark.parametrize(("source", "target"), [*product(BALL, BALL), *product(FOLDED, FOLDED)])
def test_a_converted_run_continues_on_the_same_trajectory(source, target, dampening):
    if dampening and "pytorch" not in (source, target):
        with pytest.raises(ValueError, match="dampening: expected 0"):
            fm.convert(START, source=source, target=target, lr=LR, momentum=MU, dampening=dampening, param=START)
        return
    tau = {rule: {"dampening": dampening} if rule == "pytorch" else {} for rule in (source, target)}
    lr = lr_for(source, tau=dampening)
    start = fm.Momentum(START.copy(), rule=source, lr=lr, momentum=MU, **tau[source])
    descend(start, SWITCH, H)
    state, rate, mu = fm.convert(
        start.state, source=source, target=target, lr=lr, momentum=MU, dampening=dampening, param=start.params
    )
    other = go_on(start.params.copy(), state, target, rate, mu, **tau[target])
    for one, two in zip(descend(start, STEPS, H), descend(other, STEPS, H), strict=True):
        np.testing.assert_allclose(two, one, rtol=0, atol=EPS)
    assert abs(one).max() > 1e-4  # the run has not ended, so the comparison could have failed
    assert mu == MU


@pytest.mark.parametrize(("source", "target"), list(product(LOOKAHEADS, LOOKAHEADS)))
def test_lookahead_runs_can_be_converted_and_folded(source, target):
    lr = lr_for(source)
    start = fm.Momentum(START.copy(), rule=source, lr=lr, momentum=MU, lookahead=True)
    descend(start, SWITCH, H, lambda opt: opt.point)
    velocity, rate, mu = fm.convert(
        start.state, source=f"{source}_lookahead", target=f"{target}_lookahead", lr=lr, momentum=MU
    )
    explicit = fm.Momentum(start.params.copy(), rule=target, lr=rate, momentum=mu, lookahead=True)
    explicit.velocity[...] = velocity
    explicit.lr = rate  # which recomputes the point
    folded = go_on(start.point.copy(), velocity, f"{target}_nesterov", rate, mu)
    by_name, _, _ = fm.convert(
        start.state, source=f"{source}_lookahead", target=f"{target}_nesterov", lr=lr, momentum=MU
    )
    np.testing.assert_array_equal(by_name, velocity)
    for _ in range(STEPS):
        np.testing.assert_allclose(explicit.point, start.point, rtol=0, atol=EPS)
        np.testing.assert_allclose(folded.params, start.point, rtol=0, atol=EPS)
        for opt, at in ((start, start.point), (explicit, explicit.point), (folded, folded.params)):
            opt.step(H * at)


def test_the_state_of_nesterov_positions_is_the_parameter_behind_the_point():
    explicit = fm.Momentum(START.copy(), rule="classical", lr=LR, momentum=MU, lookahead=True)
    descend(explicit, SWITCH, H, lambda opt: opt.point)
    state, _, _ = fm.convert(
        explicit.state,
        source="classical_lookahead",
        target="nesterov_positions",
        lr=LR,
        momentum=MU,
        param=explicit.point,
    )
    np.testing.assert_allclose(state, explicit.params, rtol=0, atol=EPS)


@pytest.mark.parametrize("dtype", DTYPES)
def test_convert_keeps_lists_dtypes_and_shapes_and_writes_nothing(dtype):
    states = [np.ones((2, 3), dtype), np.ones((), dtype)]
    params = [np.zeros((2, 3), dtype), np.zeros((), dtype)]
    for source, target in product(BALL, BALL):
        found, _, _ = fm.convert(states, source=source, target=target, lr=0.5, momentum=0.5, param=params)
        for new, old in zip(found, states, strict=True):
            assert (new.dtype, new.shape) == (old.dtype, old.shape)
            assert not np.may_share_memory(new, old)
    assert all((s == 1).all() for s in states)


def test_convert_of_sgd_gives_the_initial_state():
    assert fm.convert(None, source="sgd", target="pytorch", lr=0.1, momentum=0.9, param=START)[1:] == (0.1, 0.0)
    np.testing.assert_array_equal(
        fm.convert(None, source="sgd", target="heavy_ball", lr=0.1, momentum=0.9, param=START)[0], START
    )
    assert fm.convert(START, source="classical", target="sgd", lr=0.1, momentum=0.0, param=START) == (None, 0.1, 0.0)
    assert fm.convert(None, source="sgd", target="sgd", lr=0.1, momentum=0.9)[0] is None


def test_a_chain_is_converted_as_its_rule():
    found = fm.convert(
        START, source=fm.chain(fm.stages.scale(2.0), "classical"), target="pytorch", lr=0.5, momentum=0.5
    )
    np.testing.assert_array_equal(found[0], 2 * START)


@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [
        ({"target": "classical_nesterov"}, ValueError, "target: expected a rule of Polyak's method"),
        ({"source": "nesterov_positions", "target": "ema"}, ValueError, "target: expected a rule of Nesterov's method"),
        ({"lr": 0.0}, ValueError, "lr: expected > 0.*displacement over lr"),
        ({"target": "ema", "momentum": 1.0}, ValueError, "takes 0 of it"),
        ({"dampening": 1.0}, ValueError, "takes 0 of it"),
        ({"source": "ema", "momentum": 1.0}, ValueError, "lr: expected > 0"),
        ({"target": "sgd"}, ValueError, "has momentum.*'sgd'"),
        ({"target": "heavy_ball"}, TypeError, "param: expected the parameter.*previous position.*None"),
        ({"target": "heavy_ball", "param": START[:2]}, ValueError, r"state: expected shape \(2,\)"),
        ({"target": "no such"}, ValueError, "no such"),
        ({"source": fm.Rule(lambda p, v, g, lr, mu: (p - lr * g, mu * v))}, ValueError, "source: expected one of"),
        ({"source": fm.chain("nesterov_positions", fm.stages.box(0.0, 1.0))}, ValueError, "gradient stages"),
        ({"source": fm.chain(fm.stages.decoupled_weight_decay(0.5), "classical")}, ValueError, "gradient stages"),
        ({"source": fm.Rule(lambda p, v, g, lr, mu: (p - lr * g, v), name="classical")}, ValueError, "source"),
        ({"momentum": 0.0, "dampening": 0.5}, ValueError, "dampening: expected 0 without momentum"),
        ({"lr": 1e-20, "state": np.array([1e30], np.float32)}, ValueError, "state: expected one that float32"),
        ({"target": "ema", "lr": 1e308, "momentum": 1 - 1e-16}, ValueError, "lr: expected a number that gives"),
        ({"source": "ema", "target": "classical", "lr": 5e-324}, ValueError, "lr: expected a number that gives"),
        ({"lr": -1.0}, ValueError, "lr"),
        ({"momentum": 1.5}, ValueError, "momentum"),
        ({"dampening": np.nan}, ValueError, "dampening"),
        ({"state": [1.0, 2.0]}, TypeError, "state: expected a NumPy array"),
        ({"state": None}, TypeError, "state: expected a NumPy array"),
        ({"state": [START], "param": [START, START]}, ValueError, "param: expected a sequence of 1"),
    ],
    ids=label,
)
def test_convert_refuses_what_it_cannot_convert_with_the_reason(change, error, reason):
    settings = {"state": START, "source": "classical", "target": "pytorch", "lr": 0.1, "momentum": 0.9} | change
    with pytest.raises(error, match=reason):
        fm.convert(settings.pop("state"), **settings)


def test_every_built_in_rule_can_be_converted():
    assert set(RULES) <= set(CONVENTIONS)
