"""Checks of settings and arrays that fm.step and fm.Momentum share, and their messages."""

from inspect import signature

import numpy as np
import pytest

import fastmomentum as fm
from fastmomentum import advice
from fastmomentum.optim import step
from fastmomentum.rules import options, registry
from tests.helpers.arrays import assert_untouched, random_arrays, read_only

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


@pytest.mark.parametrize(
    ("name", "value"), [(n, v) for n, values in BAD_NUMBERS.items() for v in values], ids=lambda x: str(x)[:20]
)
def test_step_and_momentum_refuse_settings_out_of_range(name, value):
    p, v, g = arrays = random_arrays(5, 3, F4)
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


ASSIGNED = {name: values for name, values in BAD_NUMBERS.items() if name not in ("threads", "backend", "rule")} | {
    "max_norm": (0.0, -1.0, NAN, INF, "1"),
    "clip_norm": (0.0, -1.0, NAN, INF, "1"),
    "skip_nonfinite": (None, -1, 0, 0.5, "yes"),
    "correct": (None, 1, 0.0, "yes"),
    "mask": (3, "no", np.ones(4, bool), np.ones(5), [True], np.ones(5, bool).reshape(5, 1)),
    "lr_scale": (-1.0, "no", np.ones(4), np.full(5, -1.0), np.full(5, NAN), np.full(5, 1e60)),
    "steps": (-1, 2**62 + 1, 0.5, "1", None, True),
}
BAD_GRADS = (
    *(np.ones(4, F4), np.ones((5, 1), F4), np.ones(5), np.ones(5, int), np.ones(5, np.complex64), np.ones(10, F4)[::2]),
    *([1.0] * 5, [np.ones(5, F4)], {"w": np.ones(5, F4)}, "abc", 1.0, object(), np.ma.ones(5, F4), np.ones(5, ">f4")),
)
BAD_CALLS = {
    "reset": (lambda opt: opt.reset(""), lambda opt: opt.reset(None), lambda opt: opt.reset("new", array=1)),
    "report": (lambda opt: opt.report(NAN), lambda opt: opt.report(1.0)),
    "trace": (lambda opt: opt.trace(0), lambda opt: opt.trace("1")),
    "replace": (lambda opt: opt.replace(1, opt.params), lambda opt: opt.replace(0, np.ones(4, F4))),
    "add_group": (lambda opt: opt.add_group({}), lambda opt: opt.add_group({"params": np.ones(3), "lr": NAN})),
    "convert": (lambda opt: opt.convert("lion"), lambda opt: opt.convert("no such")),
    "load_state_dict": (lambda opt: opt.load_state_dict({}), lambda opt: opt.load_state_dict(None)),
    "setattr": (lambda opt: setattr(opt, "learning_rate", 0.1), lambda opt: setattr(opt, "params", opt.params)),
    "delete": (lambda opt: opt.groups[0].__delitem__("lr"), lambda opt: opt.groups[0].update(no=3)),
}


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
def test_a_refused_call_leaves_an_optimiser_that_goes_on_with_the_same_bits(backend):
    """Check after every refusal that the next step is that of an optimiser that was never asked."""
    refusals = [
        *(
            (name, lambda opt, name=name, value=value: setattr(opt, name, value))
            for name, value in _pairs(ASSIGNED)
            if not isinstance(value, list) and np.ndim(value) != 1  # which have a value for each group
        ),
        *(
            (name, lambda opt, name=name, value=value: opt.groups[0].update({name: value}))
            for name, value in _pairs(ASSIGNED)
            if name != "steps"
        ),
        *(("grad", lambda opt, value=value: opt.step(value)) for value in BAD_GRADS),
        *_pairs(BAD_CALLS),
    ]
    found, expected = (fm.Momentum(np.ones(5, F4), lr=0.01, momentum=0.5, backend=backend) for _ in range(2))
    for number, ((name, refused), grad) in enumerate(
        zip(refusals, random_arrays((5,), len(refusals), F4), strict=True)
    ):
        assert is_refused(lambda refused=refused: refused(found)), (name, number)
        found.step(grad)
        expected.step(grad)
        assert np.array_equal(found.params, expected.params), name
        assert np.array_equal(found.velocity, expected.velocity), name
    assert found.steps == expected.steps == len(refusals)
    assert not found.resets


def is_refused(call):
    """Return whether a call raises one of the errors that the checks raise."""
    try:
        call()
    except (TypeError, ValueError, AttributeError):
        return True
    return False


def _pairs(table):
    return [(name, value) for name, values in table.items() for value in values]


