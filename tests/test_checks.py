"""Promise 2: every argument is checked before the first write, and a refused step changes nothing."""

import re
from inspect import signature

import numpy as np
import pytest

import fastmomentum as fm
from fastmomentum import checks

NAN, INF = float("nan"), float("inf")
F4 = np.float32

BAD_NUMBERS = {
    "lr": (-0.1, NAN, INF, -INF, 1e39, "0.1", None, True, [0.1], np.array([0.1]), 0.1j, 10**400),
    "momentum": (-0.1, 1.0000001, NAN, INF, "0.9", None, False, np.array([0.9])),
    "dampening": (-0.1, 1.1, NAN, INF, "0", None),
    "weight_decay": (-0.1, NAN, INF, 1e39, "0", None, True),
    "decoupled_weight_decay": (-0.1, NAN, INF, 1e39, "0", None),
    "clip_value": (0.0, -1.0, NAN, INF, 1e39, 1e-60, "1"),
    "nesterov": (None, 1, 0.0, "yes"),
    "maximize": (None, 1, 0.0, "yes"),
    "threads": (0, -2, 1.0, True, "2"),
    "backend": ("gpu", 3),
    "rule": ("no such", None, 3),
}
GOOD_NUMBERS = (0, 1, np.float32(0.5), np.float64(0.5), np.int8(1), np.array(0.5), np.array(0.25, F4), -0.0)


def fresh(dtype=F4, shape=(5,)):
    rng = np.random.default_rng(10)
    return [rng.standard_normal(shape).astype(dtype) for _ in range(3)]


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def misaligned(a):
    raw = np.zeros(a.nbytes + 1, np.uint8)[1:]
    view = raw.view(a.dtype)
    assert not view.flags.aligned
    return view


BAD_ARRAYS = {
    "a list": (lambda a: a.tolist(), TypeError, "a list of 5"),
    "None": (lambda a: None, TypeError, "None"),
    "a number": (lambda a: 1.0, TypeError, "1.0"),
    "double": (lambda a: a.astype(np.float64), TypeError, "float64"),
    "half": (lambda a: a.astype(np.float16), TypeError, "float16"),
    "integers": (lambda a: a.astype(np.int32), TypeError, "int32"),
    "complex": (lambda a: a.astype(np.complex64), TypeError, "complex64"),
    "objects": (lambda a: a.astype(object), TypeError, "object"),
    "byte order": (lambda a: a.astype(a.dtype.newbyteorder()), TypeError, "byte order"),
    "masked": (np.ma.masked_array, TypeError, "mask"),
    "short": (lambda a: a[:4].copy(), ValueError, r"\(4,\)"),
    "long": (lambda a: np.append(a, a[:1]), ValueError, r"\(6,\)"),
    "empty": (lambda a: a[:0], ValueError, r"\(0,\)"),
    "2-D": (lambda a: a[None].copy(), ValueError, r"\(1, 5\)"),
    "strided": (lambda a: np.repeat(a, 2)[::2], ValueError, "strides"),
    "reversed": (lambda a: a[::-1], ValueError, "strides"),
    "broadcast": (lambda a: np.broadcast_to(a[:1], 5), ValueError, "strides"),
    "misaligned": (misaligned, ValueError, "aligned"),
}
READ_ONLY = {"read-only": (read_only, ValueError, "read-only")}


