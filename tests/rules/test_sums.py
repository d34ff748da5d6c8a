"""Sums over arrays and memory: rules that look at the whole array."""

import copy
import math
import pickle

import numpy as np
import pytest

import fastmomentum as fm
from tests.helpers.arrays import arrays_of, gradients_of
from tests.helpers.interrupts import is_interrupted, places
from tests.helpers.reference import BACKENDS, DTYPES, SUMMING_RULES, assert_all_same_bits, ordered_sum

SHAPES = ((3,), (70_001,), (0,), (33, 2))


def update(p, v, g, lr, mu, boost):
    v = mu * v + g
    return p - lr * boost * v, v


def power(p, v, g):
    return v * g


def size(p, v, g):
    return g * g


def counted(scope="array", **record):
    """Return a rule whose step depends on two sums and on what it remembers of them."""
    own = {
        "hyper": ("lr", "momentum", "boost"),
        "sums": {"power": power, "size": size},
        "scope": scope,
        "memory": {"count": 0.0, "last": 1.0},
        "derived": {
            "count": lambda count: count + 1.0,
            "last": lambda size: math.sqrt(size),
            "boost": lambda power, count, last, gain: 1.0 + gain / (1.0 + count + last + abs(power)),
        },
        "defaults": {"gain": 0.5},
    }
    return fm.Rule(update, **own | record)


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
NEEDED = {"clipup": {"max_speed": 0.2}, "fire": {"momentum": None}}


@pytest.mark.sampled(7)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64])
@pytest.mark.parametrize("options", combinations())
@pytest.mark.parametrize("rule", COMPOSED)
def test_composed_rules_have_the_bits_of_numpy_at_any_number_of_threads(rule, options, dtype):
    shapes = ((33, 2),) if {"mask", "lr_scale"} & combinations()[options].keys() else ((33, 2), (5,))
    settings = {"lr": 0.1, "momentum": 0.5, **NEEDED.get(rule, {}), **combinations()[options]}
    settings = {name: value for name, value in settings.items() if value is not None}
    if "lr_scale" in settings and rule in ("schedule_free_sgd", "schedule_free_adamw", "clipup", "fire"):
        pytest.skip("lr is not a factor of all its numbers")
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
        update,
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


@pytest.mark.parametrize("scope", ["array", "all"])
@pytest.mark.parametrize("how", ["state_dict", "file", "pickle", "deepcopy"])
def test_saved_run_goes_on_with_its_memory(how, scope, tmp_path):
    shapes, grads = ((4,), (3,)), [*gradients_of(((4,), (3,)), 6, np.float32)]
    rule = counted(scope, name=f"counted {scope}")
    straight = fm.Optimizer(arrays_of(shapes, np.float32), rule, lr=0.1, momentum=0.5)
    for each in grads:
        straight.step(each)
    opt = fm.Optimizer(arrays_of(shapes, np.float32), rule, lr=0.1, momentum=0.5)
    for each in grads[:3]:
        opt.step(each)
    if how in ("state_dict", "file"):
        again = fm.Optimizer([p.copy() for p in opt.params], rule, lr=0.1, momentum=0.5)
        if how == "state_dict":
            again.load_state_dict(opt.state_dict())
        else:
            opt.save(tmp_path / "run.npz")
            again = fm.Optimizer.load(tmp_path / "run.npz", again.params, rule=rule)
    elif how == "deepcopy":
        again = copy.deepcopy(opt)
    else:
        named = fm.Optimizer(arrays_of(shapes, np.float32), "schedule_free_sgd", lr=0.1)
        named.step(grads[0])
        copied = pickle.loads(pickle.dumps(named))
        for each in (named, copied):
            each.step(grads[1])
        assert copied._engine.state.memory == named._engine.state.memory
        assert_all_same_bits(named.params, copied.params)
        return
    for each in grads[3:]:
        again.step(each)
    assert_all_same_bits(again.params, straight.params)
    assert again._engine.state.memory == straight._engine.state.memory
    opt.step(grads[0])  # the copies have memory of their own
    assert again._engine.state.memory == straight._engine.state.memory


