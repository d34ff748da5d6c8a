"""The optimiser object: groups, schedules, reset, saved states, copies."""

import copy
import pickle

import numpy as np
import pytest
from oracles import RULES, assert_same_bits

import fastmomentum as fm


def grads_for(shapes, steps, dtype=np.float32, seed=11):
    rng = np.random.default_rng(seed)
    return [[rng.standard_normal(shape).astype(dtype) for shape in shapes] for _ in range(steps)]


SHAPES = ((3, 4), (17,), ())


def params_for(shapes=SHAPES, dtype=np.float32):
    return [np.asarray(p, dtype) for p in grads_for(shapes, 1, dtype, seed=12)[0]]


def same(one, other):
    for a, b in zip(one, other, strict=True):
        assert_same_bits(a, b)


def falling(step):
    return 0.1 / (step + 1)


def rising(step):
    return min(0.5 + 0.1 * step, 0.9)


def test_groups_override_what_they_name():
    params = params_for()
    alone = [p.copy() for p in params]
    opt = fm.Momentum(
        [
            {"params": params[:1]},
            {"params": params[1], "lr": 0.5, "momentum": 0.5, "weight_decay": 0.0, "nesterov": True},
            {"params": (params[2],), "clip_value": 0.1, "maximize": True, "dampening": 0.5},
        ],
        lr=0.1,
        weight_decay=0.2,
    )
    separate = [
        fm.Momentum(alone[0], lr=0.1, weight_decay=0.2),
        fm.Momentum(alone[1], lr=0.5, momentum=0.5, nesterov=True),
        fm.Momentum(alone[2], lr=0.1, weight_decay=0.2, clip_value=0.1, maximize=True, dampening=0.5),
    ]
    for grads in grads_for(SHAPES, 4):
        opt.step(grads)
        for each, g in zip(separate, grads, strict=True):
            each.step(g)
    same(params, alone)
    same(opt.velocity, [each.velocity for each in separate])
    assert opt.lr == [0.1, 0.5, 0.1]
    assert opt.momentum == [0.9, 0.5, 0.9]
    assert all(a is b for a, b in zip(opt.params, params, strict=True))


def test_arrays_of_both_dtypes_go_in_one_optimiser():
    params = [np.ones(3, np.float32), np.ones(3, np.float64)]
    opt = fm.Momentum(params, lr=0.1)
    opt.step([np.ones(3, np.float32), np.ones(3)])
    assert_same_bits(params[0], np.full(3, np.float32(1) - np.float32(0.1)))
    assert_same_bits(params[1], np.full(3, 0.9))


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
def test_functions_of_the_step_are_called_with_the_number_of_the_update_to_come(backend):
    p, g = np.zeros(3), np.ones(3)
    seen = []

    def lr(step):
        seen.append(step)
        return falling(step)

    opt = fm.Momentum(p, lr=lr, momentum=rising, backend=backend)
    seen.clear()
    q, v = np.zeros(3), np.zeros(3)
    for step in range(6):
        assert opt.steps == step
        assert opt.lr == falling(step)
        assert opt.momentum == rising(step)
        opt.step(g)
        fm.step(q, v, g, lr=falling(step), momentum=rising(step), backend=backend)
    assert sorted(set(seen)) == [0, 1, 2, 3, 4, 5]
    same((p, opt.velocity), (q, v))


def test_lr_and_momentum_may_be_set():
    p, g = np.zeros(3), np.ones(3)
    q, v = np.zeros(3), np.zeros(3)
    opt = fm.Momentum(p, lr=0.1)
    settings = [(0.1, 0.9), (0.5, 0.9), (0.5, 0.25), (falling, 0.25), (falling, rising), (0.1, rising), (0.1, 0.1)]
    for step, (lr, momentum) in enumerate(settings):
        opt.lr, opt.momentum = lr, momentum
        opt.step(g)
        value = [x(step) if callable(x) else x for x in (lr, momentum)]
        fm.step(q, v, g, lr=value[0], momentum=value[1])
        same((p, opt.velocity), (q, v))
    groups = fm.Momentum([{"params": np.ones(2)}, {"params": np.ones(2)}], lr=0.1)
    assert groups.lr == 0.1
    groups.lr = [0.1, 0.2]
    assert groups.lr == [0.1, 0.2]
    groups.lr = 0.3
    assert groups.lr == 0.3


@pytest.mark.parametrize("dampening", [0.0, 0.5])
def test_without_momentum_dampening_has_no_part_as_in_torch(dampening):
    p = np.zeros(3)
    opt = fm.Momentum(p, lr=1.0, momentum=0.0, dampening=dampening)
    opt.step(np.ones(3))
    opt.step(np.ones(3))
    np.testing.assert_array_equal(p, -2.0)