def assert_untouched(arrays, copies):
    for array, copy in zip(arrays, copies, strict=True):
        assert array.tobytes() == copy.tobytes()


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
@pytest.mark.parametrize("kind", [*BAD_ARRAYS, *READ_ONLY])
@pytest.mark.parametrize("which", ["param", "state", "grad"])
def test_step_refuses_arrays_that_it_cannot_serve(which, kind, backend):
    make, error, reason = (BAD_ARRAYS | READ_ONLY)[kind]
    arrays = fresh()
    if which == "grad" and kind == "read-only":
        fm.step(arrays[0], arrays[1], make(arrays[2]), lr=0.1, backend=backend)  # gradients are only read
        return
    place = ("param", "state", "grad").index(which)
    copies = [a.copy() for a in arrays]
    given = list(arrays)
    given[place] = make(arrays[place])
    # A parameter of another dtype or size is fine by itself: then the state does not fit it.
    named = "state" if which == "param" and kind in ("double", "short", "long", "empty", "2-D") else which
    with pytest.raises(error, match=f"^{named}: expected|^state: rule.*expects") as raised:
        fm.step(*given, lr=0.1, backend=backend)
    if named == which:
        assert re.search(reason, str(raised.value))
    assert_untouched(arrays, copies)


@pytest.mark.parametrize(
    ("name", "value"), [(n, v) for n, values in BAD_NUMBERS.items() for v in values], ids=lambda x: str(x)[:20]
)
def test_step_and_momentum_refuse_settings_out_of_range(name, value):
    p, v, g = arrays = fresh()
    copies = [a.copy() for a in arrays]
    settings = {"lr": 0.1, name: value}
    if name == "momentum":  # also where the rule does not use it
        with pytest.raises((TypeError, ValueError), match=name):
            fm.step(p, None, g, rule="sgd", **settings)
    for call in (lambda: fm.step(p, v, g, **settings), lambda: fm.Momentum(p, **settings)):
        with pytest.raises((TypeError, ValueError), match=name) as raised:
            call()
        assert "expected" in str(raised.value) or name == "rule"
    if name not in ("threads", "backend", "rule"):
        with pytest.raises((TypeError, ValueError), match=name):
            fm.Momentum([{"params": p}, {"params": g, name: value}], lr=0.1)
    assert_untouched(arrays, copies)


@pytest.mark.parametrize("value", GOOD_NUMBERS, ids=repr)
def test_numbers_of_every_real_type_are_taken(value):
    expected = fresh()
    found = fresh()
    fm.step(*expected, lr=float(value) + 0.0, momentum=float(value) + 0.0)
    fm.step(*found, lr=value, momentum=value)
    assert_untouched(found, expected)
    opt = fm.Momentum(found[0], lr=value, momentum=value)
    opt.step(found[2])


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"nesterov": True, "rule": "sgd"}, "no folded Nesterov form"),
        ({"nesterov": True, "rule": "heavy_ball"}, "no folded Nesterov form"),
        ({"nesterov": True, "dampening": 0.5}, "dampening.*no dampened form"),
        ({"dampening": 0.5, "rule": "ema"}, "dampening.*no dampened form"),
        ({"dampening": 0.5, "rule": "classical"}, "dampening.*no dampened form"),
        ({"momentum_next": 0.5}, "momentum_next.*takes no such"),
        ({"learning_rate": 0.5}, "learning_rate.*takes no such.*it takes lr, momentum, dampening. Did you mean lr"),
        ({"weight_decy": 0.5}, "weight_decy.*Did you mean weight_decay"),
        ({"dampenning": 0.5}, "dampenning.*Did you mean dampening"),
        ({"beta": 0.5, "rule": "ema"}, "beta.*Did you mean momentum"),
        ({"foreach": True}, "foreach.*has all options"),
        ({"momentum_next": 1.5, "nesterov": True}, "momentum_next"),
    ],
)
def test_options_without_a_form_that_serves_them_are_refused(settings, reason):
    p, v, g = fresh()
    state = None if settings.get("rule") == "sgd" else v
    with pytest.raises((TypeError, ValueError), match=reason):
        fm.step(p, state, g, lr=0.1, **settings)
    with pytest.raises((TypeError, ValueError), match=reason):
        fm.Momentum(p, lr=0.1, **settings)


