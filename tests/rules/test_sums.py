"""Sums over arrays and memory: rules that look at the whole array."""

import math

import numpy as np
import pytest

import fastmomentum as fm
from tests.helpers.arrays import arrays_of, gradients_of
from tests.helpers.reference import BACKENDS, DTYPES, SUMMING_RULES, assert_all_same_bits, ordered_sum
from tests.helpers.rules import boosted, counted, power, size

SHAPES = ((3,), (70_001,), (0,), (33, 2))


def run_by_hand(params, all_grads, scope, dtype, lr, mu, gain=0.5):
    """Do the steps of that rule, by a loop over arrays; return the memory."""
    velocities = [np.zeros_like(p) for p in params]
    memory = [[0.0, 1.0] for _ in params]
    for grads in all_grads:
        sums = [
            [ordered_sum(x.astype(np.float64) * g.astype(np.float64)) for x in (v, g)] if g is not None else [0.0, 0.0]
            for v, g in zip(velocities, grads)
        ]
        if scope == "all":
            totals = [0.0, 0.0]
            for own in sums:
                totals = [total + value for total, value in zip(totals, own)]
            sums = [totals for _ in params]
        for i, (p, v, g) in enumerate(zip(params, velocities, grads)):
            if g is None:
                continue
            count, last = memory[i]
            boost = dtype(1.0 + gain / (1.0 + count + last + abs(sums[i][0])))
            memory[i] = [count + 1.0, math.sqrt(sums[i][1])]
            v[:] = dtype(mu) * v + g
            p[:] = p - dtype(lr) * boost * v
    return velocities, memory


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scope", ["array", "all"])
def test_rule_with_sums_and_memory_has_the_bits_of_a_loop_by_hand(scope, dtype, backend, threads):
    params, expected = arrays_of(SHAPES, dtype), arrays_of(SHAPES, dtype)
    opt = fm.Optimizer(params, counted(scope), lr=0.1, momentum=0.5, backend=backend, threads=threads)
    grads = [*gradients_of(SHAPES, 4, dtype)]
    if scope == "array":
        grads[0][1] = grads[0][3] = None
        grads[2][0] = None
    velocities, memory = run_by_hand(expected, grads, scope, dtype, 0.1, 0.5)
    for each in grads:
        opt.step(each)
    assert_all_same_bits(opt.params, expected)
    assert_all_same_bits(opt.velocity, velocities)
    assert opt.state_dict()["memory"] == [dict(zip(("count", "last"), own)) for own in memory]


def combinations():
    """Return options of optimisers that stand before, in and after a sum."""
    mask, scale = np.arange(66).reshape(33, 2) % 3 > 0, np.linspace(0.5, 2.0, 66).reshape(33, 2)
    return {
        "plain": {},
        "max_norm": {"max_norm": 0.5},
        "clip_norm and max_norm": {"clip_norm": 0.5, "max_norm": 0.7},
        "clip_value and decay": {"clip_value": 0.1, "weight_decay": 0.1, "decoupled_weight_decay": 0.1},
        "maximize": {"maximize": True},
        "mask": {"mask": mask},
        "lr_scale": {"lr_scale": scale},
        "both and max_norm": {"mask": mask, "lr_scale": scale, "max_norm": 0.5},
        "skip": {"skip_nonfinite": True, "max_norm": 0.5},
        "schedules": {"lr": fm.schedules.Cosine(0.1, 0.0, steps=10), "max_norm": lambda t: 0.5 + t},
    }


COMPOSED = {
    **{name: (lambda name=name: name) for name in SUMMING_RULES},
    "counted array": lambda: counted(),
    "counted all": lambda: counted("all"),
    "cautious adamw": lambda: fm.cautious("adamw"),
    "cautious lion": lambda: fm.cautious("lion"),
    "grokfast adam": lambda: fm.chain(fm.stages.grokfast, "adam"),
    "mars lion": lambda: fm.chain(fm.stages.mars, "lion"),
    "mars, scale, cautious signum": lambda: fm.chain(fm.stages.scale(0.5), fm.stages.mars, fm.cautious("signum")),
    "averaged lamb": lambda: fm.averaged("lamb", 0.9),
}
NEEDED = {"fire": {"momentum": None}}


NOT_SCALED = ("clipup", "fire")
"""Rules that take no lr_scale, as lr is not a factor of all their numbers."""