@pytest.mark.parametrize(
    ("memory", "message"),
    [
        (None, "memory: expected for each array"),
        ([{"count": 1.0}] * 2, "memory: expected for each array"),
        ([{"count": 1.0, "other": 1.0}] * 2, "memory: expected for each array"),
        ([{"count": 1, "last": 1.0}] * 2, "a float"),
        ([{"count": 1.0, "last": 1.0}], "memory"),
        ("text", "memory"),
        ([{"count": "1", "last": None}] * 2, "a float"),
    ],
)
def test_saved_memory_that_does_not_fit_is_refused(memory, message):
    rule = counted()
    opt = fm.Optimizer([np.ones(2), np.ones(3)], rule, lr=0.1, momentum=0.5)
    saved = opt.state_dict()
    if memory is None:
        del saved["memory"]
    else:
        saved["memory"] = memory
    with pytest.raises((TypeError, ValueError), match=message):
        opt.load_state_dict(saved)
    assert opt._engine.state.memory == [[0.0, 1.0]] * 2
    opt.step([np.ones(2), np.ones(3)])


def test_memory_in_a_state_of_a_rule_that_keeps_none_is_refused():
    opt = fm.Optimizer(np.ones(2), "pytorch", lr=0.1, momentum=0.5)
    with pytest.raises(ValueError, match="memory"):
        opt.load_state_dict(opt.state_dict() | {"memory": [{"count": 1.0}]})


def test_reset_of_whole_arrays_begins_memory_anew():
    for scope in ("array", "all"):
        params = [np.ones(2), np.ones(3)]
        opt = fm.Optimizer(params, counted(scope), lr=0.1, momentum=0.5)
        opt.step([np.ones(2), np.ones(3)])
        memory = opt._engine.state.memory
        opt.reset("rows", array=0, rows=0)
        assert [own[0] for own in memory] == [1.0, 1.0]
        opt.reset("one array", array=0)
        assert [own[0] for own in memory] == ([0.0, 1.0] if scope == "array" else [1.0, 1.0])
        opt.reset("all")
        assert memory == [[0.0, 1.0]] * 2


def test_added_arrays_have_memory_of_their_own_or_share_it():
    for scope in ("array", "all"):
        opt = fm.Optimizer([np.ones(2)], counted(scope), lr=0.1, momentum=0.5)
        opt.step([np.ones(2)])
        opt.add_group({"params": [np.ones(3)]})
        opt.step([np.ones(2), np.ones(3)])
        assert [own[0] for own in opt._engine.state.memory] == ([2.0, 1.0] if scope == "array" else [2.0, 2.0])
        empty = fm.Optimizer([{"params": []}], counted(scope), lr=0.1, momentum=0.5)
        empty.add_group({"params": [np.ones(3), np.ones(2)]})
        empty.step([np.ones(3), np.ones(2)])
        assert [own[0] for own in empty._engine.state.memory] == [1.0, 1.0]


def test_skipped_and_refused_steps_leave_memory_as_it_is():
    opt = fm.Optimizer(np.ones(2), counted(), lr=0.1, momentum=0.5, skip_nonfinite=True)
    opt.step(np.ones(2))
    kept = copy.deepcopy(opt._engine.state.memory)
    opt.step(np.array([np.nan, 1.0]))
    assert opt.skipped == 1
    with pytest.raises(TypeError):
        opt.step(np.ones(2, np.float32))
    assert opt._engine.state.memory == kept


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("fails_at", [0, 1, 2])
def test_error_in_a_function_of_sums_leaves_whole_steps(fails_at, backend):
    def boost(size, count):
        if count == fails_at:
            raise ZeroDivisionError
        return 1.0

    derived = {"count": lambda count: count + 1.0, "last": lambda last: last, "boost": boost}
    rule = counted(derived=derived, defaults={})
    params = [np.ones(3), np.ones(2)]
    opt = fm.Optimizer(params, rule, lr=0.1, momentum=0.5, backend=backend)
    for _ in range(fails_at):
        opt.step([np.ones(3), np.ones(2)])
    before = [p.copy() for p in params]
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            opt.step([np.ones(3), np.ones(2)])
        assert_all_same_bits(params, before)
        assert opt.steps == fails_at
        assert opt._engine.state.memory == [[fails_at, 1.0]] * 2


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


