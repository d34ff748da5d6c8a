"""Properties for random shapes, strides, values, hyper-parameters, overlaps, and sequences of operations."""

import copy
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import fastmomentum as fm
from tests.helpers.fuzz import examples
from tests.helpers.model import Model
from tests.helpers.reference import (
    BACKENDS,
    DTYPES,
    RULES,
    assert_same_bits,
    bits,
    rest,
    update,
    update_in_a_run,
    with_options,
)

# Kernels compile on first use, which takes longer than an example should.
relaxed = examples(150)


def quiet():
    return np.errstate(all="ignore")


ANY_DTYPE = st.sampled_from(DTYPES)
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9)
UNIT = st.floats(0, 1, width=32)
SMALL = st.floats(0, 2, width=32)


def arrays(dtype, shape, count):
    """Return strategies for arrays of any values: subnormal, huge, infinite, NaN, −0."""
    width = 32 if dtype == np.float32 else 64
    numbers = st.floats(width=width, allow_nan=True, allow_infinity=True, allow_subnormal=True)
    return [hnp.arrays(dtype, shape, elements=numbers) for _ in range(count)]


@relaxed
@given(
    data=st.data(),
    name=st.sampled_from(RULES),
    dtype=ANY_DTYPE,
    shape=SHAPES,
    lr=SMALL,
    momentum=UNIT,
    clip=st.none() | SMALL,
    decay=SMALL,
    maximize=st.booleans(),
)
def test_a_step_has_the_bits_of_numpy_whatever_the_values(
    data, name, dtype, shape, lr, momentum, clip, decay, maximize
):
    clip = clip if clip and dtype(clip) > 0 else None
    p, s, g = (data.draw(a) for a in arrays(dtype, shape, 3))
    options = {"clip_value": clip, "weight_decay": decay, "maximize": maximize}
    with quiet():
        want_p, want_g = with_options(p, g, dtype, lr=lr, **options)
        want_p, want_s = update(name, want_p, s, want_g, dtype, lr=lr, momentum=momentum)
    for backend in BACKENDS:
        q, t = p.copy(), s.copy()
        state = None if name == "sgd" else t
        fm.step(q, state, g, rule=name, lr=lr, momentum=momentum, backend=backend, **options)
        assert_same_bits(q, np.asarray(want_p, dtype).reshape(shape))
        assert_same_bits(t, np.asarray(want_s, dtype).reshape(shape))


@relaxed
@given(data=st.data(), name=st.sampled_from(RULES), dtype=ANY_DTYPE, lr=SMALL, momentum=UNIT)
def test_momentum_has_the_bits_of_numpy_for_any_arrays(data, name, dtype, lr, momentum):
    shapes = data.draw(st.lists(SHAPES, min_size=1, max_size=4))
    params = [data.draw(arrays(dtype, shape, 1)[0]) for shape in shapes]
    want = [(p.copy(), rest(name, p)) for p in params]
    opt = fm.Momentum(params, rule=name, lr=lr, momentum=momentum)
    for _ in range(2):
        grads = [data.draw(st.none() | arrays(dtype, shape, 1)[0]) for shape in shapes]
        opt.step(grads)
        with quiet():
            want = [
                (p, s) if g is None else update_in_a_run(name, p, s, g, dtype, lr=lr, momentum=momentum)
                for (p, s), g in zip(want, grads, strict=True)
            ]
    for p, (q, _) in zip(params, want, strict=True):
        assert_same_bits(p, np.asarray(q, dtype).reshape(p.shape))


@relaxed
@given(data=st.data())
def test_views_of_one_buffer_are_served_if_they_lie_apart_and_refused_if_not(data):
    n = data.draw(st.integers(0, 6))
    starts = [data.draw(st.integers(0, 20)) for _ in range(3)]
    base = np.arange(30.0)
    kept = base.copy()
    p, v, g = (base[i : i + n] for i in starts)
    overlap = n > 0 and any(abs(i - j) < n for k, i in enumerate(starts) for j in starts[:k])
    if overlap:
        with pytest.raises(ValueError, match="shares"):
            fm.step(p, v, g, lr=0.5)
        assert_same_bits(base, kept)
    else:
        want = update("pytorch", p.copy(), v.copy(), g.copy(), float, lr=0.5, momentum=0.9)
        fm.step(p, v, g, lr=0.5)
        assert_same_bits(p, want[0])
        assert_same_bits(v, want[1])