PAIRS = [
    (rule, options)
    for rule in COMPOSED
    for options in combinations()
    if rule not in NOT_SCALED or "lr_scale" not in combinations()[options]
]


@pytest.mark.sampled(7)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64])
@pytest.mark.parametrize(("rule", "options"), PAIRS)
def test_composed_rules_have_the_bits_of_numpy_at_any_number_of_threads(rule, options, dtype):
    shapes = ((33, 2),) if {"mask", "lr_scale"} & combinations()[options].keys() else ((33, 2), (5,))
    settings = {"lr": 0.1, "momentum": 0.5, **NEEDED.get(rule, {}), **combinations()[options]}
    settings = {name: value for name, value in settings.items() if value is not None}
    grads = [*gradients_of(shapes, 4, dtype)]
    found = []
    for backend, threads in (("numpy", 1), ("cpu", 1), ("cpu", 2)):
        params = arrays_of(shapes, dtype)
        opt = fm.Optimizer(params, COMPOSED[rule](), backend=backend, threads=threads, **settings)
        for t, each in enumerate(grads):
            opt.step([None if t == 1 and i else g.copy() for i, g in enumerate(each)])
        found.append([*params, *[s for own in opt._engine.state.slots for s in own], opt._engine.state.memory])
    for others in found[1:]:
        assert_all_same_bits(found[0][:-1], others[:-1])
        assert found[0][-1] == others[-1]


def test_sums_take_what_stages_before_the_rule_make_of_the_gradient_and_hyper_parameters_by_name():
    seen = []

    def scaled(p, v, g, mu):
        return mu * (g * p)

    rule = fm.Rule(
        boosted,
        hyper=("lr", "mu", "boost"),
        sums={"total": scaled},
        derived={"boost": lambda total: seen.append(total) or 1.0},
    )
    chain = fm.chain(fm.stages.scale(2.0), fm.stages.decoupled_weight_decay, rule)
    for backend in BACKENDS:
        p = np.array([1.0, 3.0])
        opt = fm.Optimizer(p, chain, lr=0.5, mu=0.25, decoupled_weight_decay=1.0, backend=backend)
        opt.step(np.array([1.0, 10.0]))
    assert seen == [0.25 * (2.0 * 0.5 + 20.0 * 1.5)] * 2


def test_norm_stages_of_a_chain_clip_as_the_options_do():
    for stage, option in ((fm.stages.clip_global_norm, "max_norm"), (fm.stages.clip_norm, "clip_norm")):
        runs = []
        for settings in ({"rule": fm.chain(stage(0.5), "pytorch")}, {"rule": "pytorch", option: 0.5}):
            params = arrays_of(SHAPES, np.float64)
            opt = fm.Optimizer(params, lr=0.1, momentum=0.5, **settings)
            for grads in gradients_of(SHAPES, 3, np.float64):
                opt.step(grads)
            runs.append(params)
        assert_all_same_bits(*runs)


def test_clip_norm_comes_first_and_max_norm_takes_the_norms_that_it_leaves():
    p = [np.zeros(2), np.zeros(2)]
    opt = fm.Optimizer(p, "sgd", lr=1.0, clip_norm=5.0, max_norm=5.0)
    opt.step([np.array([30.0, 40.0]), np.array([3.0, 0.0])])  # norms 50 → 5, and 3
    factor = 5.0 / (math.sqrt(25.0 + 9.0) + 1e-6)
    np.testing.assert_allclose(p, [[-3 * factor, -4 * factor], [-3 * factor, 0]], rtol=1e-15)


@pytest.mark.parametrize("backend", BACKENDS)
def test_groups_whose_rules_differ_share_their_sum_over_all_arrays(backend):
    params = [np.ones(3), np.ones(2), np.ones(1)]
    groups = [{"params": params[0], "clip_norm": 1.0}, {"params": params[1:], "weight_decay": 0.5}]
    opt = fm.Optimizer(groups, "sgd", lr=1.0, max_norm=2.0, backend=backend)
    opt.step([np.array([3.0, 4.0, 0.0]), np.array([6.0, 8.0]), np.array([0.0])])
    factor = 2.0 / (math.sqrt(1.0 + 100.0) + 1e-6)  # 1 after clip_norm, and 10
    np.testing.assert_allclose(params[0], 1 - factor * np.array([0.6, 0.8, 0.0]), rtol=1e-12)
    np.testing.assert_allclose(params[1], 1 - (factor * np.array([6.0, 8.0]) + 0.5), rtol=1e-12)