@pytest.mark.parametrize("rule", RULES)
def test_reset_puts_the_state_to_rest_and_starts_anew(rule):
    params = params_for()
    opt = fm.Momentum(params, rule=rule, lr=0.1, **({"dampening": 0.5} if rule == "pytorch" else {}))
    grads = grads_for(SHAPES, 5)
    for g in grads[:3]:
        opt.step(g)
    fresh = [p.copy() for p in params]
    other = fm.Momentum(fresh, rule=rule, lr=0.1, **({"dampening": 0.5} if rule == "pytorch" else {}))
    opt.reset("the test says so")
    same([s for s in opt.state if s is not None], [s for s in other.state if s is not None])
    for g in grads[3:]:
        opt.step(g)
        other.step(g)
    same(params, fresh)
    assert opt.steps == 5
    assert opt.resets == [(3, "the test says so", "all")]
    assert opt.resets[0].reason == "the test says so"


@pytest.mark.parametrize(("reason", "error"), [("", ValueError), ("  ", ValueError), (None, TypeError), (3, TypeError)])
def test_reset_wants_a_reason(reason, error):
    opt = fm.Momentum(np.zeros(3), lr=0.1)
    opt.step(np.ones(3))
    with pytest.raises(error, match="reason"):
        opt.reset(reason)
    assert opt.velocity.any()


def test_a_velocity_written_before_the_first_step_is_not_lost():
    p, g, v = np.zeros(3), np.ones(3), np.full(3, 4.0)
    opt = fm.Momentum(p, lr=1.0, momentum=0.5, dampening=0.25)
    opt.velocity[:] = v
    opt.step(g)
    np.testing.assert_array_equal(opt.velocity, 0.5 * v + 0.75 * g)


def test_state_has_the_form_that_step_takes():
    p, g = np.zeros(3), np.ones(3)
    for rule in RULES:
        opt = fm.Momentum(p, rule=rule, lr=0.1)
        fm.step(p, opt.state, g, rule=rule, lr=0.1)
    assert fm.Momentum([p], rule="sgd", lr=0.1).state == [None]
    assert isinstance(fm.Momentum([p], lr=0.1).state, list)
    with pytest.raises(AttributeError, match="heavy_ball.*previous"):
        _ = fm.Momentum(p, rule="heavy_ball", lr=0.1).velocity
    with pytest.raises(AttributeError, match="no state"):
        _ = fm.Momentum(p, rule="sgd", lr=0.1).velocity


def make(rule, params, **settings):
    groups = [{"params": params[:2]}, {"params": params[2:], "weight_decay": 0.1}]
    return fm.Momentum(groups, rule=rule, lr=falling, momentum=rising, **settings)


@pytest.mark.parametrize("rule", RULES)
def test_a_run_resumed_from_its_state_dict_has_the_same_bits(rule):
    grads = grads_for(SHAPES, 8)
    for g in grads:
        g[1] = None if g is not grads[5] else g[1]  # starts late, in some cases behind the interruption
    straight = params_for()
    opt = make(rule, straight)
    for g in grads:
        opt.step(g)
    for stop in range(9):
        params = params_for()
        one = make(rule, params)
        for g in grads[:stop]:
            one.step(g)
        if stop == 3:
            one.reset("and go on")
        saved = one.state_dict()
        params = [p.copy() for p in params]
        two = make(rule, params)
        two.load_state_dict(saved)
        assert (two.steps, two.resets) == (stop, one.resets)
        for g in grads[stop:]:
            one.step(g)
            two.step(g)
        same(params, one.params)
        if stop != 3:
            same(params, straight)


def test_state_dict_restores_settings():
    p = np.zeros(3)
    opt = fm.Momentum(p, lr=0.25, momentum=0.5, weight_decay=0.125, clip_value=2.0)
    opt.lr = 0.75
    other = fm.Momentum(np.zeros(3), lr=1.0)
    other.load_state_dict(opt.state_dict())
    assert (other.lr, other.momentum) == (0.75, 0.5)
    opt.step(np.array([1.0, 2.0, 3.0]))
    other.step(np.array([1.0, 2.0, 3.0]))
    assert_same_bits(p, other.params)


