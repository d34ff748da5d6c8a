"""fm.Momentum: settings, state, copies, and checks of what it holds and gets at every step."""

import numpy as np
import pytest

import fastmomentum as fm
from tests.helpers.arrays import REFUSED_ARRAYS, arrays_of, assert_untouched, gradients_of
from tests.helpers.copies import every_copy
from tests.helpers.functions import annealed, falling
from tests.helpers.reference import BACKENDS, RULES, VARIANTS, assert_all_same_bits, slots_of
from tests.helpers.runs import SHAPES, scheduled_run

NAN = float("nan")
F4 = np.float32


@pytest.mark.parametrize("backend", BACKENDS)
def test_functions_of_the_step_get_the_number_of_the_next_step(backend):
    p, g = np.zeros(3), np.ones(3)
    seen = []

    def lr(step):
        seen.append(step)
        return falling(step)

    opt = fm.Momentum(p, lr=lr, momentum=annealed, backend=backend)
    seen.clear()
    q, v = np.zeros(3), np.zeros(3)
    for step in range(6):
        assert opt.steps == step
        assert opt.lr == falling(step)
        assert opt.momentum == annealed(step)
        opt.step(g)
        fm.step(q, v, g, lr=falling(step), momentum=annealed(step), backend=backend)
    assert sorted(set(seen)) == [0, 1, 2, 3, 4, 5]
    assert_all_same_bits((p, opt.velocity), (q, v))


def test_lr_and_momentum_may_be_set():
    p, g = np.zeros(3), np.ones(3)
    q, v = np.zeros(3), np.zeros(3)
    opt = fm.Momentum(p, lr=0.1)
    settings = [(0.1, 0.9), (0.5, 0.9), (0.5, 0.25), (falling, 0.25), (falling, annealed), (0.1, annealed), (0.1, 0.1)]
    for step, (lr, momentum) in enumerate(settings):
        opt.lr, opt.momentum = lr, momentum
        opt.step(g)
        value = [x(step) if callable(x) else x for x in (lr, momentum)]
        fm.step(q, v, g, lr=value[0], momentum=value[1])
        assert_all_same_bits((p, opt.velocity), (q, v))
    groups = fm.Momentum([{"params": np.ones(2)}, {"params": np.ones(2)}], lr=0.1)
    assert groups.lr == [0.1, 0.1]
    groups.lr = [0.1, 0.2]
    assert groups.lr == [0.1, 0.2]
    groups.lr = 0.3
    assert groups.lr == [0.3, 0.3]


@pytest.mark.parametrize("dampening", [0.0, 0.5])
def test_dampening_has_no_effect_without_momentum_as_in_torch(dampening):
    p = np.zeros(3)
    opt = fm.Momentum(p, lr=1.0, momentum=0.0, dampening=dampening)
    opt.step(np.ones(3))
    opt.step(np.ones(3))
    np.testing.assert_array_equal(p, -2.0)


def test_first_step_keeps_a_velocity_written_by_the_user():
    p, g, v = np.zeros(3), np.ones(3), np.full(3, 4.0)
    opt = fm.Momentum(p, lr=1.0, momentum=0.5, dampening=0.25)
    opt.velocity[:] = v
    opt.step(g)
    np.testing.assert_array_equal(opt.velocity, 0.5 * v + 0.75 * g)


def test_state_has_the_form_that_step_accepts():
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


COPIED = [
    *(*RULES, *VARIANTS, fm.chain(fm.stages.box(-1.0, 1.0), "heavy_ball"), fm.rules.aggregated([0.5, 0.9])),
    *(fm.averaged("lion"), fm.averaged("aggmo", 0.9)),
]