def test_nesterov_selects_the_folded_form():
    for rule in ("pytorch", "classical", "ema"):
        (p, v, g), (q, w, _) = fresh(), fresh()
        fm.step(p, v, g, rule=rule, nesterov=True, lr=0.1)
        fm.step(q, w, g, rule=f"{rule}_nesterov", lr=0.1)
        assert_untouched((p, v), (q, w))


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
def test_step_refuses_overlapping_arrays(backend):
    base = np.arange(12, dtype=F4)
    a, b = base[:5], base[4:9]  # they share one element
    apart = np.ones(5, F4)
    copy = base.copy()
    for arrays, named in (
        ((a, b, apart), "param.*velocity"),
        ((a, apart, b), "param.*grad"),
        ((apart, a, b), "velocity.*grad"),
        ((a, a, apart), "param.*velocity"),
        ((a, apart, a), "param.*grad"),
        ((apart, a, a), "velocity.*grad"),
        ((a, a, a), "param"),
    ):
        with pytest.raises(ValueError, match=f"{named}"):
            fm.step(*arrays, lr=0.1, backend=backend)
    assert_untouched([base], [copy])
    fm.step(base[:4], base[4:8], base[8:], lr=0.1, backend=backend)  # neighbours do not overlap


def test_step_refuses_a_state_that_the_rule_does_not_keep():
    p, v, g = fresh()
    for rule, state in (("sgd", v), ("sgd", (v,)), ("pytorch", None), ("pytorch", ()), ("pytorch", (v, v.copy()))):
        with pytest.raises(TypeError, match="state: rule.*expects"):
            fm.step(p, state, g, rule=rule, lr=0.1)
    fm.step(p, (v,), g, lr=0.1)
    fm.step(p, (), g, rule="sgd", lr=0.1)


def many(backend="cpu", **settings):
    params = [np.arange(6, dtype=F4).reshape(2, 3), np.ones(4, np.float64), np.ones((), F4)]
    opt = fm.Momentum([{"params": params[:2]}, {"params": params[2], "lr": 0.5}], lr=0.1, backend=backend, **settings)
    return opt, params, [np.ones_like(p) for p in params]


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
@pytest.mark.parametrize("kind", BAD_ARRAYS)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_momentum_refuses_a_gradient_that_it_cannot_serve(place, kind, backend):
    params = [np.ones(5, F4) for _ in range(3)]
    grads = [np.ones(5, F4) for _ in range(3)]
    opt = fm.Momentum(params, lr=0.1, backend=backend)
    opt.step(grads)
    before = [a.copy() for a in (*params, *opt.velocity)]
    make, error, reason = BAD_ARRAYS[kind]
    given = list(grads)
    given[place] = make(grads[place])
    if kind == "None":  # that array is left alone
        opt.step(given)
        assert_untouched([params[place]], [before[place]])
        return
    for _ in range(2):  # also when the very same objects come again
        with pytest.raises(error, match=rf"^grads\[{place}\]: expected.*{reason}"):
            opt.step(given)
    assert opt.steps == 1
    assert_untouched([*params, *opt.velocity], before)
    opt.step(grads)
    assert opt.steps == 2


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
def test_momentum_rechecks_what_it_holds_at_every_step(backend):
    def run(spoil, reason, mend):
        opt, params, grads = many(backend)
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
    # across parameters: the gradient of one is the memory of another
    run(
        lambda o, p, g: g.__setitem__(2, p[0].reshape(-1)[2:3].reshape(())),
        r"grads\[2\].*shares.*params\[0\]\['params'\]\[0\]",
        lambda o, p, g: g.__setitem__(2, np.ones((), F4)),
    )


def test_an_array_whose_memory_moved_is_followed():
    """resize(refcheck=False) moves the memory under the same object; a bare address would now point nowhere."""
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


def test_a_shared_gradient_may_serve_many_arrays():
    g = np.ones(3)
    params = [np.zeros(3), np.zeros(3)]
    fm.Momentum(params, lr=1.0).step([g, g])
    np.testing.assert_array_equal(params, -np.ones((2, 3)))