@relaxed
@given(data=st.data(), shape=hnp.array_shapes(max_dims=3, max_side=4))
def test_strided_views_are_served_if_they_are_dense_and_refused_if_not(data, shape):
    lengths = [data.draw(st.sampled_from([n, 2 * n])) for n in shape]
    base = np.ones(lengths)
    starts = [slice(0, 2 * n, 2) if length > n else slice(None) for n, length in zip(shape, lengths)]
    view = base[tuple(starts)]
    view = np.flip(view, [axis for axis in range(view.ndim) if data.draw(st.booleans())])
    view = view.transpose(data.draw(st.permutations(range(view.ndim))))
    filled = np.zeros(base.size, bool)
    offsets = [sum(i * s for i, s in zip(at, view.strides)) // 8 for at in np.ndindex(view.shape)]
    filled[np.array(offsets) - min(offsets)] = True
    if filled[: len(offsets)].all():  # the elements fill an interval
        v, g = (np.flip(np.empty_like(view), [k for k, s in enumerate(view.strides) if s < 0]) for _ in range(2))
        v[...], g[...] = 0.0, 1.0
        fm.step(view, v, g, lr=0.5)
        assert (view == 0.5).all()
    else:
        v, g = np.zeros(view.shape), np.ones(view.shape)
        with pytest.raises(ValueError, match="param: expected elements that fill an interval"):
            fm.step(view, v, g, lr=0.5)
        with pytest.raises(ValueError, match="params: expected elements that fill an interval"):
            fm.Momentum(view, lr=0.5)
        with pytest.raises(ValueError, match="grads: expected a C-contiguous array"):
            fm.Momentum(g, lr=0.5).step(view)
        assert (base == 1).all()
        assert (g == 1).all()


NUMBERS = st.one_of(
    st.floats(),
    st.integers(-2, 2),
    st.integers(min_value=10**300),
    st.booleans(),
    st.none(),
    st.complex_numbers(),
    st.floats(width=32).map(np.float32),
    st.floats(width=16).map(np.float16),
    st.integers(0, 5).map(np.int64),
    st.booleans().map(np.bool_),
    st.floats().map(np.array),
    st.booleans().map(np.array),
    st.lists(st.floats(), max_size=2),
    st.fractions(),
    st.text(max_size=3),
)
ALLOWED = {
    "lr": lambda x: x >= 0,
    "momentum": lambda x: 0 <= x <= 1,
    "dampening": lambda x: 0 <= x <= 1,
    "weight_decay": lambda x: x >= 0,
    "decoupled_weight_decay": lambda x: x >= 0,
    "clip_value": lambda x: x > 0,
}


def may_serve(name, value, dtype):
    """Return whether the documentation allows this value."""
    if name == "clip_value" and value is None:
        return True
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, (bool, np.bool_, complex, str, list, type(None))):
        return False
    try:
        with quiet():
            value, cast = float(value), float(dtype(float(value)))
    except OverflowError:
        return False
    return all(np.isfinite(x) and ALLOWED[name](x) for x in (value, cast))


@relaxed
@given(name=st.sampled_from(sorted(ALLOWED)), value=NUMBERS, dtype=ANY_DTYPE)
def test_a_hyper_parameter_is_taken_or_refused_by_its_words(name, value, dtype):
    p, v, g = np.ones(3, dtype), np.zeros(3, dtype), np.ones(3, dtype)
    chosen = {"lr": 0.5, name: value}
    calls = (
        lambda: fm.step(p, v, g, **chosen),
        lambda: fm.Momentum(p, **chosen),
        lambda: fm.Momentum([{"params": p, **chosen}], lr=0.1),
    )
    if name == "decoupled_weight_decay" and may_serve(name, value, dtype):
        assume(np.isfinite(dtype(0.5) * dtype(value)))  # 1 − lr·λ is refused too if it overflows
    for call in calls:
        if may_serve(name, value, dtype):
            call()
        else:
            with pytest.raises((TypeError, ValueError), match=f"^{name}: expected"):
                call()
            assert (p == 1).all()
            assert not v.any()


SIZES = (3, 1, 17)
NUMBER = st.floats(-4, 4, width=32)
BAD = st.sampled_from([np.nan, np.inf, -np.inf])