@every_copy
@pytest.mark.parametrize(
    ("rule", "backend"),
    [*((rule, "numpy") for rule in COPIED), *((rule, "cpu") for rule in ("sgd", "heavy_ball", *COPIED[-4:]))],
    ids=str,
)
def test_copies_continue_with_the_same_bits_and_share_no_memory(rule, backend, make_copy):
    grads = gradients_of(SHAPES, 6, np.float32)
    opt = scheduled_run(rule, arrays_of(SHAPES, np.float32), backend=backend)
    for g in grads[:3]:
        opt.step(g)
    opt.reset("for the record")
    opt.step(grads[3])
    other = make_copy(opt)
    for p, q in zip(opt.params, other.params, strict=True):
        assert not np.may_share_memory(p, q)
    kept = [p.copy() for p in opt.params]
    other.step(grads[4])
    assert_all_same_bits(opt.params, kept)
    opt.step(grads[4])
    assert_all_same_bits(opt.params, other.params)
    for s, t in zip(opt.state, other.state, strict=True):
        assert_all_same_bits(slots_of(s), slots_of(t))
        assert not any(np.may_share_memory(one, two) for one in slots_of(s) for two in slots_of(t))
    assert (other.steps, other.resets) == (opt.steps, opt.resets)


def test_heavy_ball_treats_a_write_to_the_parameters_as_velocity():
    """Check what the documentation says; reset() removes such a velocity."""
    p = np.zeros(2)
    opt = fm.Momentum(p, rule="heavy_ball", lr=0.1, momentum=0.5)
    p += 1
    opt.step(np.zeros(2))
    np.testing.assert_array_equal(p, 1.5)
    opt.reset("parameters were loaded")
    opt.step(np.zeros(2))
    np.testing.assert_array_equal(p, 1.5)


def test_step_without_gradients_is_counted():
    p = [np.zeros(2), np.zeros(2)]
    opt = fm.Momentum(p, lr=1.0)
    for _ in range(3):
        opt.step([None, None])
    opt.step([np.ones(2), None])
    opt.step((None, np.ones(2)))
    opt.step([None, None])
    np.testing.assert_array_equal(p, -np.ones((2, 2)))
    assert opt.steps == 6


def test_reset_and_load_are_refused_when_an_array_is_read_only():
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


def test_step_is_refused_inside_a_step():
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
    with pytest.raises(AttributeError, match=r"learning_rate: expected a setting of rule 'pytorch'.*Did you mean lr\?"):
        opt.learning_rate = 0.5
    with pytest.raises(AttributeError, match="params: expected a setting"):
        opt.params = np.ones(2)
    with pytest.raises(AttributeError, match="rule: expected by the constructor alone"):
        opt.rule = "ema"
    opt.lr = 0.5
    assert (opt.lr, opt.steps) == (0.5, 0)


def test_an_optimiser_prints_what_it_is():
    opt = fm.Momentum([np.ones(2), np.ones(3)], rule="ema", lr=0.1, momentum=0.5)
    opt.step([np.ones(2), None])
    assert repr(opt) == "Momentum(rule='ema', lr=0.1, momentum=0.5, arrays=2, steps=1)"