@pytest.mark.parametrize(
    ("params", "error", "reason"),
    [
        ([], ValueError, "at least one"),
        ([{"params": []}], ValueError, "at least one"),
        ({}, TypeError, "sequence of dicts"),
        ("abc", TypeError, "sequence of dicts"),
        (3, TypeError, "sequence of dicts"),
        ([np.ones(3), {"params": np.ones(3)}], TypeError, r"params\[0\].*dict"),
        ([{"param": np.ones(3), "lr": 0.1}], TypeError, r"params\[0\].*'params'.*got one with \['param', 'lr'\]"),
        ([{"params": 3}], TypeError, r"params\[0\]\['params'\]"),
        ([{"params": np.ones(3), "rule": "sgd"}], TypeError, "rule"),
        ([{"params": np.ones(3), "lrr": 0.1}], TypeError, "lrr"),
        ([np.ones(3), [1.0]], TypeError, r"params\[1\]"),
        ([np.ones(3), np.ones(3, int)], TypeError, r"params\[1\].*int64"),
        ([np.ones(6)[::2]], ValueError, r"params\[0\].*strides"),
        (np.ones((3, 3)).T[:2], ValueError, "params.*strides"),
        ([read_only(np.ones(3))], ValueError, r"params\[0\].*read-only"),
    ],
)
def test_momentum_refuses_parameters_that_it_cannot_serve(params, error, reason):
    with pytest.raises(error, match=reason):
        fm.Momentum(params, lr=0.1)


def test_momentum_refuses_parameters_that_share_memory():
    base = np.zeros(10)
    with pytest.raises(ValueError, match=r"params\[1\].*shares with params\[0\]"):
        fm.Momentum([base[:6], base[5:]], lr=0.1)
    with pytest.raises(ValueError, match=r"shares"):
        fm.Momentum([base, base], lr=0.1)
    fm.Momentum([base[:5], base[5:], base[5:5]], lr=0.1)


def test_momentum_refuses_a_wrong_number_of_gradients():
    opt, params, grads = many()
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
    opt, _, _ = many()
    for bad in (-1.0, NAN, "x", [0.1], [0.1, -0.1], [0.1, 0.2, 0.3]):
        with pytest.raises((TypeError, ValueError), match="lr"):
            opt.lr = bad
        assert opt.lr == [0.1, 0.5]


def test_odd_settings_are_refused_by_name():
    p, v, g = fresh()
    with pytest.raises(TypeError, match="dtype.*takes no such"):
        fm.step(p, v, g, lr=0.1, dtype=3)
    with pytest.raises(ValueError, match="lr: expected.*an integer of 16610 bits"):
        fm.step(p, v, g, lr=10**5000)
    with pytest.raises(ValueError, match="shrink"):
        fm.step(p, v, g, lr=1e30, decoupled_weight_decay=1e30)
    with pytest.raises(TypeError, match=r"params\[0\].*names of settings; got 3"):
        fm.Momentum([{"params": p, 3: 1}], lr=0.1)
    with pytest.raises(ValueError, match="lr.*nan"):
        fm.Momentum([{"params": p}, {"params": [], "lr": NAN}], lr=0.1)


def test_nan_and_infinite_gradients_are_data():
    p = np.zeros(4)
    fm.step(p, np.zeros(4), np.array([NAN, INF, -INF, 1.0]), lr=1.0)
    np.testing.assert_array_equal(p, [NAN, -INF, INF, -1.0])