def test_links_that_sum_over_all_arrays_need_one_order_in_all_groups():
    first = fm.Stage(lambda g, p, a: a * g, hyper=("a",), sums={"s": lambda g, p: g}, scope="all", name="first",
                     derived={"a": lambda s: 1.0})  # fmt: skip
    second = fm.Stage(lambda g, p, b: b * g, hyper=("b",), sums={"s": lambda g, p: p}, scope="all", name="second",
                      derived={"b": lambda s: 1.0})  # fmt: skip
    chains = fm.chain(first, second, "sgd"), fm.chain(second, first, "sgd")
    from fastmomentum.backends.sums import plan_rounds

    assert len(plan_rounds([chains[0], chains[0], fm.rules.sgd])) == 2
    with pytest.raises(ValueError, match="same order in every group"):
        plan_rounds(chains)


def test_number_out_of_its_range_is_refused_with_what_it_was_derived_from():
    rule = counted(
        memory={},
        derived={"boost": lambda size, gain: gain - size},
        ranges={"boost": fm.rules.pytorch.range_of("lr")},
    )
    p = np.ones(2)
    opt = fm.Optimizer(p, rule, lr=0.1, momentum=0.5, gain=1.0)
    with pytest.raises(ValueError, match=r"boost: expected a finite number >= 0; got -7\.0, derived from .*8\.0"):
        opt.step(np.full(2, 2.0))
    assert p.tolist() == [1.0, 1.0]
    opt.step(np.full(2, 0.5))


WRONG = {
    "scope": ({"scope": "group"}, "scope: expected 'array' or 'all'"),
    "name of a hyper-parameter": ({"sums": {"lr": power}}, "sums: expected names of their own; got 'lr'"),
    "name in both": ({"sums": {"count": power}}, "expected names of their own; got 'count'"),
    "step": ({"sums": {"step": power}}, "sums: expected names of their own; got 'step'"),
    "no name": ({"sums": {"a b": power}}, "sums: expected names of their own; got 'a b'"),
    "memory without next": ({"memory": {"other": 1.0}}, "memory: expected a function of derived .* 'other'"),
    "memory no number": ({"memory": {"count": "1", "last": 1.0}}, "memory\\['count'\\]: expected"),
    "few arguments": ({"sums": {"power": lambda p: p}}, "sums: expected for power a function of p, velocity, g"),
    "unknown argument": ({"sums": {"power": lambda p, v, g, tau: p}}, "then names of hyper-parameters"),
    "late argument": ({"sums": {"power": lambda p, v, g, boost: p}}, "depend on no sum"),
    "literal": ({"sums": {"power": lambda p, v, g: 2.0 * p}}, "literal"),
    "branch": ({"sums": {"power": lambda p, v, g: p if p > g else g}}, "branches"),
    "tuple": ({"sums": {"power": lambda p, v, g: (p, g)}}, "one value"),
    "sums no mapping": ({"sums": ["power"]}, "sums: expected a mapping of names; got a list of 1"),
    "memory no mapping": ({"memory": ["count"]}, "memory: expected a mapping of names; got a list of 1"),
    "derived no mapping": ({"derived": max}, "derived: expected a mapping of names"),
    "sum no function": ({"sums": {"power": 3}}, "sums: expected for power a Python function, .* got 3"),
    "builtin": ({"derived": {"boost": max}}, "derived: expected for boost a Python function, .*built-in function max"),
}


@pytest.mark.parametrize(("record", "message"), WRONG.values(), ids=WRONG)
def test_wrong_sums_and_memory_are_refused_when_the_rule_is_made(record, message):
    own = {"sums": {"power": power, "size": size}, "memory": {"count": 0.0, "last": 1.0}} | record
    with pytest.raises((TypeError, ValueError), match=message):
        counted(**own)