def two_groups(backend="cpu", **settings):
    params = [np.arange(6, dtype=F4).reshape(2, 3), np.ones(4, np.float64), np.ones((), F4)]
    opt = fm.Momentum([{"params": params[:2]}, {"params": params[2], "lr": 0.5}], lr=0.1, backend=backend, **settings)
    return opt, params, [np.ones_like(p) for p in params]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", REFUSED_ARRAYS)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_momentum_refuses_a_gradient_that_it_cannot_serve(place, kind, backend):
    params = [np.ones(5, F4) for _ in range(3)]
    grads = [np.ones(5, F4) for _ in range(3)]
    opt = fm.Momentum(params, lr=0.1, backend=backend)
    opt.step(grads)
    before = [a.copy() for a in (*params, *opt.velocity)]
    make, error, reason = REFUSED_ARRAYS[kind]
    given = list(grads)
    given[place] = make(grads[place])
    if kind == "None":  # an array without gradient is not updated
        opt.step(given)
        assert_untouched([params[place]], [before[place]])
        return
    for _ in range(2):  # also when the same objects come again
        with pytest.raises(error, match=rf"^grads\[{place}\]: expected.*{reason}"):
            opt.step(given)
    assert opt.steps == 1
    assert_untouched([*params, *opt.velocity], before)
    opt.step(grads)
    assert opt.steps == 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_momentum_rechecks_what_it_holds_at_every_step(backend):
    def run(spoil, reason, mend):
        opt, params, grads = two_groups(backend)
        opt.step(grads)
        opt.step(grads)
        spoil(opt, params, grads)
        before = [a.tobytes() for a in (*params, *opt.velocity)]
        for _ in range(2):
            with pytest.raises((TypeError, ValueError), match=reason):
                opt.step(grads)
        assert [a.tobytes() for a in (*params, *opt.velocity)] == before
        mend(opt, params, grads)
        opt.step(grads)
        assert opt.steps == 3

    def lock(a):
        a.flags.writeable = False

    def unlock(a):
        a.flags.writeable = True

    run(lambda o, p, g: lock(p[1]), r"params\[0\]\['params'\]\[1\].*read-only", lambda o, p, g: unlock(p[1]))
    run(lambda o, p, g: lock(o.velocity[2]), r"velocity.*read-only", lambda o, p, g: unlock(o.velocity[2]))
    run(lambda o, p, g: setattr(g[1], "dtype", np.int64), "grads.*int64", lambda o, p, g: setattr(g[1], "dtype", float))
    run(lambda o, p, g: g[1].resize(2, refcheck=False), "grads.*shape", lambda o, p, g: g[1].resize(4, refcheck=False))
    run(
        lambda o, p, g: p[1].resize(9, refcheck=False),
        "velocity.*shape",
        lambda o, p, g: p[1].resize(4, refcheck=False),
    )
    run(lambda o, p, g: g.__setitem__(2, p[2]), "shares", lambda o, p, g: g.__setitem__(2, np.ones((), F4)))
    run(lambda o, p, g: g.__setitem__(2, o.velocity[2]), "shares", lambda o, p, g: g.__setitem__(2, np.ones((), F4)))
    # the gradient of one parameter is the memory of another
    run(
        lambda o, p, g: g.__setitem__(2, p[0].reshape(-1)[2:3].reshape(())),
        r"grads\[2\].*shares.*params\[0\]\['params'\]\[0\]",
        lambda o, p, g: g.__setitem__(2, np.ones((), F4)),
    )


def test_step_follows_an_array_whose_memory_moved():
    """Check that no old address is used after resize(refcheck=False) has moved the memory of an array."""
    p, g = np.zeros(300_000), np.ones(300_000)
    opt = fm.Momentum(p, lr=1.0, momentum=0.0)
    opt.step(g)
    before = p.__array_interface__["data"][0]
    other = []
    while p.__array_interface__["data"][0] == before:
        p.resize(p.size * 2, refcheck=False)
        other.append(np.ones(300_000))
        p.resize(300_000, refcheck=False)
    opt.step(g)
    np.testing.assert_array_equal(p, -2.0)


def test_one_gradient_array_can_serve_many_parameters():
    g = np.ones(3)
    params = [np.zeros(3), np.zeros(3)]
    fm.Momentum(params, lr=1.0).step([g, g])
    np.testing.assert_array_equal(params, -np.ones((2, 3)))


def test_momentum_refuses_a_wrong_number_of_gradients():
    opt, params, grads = two_groups()
    opt.step(grads)
    opt.step(grads)
    copies = [p.copy() for p in params]
    for given, error in (
        (grads[:2], ValueError),
        ([*grads, grads[0]], ValueError),
        (grads[0], ValueError),
        (None, TypeError),
        (iter(grads), TypeError),
    ):
        with pytest.raises((error, TypeError), match="grads"):
            opt.step(given)
    assert_untouched(params, copies)


def test_a_schedule_out_of_range_is_refused_at_its_step_with_nothing_changed():
    p, g = np.zeros(3), np.ones(3)
    values = [0.1, 0.2, NAN, 0.3]
    opt = fm.Momentum(p, lr=values.__getitem__)
    opt.step(g)
    opt.step(g)
    before = p.copy(), opt.velocity.copy()
    with pytest.raises(ValueError, match="lr.*nan"):
        opt.step(g)
    assert_untouched((p, opt.velocity), before)
    assert opt.steps == 2
    opt.lr = 0.3
    opt.step(g)
    assert opt.steps == 3


def test_a_refused_assignment_changes_nothing():
    opt, _, _ = two_groups()
    for bad in (-1.0, NAN, "x", [0.1], [0.1, -0.1], [0.1, 0.2, 0.3]):
        with pytest.raises((TypeError, ValueError), match="lr"):
            opt.lr = bad
        assert opt.lr == [0.1, 0.5]