def test_subclasses_of_ndarray_are_taken_as_what_they_hold(tmp_path):
    mapped = np.memmap(tmp_path / "p", np.float32, "w+", shape=(4,))
    g = np.ones(4, F4)
    fm.step(mapped, np.zeros(4, F4), g, lr=0.5)
    np.testing.assert_array_equal(np.asarray(mapped), -0.5)
    opt = fm.Momentum(mapped, lr=0.5)
    for _ in range(2):
        opt.step(np.memmap(tmp_path / "g", np.float32, "w+", shape=(4,)) + 1)
    np.testing.assert_array_equal(np.asarray(mapped), F4(-1.0) - F4(0.5) * (F4(0.9) + F4(1.0)))


def test_a_dtype_object_of_its_own_is_no_other_dtype():
    """Unpickled arrays, and dtypes with metadata, are float32 without being the float32 object."""
    dtype = np.dtype(F4, metadata={"unit": "m"})
    p, g = np.zeros(3, dtype), np.ones(3, dtype)
    opt = fm.Momentum(p, lr=1.0)
    opt.step(g)
    fm.step(p, np.zeros(3, F4), g, lr=1.0)
    np.testing.assert_array_equal(p, -2.0)


def test_messages_say_what_to_do():
    """The errors of a newcomer, each with the way out."""
    torch = pytest.importorskip("torch")
    p, g = np.ones(3), np.ones(3)
    for call, says in (
        (lambda: fm.step([1.0, 2.0, 3.0], None, g, lr=0.1), "numpy.array(..., dtype=numpy.float32) makes one"),
        (lambda: fm.step(np.ones(3, int), None, g, lr=0.1), "got int64. .astype(numpy.float32) makes one"),
        (lambda: fm.step(p, None, g, lr=0.1), "velocity (numpy.zeros_like(param) at rest); got None"),
        (lambda: fm.step(p, None, g, lr=0.1, rule="heavy_ball"), "previous (param.copy() at rest); got None"),
        (
            lambda: fm.Momentum(torch.nn.Parameter(torch.ones(3)), lr=0.1),
            ".detach().numpy() is one, on the same memory",
        ),
        (lambda: fm.Momentum(p, lr=0.1).step(torch.ones(3)), ".detach().numpy() is one, on the same memory"),
        (lambda: fm.Momentum(p, lr=fm.schedules.Nesterov), "got the class Nesterov itself"),
        (lambda: fm.Momentum(np.ones((2, 3)).T, lr=0.1), "numpy.ascontiguousarray"),
        (lambda: fm.Momentum(p, lr=0.1).step([g]), "got a list of 1. Pass the array in it itself"),
        (lambda: fm.step(p, [np.zeros(3)], g, lr=0.1), "got a list of 1. Pass the array in it itself"),
        (lambda: fm.Momentum({"w": p}, lr=0.1), "got dict. list(....values()) has its arrays, in order"),
        (lambda: fm.Momentum(read_only(p), lr=0.1), "numpy.array(...) makes a copy that is"),
    ):
        with pytest.raises((TypeError, ValueError)) as raised:
            call()
        assert says in str(raised.value)


def test_parameters_may_come_from_a_generator_or_a_dict_s_values():
    arrays = {"w": np.ones(3), "b": np.ones(2)}
    for params in (arrays.values(), iter(arrays.values()), [{"params": (a for a in arrays.values())}]):
        opt = fm.Momentum(params, lr=0.1)
        assert all(ours is theirs for ours, theirs in zip(opt.params, arrays.values(), strict=True))


def test_a_chain_is_called_by_all_that_it_is_made_of():
    lasso = fm.chain(fm.stages.scale(0.5), fm.stages.soft_threshold(0.1), "nesterov_positions")
    with pytest.raises(TypeError, match=r"rule Chain\(scale, nesterov_positions, soft_threshold\) takes no such"):
        fm.Momentum(np.ones(3), lr=0.1, rule=lasso, gain=0.5)


def test_every_option_that_a_typo_may_have_meant_is_one():
    known = {*signature(fm.Momentum).parameters} - {"self", "params", "hyper"}
    assert set(checks.OPTIONS) == known
    assert set(checks.ELSEWHERE.values()) <= known
