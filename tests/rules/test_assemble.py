"""Composed rules: the text of their function, the order of their hyper-parameters, and what saved files say of them."""

import pickle
import traceback

import numpy as np
import pytest

import fastmomentum as fm
from fastmomentum.rules.assemble import identifiers

S = fm.stages

# From version 0.1.0: programs that call compiled rules rely on the order, saved runs on the descriptions.
HYPER_AND_DESCRIPTION = {
    "heavy_ball": (
        fm.rules.heavy_ball,
        ("lr", "momentum"),
        "heavy_ball(lr, momentum) from {}, defaults {}, state [('previous', 'param')]",
    ),
    "aggregated, unnamed": (
        fm.rules.aggregated([0.5, 0.25]),
        ("rate", "beta_1", "beta_2"),
        "_first(rate, beta_1, beta_2) from {'rate': ('lr',)}, defaults {'beta_1': 0.5, 'beta_2': 0.25}, "
        "state [('velocity_1', 'zero'), ('velocity_2', 'zero')]",
    ),
    "stages around a rule": (
        fm.chain(S.clip_value(0.7), S.weight_decay, "ema", S.decoupled_weight_decay),
        ("low", "clip_value", "weight_decay", "lr", "momentum", "keep", "shrink"),
        "clip_value(low, clip_value) from {'low': ('clip_value',)}, defaults {'clip_value': 0.7}; "
        "weight_decay(weight_decay) from {}, defaults {}; "
        "ema(lr, momentum, keep) from {'keep': ('momentum',)}, defaults {}, state [('velocity', 'zero')]; "
        "decoupled_weight_decay(shrink) from {'shrink': ('lr', 'decoupled_weight_decay')}, defaults {}",
    ),
    "proximal maps inside a rule": (
        fm.chain(S.scale(0.5), "nesterov_positions", S.soft_threshold(0.1), S.box(0, 1)),
        ("scale", "lr", "momentum", "negative", "threshold", "zero", "low", "upper", "zero"),
        "scale(scale) from {}, defaults {'scale': 0.5}; "
        "nesterov_positions(lr, momentum) from {}, defaults {}, state [('previous', 'param')]; "
        "soft_threshold(negative, threshold, zero) from {'negative': ('lr', 'l1'), 'threshold': ('lr', 'l1'), "
        "'zero': ()}, defaults {'l1': 0.1}; "
        "box(low, upper, zero) from {'upper': ('low', 'high'), 'zero': ()}, defaults {'low': 0.0, 'high': 1.0}",
    ),
    "an averaged chain in a chain": (
        fm.chain(S.maximize, fm.averaged(fm.chain(S.scale(2.0), "pytorch"), 0.75)),
        ("scale", "lr", "momentum", "keep", "keep_average"),
        "maximize() from {}, defaults {}; scale(scale) from {}, defaults {'scale': 2.0}; "
        "pytorch(lr, momentum, keep) from {'keep': ('dampening',)}, defaults {'dampening': 0.0}, "
        "state [('velocity', 'zero')]; "
        "exponential average of p(keep_average) from {'keep_average': ('average_decay',)}, "
        "defaults {'average_decay': 0.75}",
    ),
}


@pytest.mark.parametrize("case", HYPER_AND_DESCRIPTION)
def test_composed_rule_keeps_the_hyper_parameters_and_the_description_of_0_1_0(case):
    rule, hyper, description = HYPER_AND_DESCRIPTION[case]
    assert rule.hyper == hyper
    assert rule.description == description