class Sequences(RuleBasedStateMachine):
    """Steps, changed settings, resets, saving, loading, copying and converting, against the slow model."""

    @initialize(
        name=st.sampled_from(RULES),
        clip=st.sampled_from([None, 0.5]),
        decay=st.sampled_from([0.0, 0.25]),
        maximize=st.booleans(),
        limit=st.sampled_from([None, 1.5]),
        skip=st.booleans(),
        data=st.data(),
    )
    def start(self, name, clip, decay, maximize, limit, skip, data):
        self.settings = {
            "clip_value": clip,
            "weight_decay": decay,
            "maximize": maximize,
            "max_norm": limit,
            "skip_nonfinite": skip,
        }
        values = [[data.draw(NUMBER) for _ in range(n)] for n in SIZES]
        self.runs = [
            fm.Momentum([np.array(p) for p in values], rule=name, lr=0.125, momentum=0.75, backend=b, **self.settings)
            for b in BACKENDS
        ]
        self.model = Model(values, name, 0.125, 0.75, clip=clip, decay=decay, maximize=maximize, limit=limit, skip=skip)
        self.resets = []

    @rule(data=st.data(), missing=st.sets(st.integers(0, 2)), bad=st.none() | BAD)
    def step(self, data, missing, bad):
        grads = [None if i in missing else [data.draw(NUMBER) for _ in range(n)] for i, n in enumerate(SIZES)]
        if bad is not None and self.settings["skip_nonfinite"] and grads[2]:
            grads[2][data.draw(st.integers(0, 16))] = bad
        for opt in self.runs:
            opt.step([g if g is None else np.array(g) for g in grads])
        self.model.step(grads)

    @rule(lr=st.sampled_from([0.0, 0.0625, 0.5]), momentum=st.sampled_from([0.0, 0.5, 1.0]))
    def change(self, lr, momentum):
        for opt in self.runs:
            opt.lr, opt.momentum = lr, momentum
        self.model.lr, self.model.momentum = lr, momentum

    @rule()
    def reset(self):
        for opt in self.runs:
            opt.reset("a rule of the test")
        self.resets.append((self.model.steps, "a rule of the test", "all"))
        self.model.reset()

    @rule()
    def save_and_load(self):
        with tempfile.TemporaryDirectory() as folder:
            for i, opt in enumerate(self.runs):
                opt.save(Path(folder, "run"))
                self.runs[i] = fm.Momentum.load(Path(folder, "run"), opt.params, backend=BACKENDS[i])

    @rule()
    def state_dict_into_another(self):
        for i, opt in enumerate(self.runs):
            saved = opt.state_dict()
            self.runs[i] = fm.Momentum(opt.params, rule=self.model.rule, lr=9.0, backend=BACKENDS[i])
            self.runs[i].load_state_dict(saved)

    @rule(number=st.integers(0, 2))
    def replace(self, number):
        for opt in self.runs:
            opt.replace(number, opt.params[number].copy())

    @rule(data=st.data())
    def refuse(self, data):
        """Refuse a change of each kind, which leaves the run as it is."""

        def raising(step):
            raise KeyError(step)

        opt = data.draw(st.sampled_from(self.runs))
        saved = opt.state_dict()
        changes = (
            lambda: setattr(opt, "lr", -1.0),
            lambda: setattr(opt, "momentum", raising),
            lambda: setattr(opt, "max_norm", "x"),
            lambda: opt.step([np.ones(1)]),
            lambda: opt.step([None, np.ones(2), None]),
            lambda: opt.reset("a test", array=7),
            lambda: opt.replace(0, np.ones(2)),
            lambda: opt.add_group({"params": np.ones(2), "lr": raising}),
            lambda: opt.load_state_dict(saved | {"steps": 2**63}),
            lambda: opt.load_state_dict(saved | {"state": saved["state"][:1]}),
        )
        with pytest.raises((TypeError, ValueError, KeyError)):
            data.draw(st.sampled_from(changes))()

    @rule(pickled=st.booleans())
    def go_on_with_a_copy(self, pickled):
        self.runs = [pickle.loads(pickle.dumps(opt)) if pickled else copy.deepcopy(opt) for opt in self.runs]

    @rule(other=st.sampled_from(["classical", "pytorch", "heavy_ball"]))
    def convert(self, other):
        """Convert between rules, and let the model continue from the converted state."""
        if self.model.rule not in ("classical", "pytorch", "heavy_ball") or self.model.lr == 0:
            return
        for number, old in enumerate(self.runs):
            params, given = old.params, {"lr": old.lr, "momentum": old.momentum, "param": old.params}
            state, lr, momentum = fm.convert(old.state, source=self.model.rule, target=other, **given)
            opt = fm.Momentum(params, rule=other, lr=lr, momentum=momentum, backend=BACKENDS[number], **self.settings)
            for mine, new in zip(opt.state, state, strict=True):
                mine[...] = new
            scale = max(abs(s).max() for s in (*state, *params, np.ones(1)))
            for i in range(3):  # the displacement of the next step without gradient, μ·w, is the same
                moves = [self._move(self.model.rule, params[i], old.state[i]), self._move(other, params[i], state[i])]
                np.testing.assert_allclose(*moves, rtol=0, atol=8 * np.finfo(float).eps * scale * max(1, 1 / lr))
            self.runs[number] = opt
        self.model.rule = other
        self.model.state = [s.tolist() for s in state]
        self.model.steps = self.model.skipped = 0
        self.resets = []

    def _move(self, name, param, state):
        return param - update(name, param, state, 0.0, float, lr=self.model.lr, momentum=1.0)[0]

    @invariant()
    def agree(self):
        for opt in getattr(self, "runs", ()):
            for p, expected in zip(opt.params, self.model.params, strict=True):
                np.testing.assert_array_equal(bits(p), bits(np.array(expected)))
            if self.model.rule != "sgd":
                for s, expected in zip(opt.state, self.model.state, strict=True):
                    np.testing.assert_array_equal(bits(s), bits(np.array(expected)))
            assert (opt.steps, opt.skipped) == (self.model.steps, self.model.skipped)
            assert (opt.lr, opt.momentum) == (self.model.lr, self.model.momentum)
            assert opt.resets == self.resets


TestSequences = Sequences.TestCase
TestSequences.settings = examples(60, stateful_step_count=20)