def test_a_state_that_does_not_fit_is_refused_with_all_differences_and_changes_nothing():
    opt = fm.Momentum([np.zeros(3), np.zeros((2, 2))], lr=0.1)
    opt.step([np.ones(3), np.ones((2, 2))])
    saved = opt.state_dict()
    before = [v.copy() for v in opt.velocity]

    def refused(saved, *reasons):
        with pytest.raises((TypeError, ValueError)) as raised:
            opt.load_state_dict(saved)
        for reason in reasons:
            assert reason in str(raised.value)
        same(opt.velocity, before)
        assert (opt.steps, opt.lr) == (1, 0.1)

    refused(3, "dict")
    refused({}, "schema: missing", "state: missing")
    refused(saved | {"more": 1}, "more: unknown")
    refused(saved | {"schema": 99}, "schema: expected 1 or 2 or 3; got 99")
    refused(saved | {"rule": "ema", "started": [True]}, "rule: expected 'pytorch'; got 'ema'", "started: expected 2")
    refused(saved | {"state": saved["state"][:1]}, "state: expected 2 entries; got 1")
    wrong = [[np.zeros(4)], [np.zeros((2, 2), np.float32)]]
    refused(saved | {"state": wrong, "steps": 7}, "state[0]", "(4,)", "state[1]", "float32")
    refused(saved | {"groups": [saved["groups"][0] | {"lr": -1.0}]}, "lr")
    refused(saved | {"groups": [saved["groups"][0] | {"lr": None}]}, "lr was a function")
    other = fm.Momentum([np.zeros(3), np.zeros((2, 2))], lr=falling)
    refused(other.state_dict(), "lr was a function")
    opt.load_state_dict(saved)


def test_state_dict_shares_no_memory():
    opt = fm.Momentum(np.zeros(3), lr=0.1)
    opt.step(np.ones(3))
    saved = opt.state_dict()
    opt.step(np.ones(3))
    np.testing.assert_array_equal(saved["state"][0][0], 1.0)
    saved["groups"][0]["lr"] = 5.0
    assert opt.lr == 0.1


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("rule", [*RULES, fm.chain(fm.stages.box(-1.0, 1.0), "heavy_ball")], ids=str)
def test_copies_go_on_alike_and_share_nothing(rule, duplicate):
    grads = grads_for(SHAPES, 6)
    opt = make(rule, params_for())
    for g in grads[:3]:
        opt.step(g)
    opt.reset("for the record")
    opt.step(grads[3])
    other = duplicate(opt)
    for p, q in zip(opt.params, other.params, strict=True):
        assert not np.may_share_memory(p, q)
    kept = [p.copy() for p in opt.params]
    other.step(grads[4])
    same(opt.params, kept)
    opt.step(grads[4])
    same(opt.params, other.params)
    for s, t in zip(opt.state, other.state, strict=True):
        if s is not None:
            assert not np.may_share_memory(s, t)
            assert_same_bits(s, t)
    assert (other.steps, other.resets) == (opt.steps, opt.resets)


def test_heavy_ball_takes_a_write_to_the_parameters_for_velocity():
    """Told in its documentation; reset() is what makes it forget."""
    p = np.zeros(2)
    opt = fm.Momentum(p, rule="heavy_ball", lr=0.1, momentum=0.5)
    p += 1
    opt.step(np.zeros(2))
    np.testing.assert_array_equal(p, 1.5)
    opt.reset("parameters were loaded")
    opt.step(np.zeros(2))
    np.testing.assert_array_equal(p, 1.5)


def test_a_step_without_any_gradient_counts_and_the_next_one_works():
    p = [np.zeros(2), np.zeros(2)]
    opt = fm.Momentum(p, lr=1.0)
    for _ in range(3):
        opt.step([None, None])
    opt.step([np.ones(2), None])
    opt.step((None, np.ones(2)))
    opt.step([None, None])
    np.testing.assert_array_equal(p, -np.ones((2, 2)))
    assert opt.steps == 6


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
def test_the_first_step_is_that_of_the_array_s_own_group(backend):
    params = [np.zeros(2), np.zeros(2)]
    groups = [{"params": params[0], "nesterov": True}, {"params": params[1], "dampening": 0.5}]
    opt = fm.Momentum(groups, lr=0.1, backend=backend)
    opt.step([np.ones(2), np.ones(2)])
    np.testing.assert_array_equal(opt.velocity[1], 1.0)


def test_a_loaded_state_has_its_own_settings_and_no_others():
    opt = fm.Momentum(np.zeros(3), lr=0.1, nesterov=True)
    other = fm.Momentum(np.zeros(3), lr=0.1, nesterov=True, momentum_next=0.125, clip_value=1.0)
    other.load_state_dict(opt.state_dict())
    for each in (opt, other):
        each.step(np.full(3, 5.0))
    same([opt.params, opt.velocity], [other.params, other.velocity])