def test_source_is_the_text_of_the_function():
    rule = fm.chain(S.scale(0.5), "heavy_ball", S.soft_threshold(0.1))
    assert rule.source == (
        "def update(p, previous, g, scale, lr, momentum, negative, threshold, zero):\n"
        "    g = scale_function(g, p, scale)\n"
        "    x = descend(p, g, lr)\n"
        "    x = soft_threshold(x, negative, threshold, zero)\n"
        "    p, previous = heavy_ball(x, p, previous, momentum)\n"
        "    return p, previous\n"
    )
    namespace = {f"{name}_function" if name == "scale" else name: f for name, f in named_functions(rule)}
    exec(rule.source, namespace)
    arguments = np.random.default_rng(0).standard_normal((9, 5))
    for ours, theirs in zip(rule.update(*arguments), namespace["update"](*arguments), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def named_functions(rule):
    return [(part.function.__name__.lstrip("_"), part.function) for part in rule.parts]


def test_rule_of_one_function_is_that_function():
    assert fm.rules.pytorch.build() is fm.rules.pytorch.update is fm.rules.ema.update
    assert fm.chain("pytorch").update is fm.rules.pytorch.update


def test_traceback_shows_the_line_of_the_assembled_function():
    rule = fm.chain(S.scale(0.5), "sgd")
    with pytest.raises(TypeError) as caught:
        rule.update("p", "g", 1.0, 1.0)
    lines = "".join(traceback.format_exception(caught.value))
    assert "g = scale_function(g, p, scale)" in lines


def test_identifiers_are_names_of_their_own():
    names = ["p", "g", "p", "lambda", "2x", "", "a b"]
    expected = ["p", "g", "p_2", "lambda_2", "_2x_2", "__2", "a_b"]
    assert identifiers(names) == expected
    assert identifiers(["p"], taken=["p", "p_2"]) == ["p_3"]


def proximal_heavy_ball():
    """A user's position rule: its own gradient step, a momentum on positions."""
    return fm.Rule.positions(
        lambda p, g, lr: p - lr * g,
        lambda x, p, q, mu: (x + mu * (p - q), p),
        name="mine",
    )


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
@pytest.mark.parametrize("stages", [(), (S.soft_threshold(0.3),), (S.soft_threshold(0.3), S.box(-0.5, 0.5))])
def test_position_rule_of_a_user_has_the_bits_of_heavy_ball(stages, backend):
    runs = []
    for rule in ("heavy_ball", proximal_heavy_ball()):
        p = np.random.default_rng(0).standard_normal(33).astype(np.float32)
        opt = fm.Momentum(p, rule=fm.averaged(fm.chain(S.scale(0.5), rule, *stages), 0.9), lr=0.3, backend=backend)
        for _ in range(4):
            opt.step(p - np.float32(0.25))
        runs.append([p, *opt.state])
    for ours, theirs in zip(*runs, strict=True):
        assert ours.tobytes() == theirs.tobytes()


def test_state_stage_of_a_user_keeps_its_slots_after_the_rule():
    def remember(p, largest):
        return np.maximum(np.absolute(p), largest)

    stage = fm.Stage(remember, "state", reads=("p", "largest"), writes=("largest",), state=[("largest", "zero")])
    rule = fm.chain(S.scale(2.0), "pytorch", stage)
    assert rule.slots == ("velocity", "largest")
    p = np.array([4.0, -3.0])
    opt = fm.Momentum(p, rule=rule, lr=1.0, momentum=0.0)
    opt.step(np.array([1.0, -5.0]))
    opt.step(np.array([-1.0, 5.0]))
    np.testing.assert_array_equal(opt.state[1], [4.0, 7.0])
    with pytest.raises(ValueError, match="the state stage .* must stand after the rule"):
        fm.chain(stage, "pytorch")


@pytest.mark.parametrize(
    "rule",
    [fm.averaged("ema"), fm.chain(S.scale(0.5), "heavy_ball", S.soft_threshold(0.1)), fm.rules.aggmo],
    ids=str,
)
def test_composed_rule_survives_pickling(rule):
    again = pickle.loads(pickle.dumps(rule))
    assert again.source == rule.source
    assert again.structure == rule.structure
    arguments = np.random.default_rng(0).standard_normal(1 + len(rule.state) + 1 + len(rule.hyper))
    assert again.update(*arguments) == rule.update(*arguments)


@pytest.mark.parametrize("name", ["p", "g", "x"])
def test_slots_named_as_other_values_are_refused(name):
    with pytest.raises(ValueError, match="names of their own"):
        fm.Rule(lambda p, v, g, lr, mu: (p - lr * g, mu * v), state=[(name, "zero")])


def test_maximize_is_refused_around_any_chain_that_maximises_already():
    for inner in (fm.chain(S.maximize, "sgd"), fm.averaged(fm.chain(S.maximize, "sgd"))):
        with pytest.raises(ValueError, match="maximize: expected once"):
            fm.Momentum(np.ones(2), rule=inner, lr=0.1, maximize=True)


def test_optimizer_asks_for_a_momentum_where_the_rule_has_no_default():
    p = np.array([1.0])
    opt = fm.Optimizer(p, "sgd", lr=0.5)
    opt.step(np.array([1.0]))
    assert p[0] == 0.5
    with pytest.raises(TypeError, match="momentum: expected .*, as rule 'pytorch' needs this hyper-parameter"):
        fm.Optimizer(p, "pytorch", lr=0.5)
    assert isinstance(fm.Momentum(p, lr=0.1), fm.Optimizer)
    assert fm.Optimizer(p, lr=0.1, momentum=0.9).momentum == fm.Momentum(p, lr=0.1).momentum


def test_optimizer_takes_momentum_from_every_group_or_from_the_rule():
    opt = fm.Optimizer([{"params": np.ones(2), "momentum": 0.5}, {"params": np.ones(2), "momentum": 0.75}], lr=0.1)
    assert opt.momentum == [0.5, 0.75]
    with pytest.raises(TypeError, match=r"momentum: expected .*, as rule 'pytorch' needs this hyper-parameter"):
        fm.Optimizer([{"params": np.ones(2), "momentum": 0.5}, {"params": np.ones(2)}], lr=0.1)
    rule = fm.Rule(lambda p, v, g, lr, mu: (p - lr * (mu * v + g), mu * v + g), defaults={"momentum": 0.25})
    p = np.zeros(1)
    opt = fm.Optimizer(p, rule, lr=1.0)
    assert opt.momentum == 0.25
    opt.step(np.ones(1))
    opt.step(np.ones(1))
    assert p[0] == -2.25
    opt.momentum = 0.5
    opt.step(np.ones(1))
    assert p[0] == -2.25 - 1.625


def test_repr_shows_momentum_only_if_the_rule_takes_it():
    assert repr(fm.Optimizer(np.ones(2), "aggmo", lr=0.1)) == "Optimizer(rule='aggmo', lr=0.1, arrays=1, steps=0)"
    assert "momentum=0.9" in repr(fm.Momentum(np.ones(2), lr=0.1))


@pytest.mark.parametrize("name", ["update", "weight_decay", "p", "g", "velocity"])
def test_function_of_any_name_is_called_in_a_composed_rule(name):
    namespace = {}
    exec(f"def {name}(p, v, g, lr, mu):\n    v = mu * v + g\n    return p - lr * v, v", namespace)
    rule = fm.chain(fm.stages.weight_decay(0.5), fm.Rule(namespace[name]))
    assert rule.update(1.0, 1.0, 1.0, 0.5, 0.25, 0.5) == (1.0 - 0.25 * 2.0, 2.0)