@pytest.mark.parametrize("rule", [*SUMMING_RULES, "cautious"])
def test_functions_without_sums_refuse_such_rules_and_name_the_optimiser(rule):
    rule = fm.cautious("adam") if rule == "cautious" else rule
    refused = "use it in an optimiser|expected one that is linear|it was not given"
    p = np.ones(2)
    state = tuple(np.zeros(2) for _ in fm.rules.find(rule).state)
    settings = {"lr": 0.1}
    given = {**settings, "step": 1.0} if "step" in fm.rules.find(rule).parameters else settings
    with pytest.raises((TypeError, ValueError), match="use it in an optimiser"):
        fm.step(p, state, np.ones(2), rule=rule, **given)
    for call in (
        lambda: fm.SparseRows(np.ones((2, 2)), lr=0.1, momentum=0.5, rule=rule),
        lambda: fm.theory.max_stable_lr(0.5, 1.0, rule=rule),
    ):
        with pytest.raises((TypeError, ValueError), match=refused):
            call()
    assert p.tolist() == [1.0, 1.0]


SIZES = [0.0, 5e-324, 1e-200, 1e-160, 1e-155, 1e155, 1e200, np.inf, np.nan]


@pytest.mark.parametrize("rule", [*SUMMING_RULES, "cautious", "mars", "clip_norm", "max_norm"])
def test_gradients_of_any_size_raise_no_error(rule):
    norm = {rule: 1.0} if rule.endswith("norm") else {}
    made = {"cautious": fm.cautious("adamw"), "mars": fm.chain(fm.stages.mars, "adam")}.get(rule, rule)
    for middle in SIZES:
        for last in SIZES:
            p = np.ones(2)
            settings = {"lr": 0.1, "momentum": 0.5, **NEEDED.get(rule, {}), **norm}
            settings = {name: value for name, value in settings.items() if value is not None}
            opt = fm.Optimizer(p, "sgd" if norm else made, backend="numpy", **settings)
            for scale in (1.0, middle, last):
                opt.step(np.array([1.0, 2.0]) * scale)
            assert opt.steps == 3