def test_a_state_of_another_rule_of_the_same_name_is_refused():
    def chained(limit, rule):
        return fm.Momentum(np.zeros(3), rule=fm.chain(fm.stages.clip_value(limit), rule), lr=0.1)

    saved = chained(1.0, "ema").state_dict()
    chained(1.0, "ema").load_state_dict(saved)
    for other in (chained(5.0, "ema"), chained(1.0, "classical")):
        with pytest.raises(ValueError, match="made_of"):
            other.load_state_dict(saved)


@pytest.mark.parametrize(
    "change",
    [
        {"steps": "x"}, {"steps": -3}, {"steps": 2.7}, {"steps": True}, {"skipped": None}, {"resets": [1]},
        {"resets": None}, {"resets": [(1, 2)]}, {"started": ["False"]}, {"groups": [3]}, {"groups": None},
        {"state": None}, {"state": [5]}, {"state": [[np.ma.ones(3)]]}, {"skip_nonfinite": 1},
    ],
    ids=str,
)  # fmt: skip
def test_a_malformed_state_is_refused_and_changes_nothing(change):
    opt = fm.Momentum(np.zeros(3), lr=0.1)
    opt.step(np.ones(3))
    before = pickle.dumps(opt.state_dict())
    saved = fm.Momentum(np.zeros(3), lr=0.5).state_dict()
    with pytest.raises((TypeError, ValueError), match=next(iter(change))):
        opt.load_state_dict(saved | change)
    assert pickle.dumps(opt.state_dict()) == before


def test_what_cannot_be_written_whole_is_not_begun():
    params = [np.zeros(3), np.zeros(3)]
    opt = fm.Momentum(params, lr=0.1)
    opt.step([np.ones(3), np.ones(3)])
    opt.velocity[1].flags.writeable = False
    decayed = fm.Momentum([np.zeros(3), np.zeros(3)], lr=0.5, weight_decay=0.5).state_dict()
    for call in (lambda: opt.reset("why"), lambda: opt.load_state_dict(decayed)):
        with pytest.raises(ValueError, match=r"velocity of params\[1\].*read-only"):
            call()
        np.testing.assert_array_equal(opt.velocity, 1.0)
        assert (opt.steps, opt.lr, opt.resets) == (1, 0.1, [])
    opt.velocity[1].flags.writeable = True
    opt.step([np.ones(3), np.ones(3)])
    np.testing.assert_array_equal(opt.velocity, 1.9)


def test_a_zero_dimensional_array_is_taken_for_the_number_that_it_holds():
    lr = np.array(0.25)
    opt = fm.Momentum(p := np.zeros(2), rule="sgd", lr=lr)
    lr[...] = 9.0
    opt.step(np.ones(2))
    assert opt.lr == 0.25
    np.testing.assert_array_equal(p, -0.25)
    assert type(opt.state_dict()["groups"][0]["lr"]) is float


def test_a_function_of_the_step_is_called_once_for_all_arrays_of_a_step():
    calls = []

    def drawn(step):
        calls.append(step)
        return 0.5 ** len(calls)

    params = [np.zeros(2), np.zeros(2, np.float32), np.zeros(2)]
    opt = fm.Momentum(params, lr=drawn, dampening=0.5)
    for step in range(3):
        calls.clear()
        before = [p.copy() for p in params]
        opt.step([np.ones(2), np.ones(2, np.float32), np.ones(2)])
        assert calls == [step]
        moves = [p - q for p, q in zip(params, before, strict=True)]
        np.testing.assert_array_equal(moves[0], moves[2])


def test_an_optimiser_is_not_entered_twice():
    def again(step):
        if opt is not None:
            opt.step(np.ones(2))
        return 0.1

    opt = None
    opt = fm.Momentum(np.zeros(2), lr=again)
    with pytest.raises(RuntimeError, match="one caller at a time"):
        opt.step(np.ones(2))
    assert opt.steps == 0


def test_a_misspelt_setting_is_refused():
    opt = fm.Momentum(np.ones(2), lr=0.1)
    with pytest.raises(AttributeError, match=r"learning_rate: expected lr or momentum, .*Did you mean lr\?"):
        opt.learning_rate = 0.5
    with pytest.raises(AttributeError):
        opt.steps = 5
    opt.lr = 0.5
    assert (opt.lr, opt.steps) == (0.5, 0)


def test_an_optimiser_prints_what_it_is():
    opt = fm.Momentum([np.ones(2), np.ones(3)], rule="ema", lr=0.1, momentum=0.5)
    opt.step([np.ones(2), None])
    assert repr(opt) == "Momentum(rule='ema', lr=0.1, momentum=0.5, arrays=2, steps=1)"