def test_ctrl_c_leaves_memory_and_arrays_of_one_step():
    expected = []
    for count in range(4):
        opt = fm.Optimizer([np.ones(3), np.ones(2)], counted(), lr=0.1, momentum=0.5)
        for _ in range(count):
            opt.step([np.ones(3), np.ones(2)])
        expected.append((opt.steps, [p.tobytes() for p in opt.params], copy.deepcopy(opt._engine.state.memory)))
    found = set()
    for at in places("sums"):
        opt = fm.Optimizer([np.ones(3), np.ones(2)], counted(), lr=0.1, momentum=0.5)
        for _ in range(2):
            opt.step([np.ones(3), np.ones(2)])
        if not is_interrupted(lambda opt=opt: opt.step([np.ones(3), np.ones(2)]), at):
            break
        now = (opt.steps, [p.tobytes() for p in opt.params], opt._engine.state.memory)
        assert now in expected[2:]
        found.add(opt.steps)
    assert found == {2, 3}


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
}


@pytest.mark.parametrize(("record", "message"), WRONG.values(), ids=WRONG)
def test_wrong_sums_and_memory_are_refused_when_the_rule_is_made(record, message):
    own = {"sums": {"power": power, "size": size}, "memory": {"count": 0.0, "last": 1.0}} | record
    with pytest.raises((TypeError, ValueError), match=message):
        counted(**own)


def test_stage_keeps_no_memory():
    with pytest.raises(ValueError, match="memory: expected for a rule alone"):
        fm.Stage(lambda g, p, a: a * g, hyper=("a",), memory={"a": 1.0}, derived={"a": lambda a: a})


@pytest.mark.parametrize("rule", [*SUMMING_RULES, "cautious"])
def test_functions_without_sums_refuse_such_rules_and_name_the_optimiser(rule):
    rule = fm.cautious("adam") if rule == "cautious" else rule
    refused = "use it in an optimiser|expected one that is linear|it was not given"
    p = np.ones(2)
    state = tuple(np.zeros(2) for _ in fm.rules.find(rule).state)
    settings = {"lr": 0.1, **({"max_speed": 1.0} if rule == "clipup" else {})}
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


@pytest.mark.parametrize("rule", ["lamb", "fire", "schedule_free_adamw"])
def test_trace_of_a_rule_with_sums_records_the_steps_that_are_done(rule):
    grads, traces = [*gradients_of(((40,),), 4, np.float32)], []
    for backend in BACKENDS:
        p = np.ones(40, np.float32)
        opt = fm.Optimizer(p, rule, lr=0.1, backend=backend)
        traces.append(opt.trace())
        for (grad,) in grads:
            before = p.copy()
            opt.step(grad)
            moved = ordered_sum((p - before).astype(np.float64) ** 2)
            assert traces[-1].step[-1] == math.sqrt(moved)
    assert traces[0].written == traces[1].written == []
    np.testing.assert_array_equal(traces[0].step, traces[1].step)


def test_evaluate_gives_the_average_of_schedule_free_and_averaged_rules_and_copies_of_other_parameters():
    p = np.ones(2)
    opt = fm.Optimizer(p, "pytorch", lr=0.1, momentum=0.5)
    found = opt.evaluate()
    assert found.tolist() == [1.0, 1.0]
    assert not np.shares_memory(found, p)
    opt = fm.Optimizer({"a": np.ones(2), "b": np.ones(1)}, fm.averaged("sgd"), lr=1.0)
    opt.step({"a": np.ones(2), "b": np.ones(1)})
    opt.step({"a": np.ones(2), "b": np.ones(1)})
    assert {name: x.tolist() for name, x in opt.evaluate().items()} == {"a": [-0.5, -0.5], "b": [-0.5]}


def test_schedule_free_average_is_the_weighted_mean_of_its_base_points():
    rng, points = np.random.default_rng(0), []
    p = rng.standard_normal(5)
    opt = fm.Optimizer(p, "schedule_free_sgd", lr=0.1, momentum=0.75, r=1.0)
    for _ in range(20):
        opt.step(rng.standard_normal(5))
        points.append(opt.state.copy())
        weights = np.arange(1, len(points) + 1)
        np.testing.assert_allclose(opt.evaluate(), weights @ np.array(points) / weights.sum(), rtol=1e-12)
        np.testing.assert_allclose(p, 0.25 * opt.state + 0.75 * opt.evaluate(), rtol=1e-12)