def test_step_of_clipup_has_the_length_lr_for_tiny_and_huge_gradients():
    for scale in (1e-150, 1.0, 1e150):
        p = np.zeros(2)
        fm.Optimizer(p, "clipup", lr=0.1, momentum=0.9).step(np.array([3.0, 4.0]) * scale)
        np.testing.assert_allclose(p, [-0.06, -0.08], rtol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_stage_that_stands_twice_in_a_chain_sums_twice(backend):
    for stage in (fm.stages.clip_norm(1.0), fm.stages.clip_global_norm(1.0)):
        for second in (stage, type(stage).__call__(stage)):  # the same object, and another one
            params = [np.zeros(2), np.zeros(2)]
            chain = fm.chain(stage, fm.stages.scale(20.0), second, "sgd")
            opt = fm.Optimizer(params, chain, lr=1.0, backend=backend)
            opt.step([np.array([3.0, 4.0]), np.zeros(2)])
            np.testing.assert_allclose(params[0], [-0.6, -0.8], rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_number_that_users_give_may_have_the_name_of_a_sum_of_another_link(backend):
    first = fm.Stage(lambda g, p, f: f * g, hyper=("f",), sums={"total": lambda g, p: g * g}, name="first",
                     derived={"f": lambda size, total: size / total})  # fmt: skip
    second = fm.Stage(lambda g, p, h: h * g, hyper=("h",), sums={"size": lambda g, p: g}, name="second",
                      derived={"h": lambda size: 1.0 / size})  # fmt: skip
    p = np.zeros(2)
    opt = fm.Optimizer(p, fm.chain(first, second, "sgd"), lr=1.0, size=50.0, backend=backend)
    opt.step(np.array([3.0, 4.0]))  # 50/25, then 1/14
    np.testing.assert_allclose(p, [-6.0 / 14.0, -8.0 / 14.0], rtol=1e-15)


@pytest.mark.parametrize("rule", [*COMPOSED, "lr inside a branch"])
def test_lr_scale_multiplies_the_step_of_rules_with_sums_or_is_refused(rule):
    branching = {"boost": lambda lr, count: lr if count else 1.0, "count": lambda count: count + 1.0}
    branching["last"] = lambda last: last
    made = COMPOSED[rule]() if rule in COMPOSED else counted(derived=branching, defaults={})
    settings = {"lr": 0.1, "momentum": 0.5, **NEEDED.get(rule, {})}
    settings = {name: value for name, value in settings.items() if value is not None}
    if rule in (*NOT_SCALED, "lr inside a branch"):
        with pytest.raises(ValueError, match="lr_scale: expected a rule whose derived numbers are proportional to lr"):
            fm.Optimizer(np.ones(2), made, lr_scale=np.ones(2), **settings)
        return
    plain, scaled = np.ones(3), np.ones(3)
    for p, scale in ((plain, None), (scaled, np.array([1.0, 0.5, 2.0]))):
        fm.Optimizer(p, made, lr_scale=scale, **settings).step(np.array([0.5, 0.5, 0.5]))
    moved = plain - 1.0
    expected = 1.0 + moved * np.array([1.0, 0.5, 2.0])
    np.testing.assert_allclose(scaled, expected, rtol=1e-12)


def test_range_of_a_number_derived_from_sums_holds_for_that_number_alone():
    rule = counted(memory={}, derived={"boost": lambda size: size}, ranges={"boost": (2.0, 6.0)}, defaults={})
    for dtype in DTYPES:
        p = np.zeros(2, dtype)
        opt = fm.Optimizer(p, rule, lr=0.5, momentum=0.5)
        opt.step(np.array([1.0, 2.0], dtype))
        assert p.tolist() == [-2.5, -5.0]
        with pytest.raises(ValueError, match=r"boost: expected a number in \[2, 6\]; got 10.0, derived from"):
            opt.step(np.array([1.0, 3.0], dtype))


def test_correct_is_refused_for_a_rule_with_sums_and_taken_with_stages_that_sum():
    for rule in (*SUMMING_RULES, fm.cautious("classical")):
        with pytest.raises(ValueError, match="correct: expected a rule that needs no sums and keeps no numbers"):
            fm.Optimizer(np.ones(2), rule, lr=0.1, momentum=0.5, correct=True)
    p = np.ones(2)
    fm.Optimizer(p, "classical", lr=0.1, momentum=0.5, correct=True, max_norm=1.0, clip_norm=1.0).step(np.ones(2))


def normed(kind, function, total, **record):
    """Return a stage whose hyper-parameter k is 1/(1 + s), from a sum s."""
    return fm.Stage(function, kind=kind, hyper=("k",), derived={"k": lambda s: 1.0 / (1.0 + s)}, sums={"s": total},
                    name="normed", **record)  # fmt: skip


def shrunk(x):
    return x / (1.0 + (x * x).sum())


def look_ahead(gradients):
    """Return the points of a stage g ← g + k·p with s = ‖p‖², which reads the look-ahead point as p."""
    p, v, point = np.ones(3), np.zeros(3), np.ones(3)
    for g in gradients:
        v = 0.5 * v + g + shrunk(point)
        p = p - 0.1 * v
        point = p - 0.1 * 0.5 * v
    return p


def proximal(gradients):
    p, q = np.ones(3), np.ones(3)
    for g in gradients:
        x = shrunk(p - 0.1 * g)
        p, q = x + 0.5 * (x - q), x
    return p


def parameter(gradients, before):
    p, v = np.ones(3), np.zeros(3)
    for g in gradients:
        p = shrunk(p) if before else p
        v = 0.5 * v + g
        p = p - 0.1 * v
        p = p if before else shrunk(p)
    return p


PLACES = {
    "gradient": (lambda: fm.chain(normed("gradient", lambda g, p, k: g + k * p, lambda g, p: p * p), "pytorch"),
                 {"lookahead": True}, look_ahead),
    "prox": (lambda: fm.chain("nesterov_positions", normed("prox", lambda x, k: k * x, lambda x: x * x)), {}, proximal),
    "before": (lambda: fm.chain(normed("param", lambda p, k: k * p, lambda p: p * p), "pytorch"), {},
               lambda gradients: parameter(gradients, True)),
    "after": (lambda: fm.chain("pytorch", normed("param", lambda p, k: k * p, lambda p: p * p)), {},
              lambda gradients: parameter(gradients, False)),
}  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("place", PLACES)
def test_sums_of_a_stage_are_those_of_the_values_that_it_reads(place, backend):
    make, options, by_hand = PLACES[place]
    gradients = [g for (g,) in gradients_of(((3,),), 5, np.float64)]
    p = np.ones(3)
    opt = fm.Optimizer(p, make(), lr=0.1, momentum=0.5, backend=backend, **options)
    for g in gradients:
        opt.step(g)
    np.testing.assert_allclose(p, by_hand(gradients), rtol=1e-13)