@pytest.mark.parametrize("value", GOOD_NUMBERS, ids=repr)
def test_numbers_of_every_real_type_are_taken(value):
    expected = random_arrays(5, 3, F4)
    found = random_arrays(5, 3, F4)
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
    p, v, g = random_arrays(5, 3, F4)
    state = None if settings.get("rule") == "sgd" else v
    with pytest.raises((TypeError, ValueError), match=reason):
        fm.step(p, state, g, lr=0.1, **settings)
    with pytest.raises((TypeError, ValueError), match=reason):
        fm.Momentum(p, lr=0.1, **settings)


def test_unusual_settings_are_refused_by_name():
    p, v, g = random_arrays(5, 3, F4)
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


def test_memory_maps_are_accepted(tmp_path):
    mapped = np.memmap(tmp_path / "p", np.float32, "w+", shape=(4,))
    g = np.ones(4, F4)
    fm.step(mapped, np.zeros(4, F4), g, lr=0.5)
    np.testing.assert_array_equal(np.asarray(mapped), -0.5)
    opt = fm.Momentum(mapped, lr=0.5)
    for _ in range(2):
        opt.step(np.memmap(tmp_path / "g", np.float32, "w+", shape=(4,)) + 1)
    np.testing.assert_array_equal(np.asarray(mapped), F4(-1.0) - F4(0.5) * (F4(0.9) + F4(1.0)))


def test_dtype_with_metadata_is_accepted():
    """Check a dtype that equals float32 without being the same object, as unpickled arrays have it."""
    dtype = np.dtype(F4, metadata={"unit": "m"})
    p, g = np.zeros(3, dtype), np.ones(3, dtype)
    opt = fm.Momentum(p, lr=1.0)
    opt.step(g)
    fm.step(p, np.zeros(3, F4), g, lr=1.0)
    np.testing.assert_array_equal(p, -2.0)


def test_messages_say_what_to_do():
    """Check that the errors of new users come with advice."""
    torch = pytest.importorskip("torch")
    p, g = np.ones(3), np.ones(3)
    for call, says in (
        (lambda: fm.step([1.0, 2.0, 3.0], None, g, lr=0.1), "replace it by numpy.array(..., dtype=numpy.float64)"),
        (
            lambda: fm.step(np.ones(3, int), None, g, lr=0.1),
            "got int64. The array is updated in place: replace it everywhere by .astype(numpy.float64)",
        ),
        (lambda: fm.step(p, None, g, lr=0.1), "velocity (initially numpy.zeros_like(param)); got None"),
        (lambda: fm.step(p, None, g, lr=0.1, rule="heavy_ball"), "previous (initially numpy.array(param)); got None"),
        (
            lambda: fm.SparseRows(torch.nn.Parameter(torch.ones(3, 1)), lr=0.1),
            ".detach().numpy() returns one on the same memory",
        ),
        (lambda: fm.Momentum(p, lr=0.1).step(torch.ones(3)), "got torch.float32. Pass .to(torch.float64)"),
        (lambda: fm.Momentum(p, lr=fm.schedules.Nesterov), "got the class Nesterov itself"),
        (
            lambda: fm.Momentum(np.ones((2, 3)), lr=0.1).step(np.ones((3, 2)).T),
            "strides (8, 16) (a transposed or strided view?). Pass numpy.ascontiguousarray(...)",
        ),
        (lambda: fm.Momentum(p, lr=0.1).step([g]), "got a list of 1. Pass the array inside of it"),
        (lambda: fm.step(p, [np.zeros(3)], g, lr=0.1), "got a list of 1. Pass the array inside of it"),
        (lambda: fm.Momentum(read_only(p), lr=0.1), "replace it everywhere by numpy.array(...), a copy"),
    ):
        with pytest.raises((TypeError, ValueError)) as raised:
            call()
        assert says in str(raised.value)


def test_messages_name_all_parts_of_a_chain():
    lasso = fm.chain(fm.stages.scale(0.5), fm.stages.soft_threshold(0.1), "nesterov_positions")
    with pytest.raises(TypeError, match=r"rule chain\(scale, nesterov_positions, soft_threshold\) takes no such"):
        fm.Momentum(np.ones(3), lr=0.1, rule=lasso, gain=0.5)


def test_suggested_options_exist():
    known = {*signature(fm.Momentum).parameters, "keep_resets"} - {"self", "params", "positional", "hyper"}
    assert {*options.MOMENTUM.names, "lr", "momentum", "dampening"} == known
    assert set(advice.SYNONYMS.values()) <= known
    taken = {*signature(fm.step).parameters} - {"param", "state", "grad", "positional", "hyper"}
    assert {*step.TAKEN.names, "lr", "momentum", "dampening"} == taken
    assert set(registry.SYNONYMS.values()) <= set(fm.rules.names())
