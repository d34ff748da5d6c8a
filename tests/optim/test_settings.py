"""Settings that are functions of the step, or are assigned during a run, against loops by hand, torch and optax."""

import copy
import pickle

import hypothesis.strategies as st
import numpy as np
import optax
import pytest
import torch
from hypothesis import given

import fastmomentum as fm
from tests.helpers.arrays import gradients
from tests.helpers.fuzz import examples
from tests.helpers.reference import BACKENDS, assert_all_same_bits, assert_same_bits

SIZE = 9
GRADS = gradients(SIZE, 12, np.float32)


def start(dtype=np.float32):
    return np.linspace(-1, 1, SIZE).astype(dtype)


def sgd_by_hand(p, v, g, is_first, *, lr, momentum, weight_decay=0.0, dampening=0.0, nesterov=False):
    """Return (p, v, has velocity) after a step of torch.optim.SGD in NumPy, in the dtype of the arrays."""
    cast = p.dtype.type
    lr, mu, decay, keep = cast(lr), cast(momentum), cast(weight_decay), cast(1.0 - dampening)
    if weight_decay:
        g = g + decay * p
    if not momentum:
        return p - lr * g, v, not is_first
    v = mu * v + (cast(1.0) if is_first else keep) * g
    return p - lr * (g + mu * v if nesterov else v), v, True


# Every setting of an optimiser with torch's counterparts: what it is at first, and values to be assigned.
VALUES = {
    "lr": [0.1, 0.25, 0.0, 0.5],
    "momentum": [0.9, 0.0, 0.5, 1.0],
    "weight_decay": [0.0, 0.1, 0.0, 0.25],
    "dampening": [0.0, 0.5, 0.25, 1.0],
}
sequences = st.lists(
    st.fixed_dictionaries({name: st.sampled_from(values) for name, values in VALUES.items()}), min_size=2, max_size=10
)


def run(sequence, backend, nesterov, assigned):
    """Return p and v after a run whose settings change at each step, by functions of the step or by assignment."""
    p = start()
    names = [name for name in VALUES if not (nesterov and name == "dampening")]
    if assigned:
        opt = fm.Momentum(p, lr=1.0, nesterov=nesterov, backend=backend)
        for values, g in zip(sequence, GRADS):
            for name in names:
                if assigned == "group":
                    opt.groups[0][name] = values[name]
                else:
                    setattr(opt, name, values[name])
            opt.step(g)
    else:
        functions = {name: [values[name] for values in sequence].__getitem__ for name in names}
        opt = fm.Momentum(p, nesterov=nesterov, backend=backend, **functions)
        for _, g in zip(sequence, GRADS):
            opt.step(g)
        assert f"steps={len(sequence)}" in repr(opt)  # although the tables have no further value
        assert [opt.groups[0][name] for name in names] == [sequence[-1][name] for name in names]
    return p, opt.velocity


@examples(40)
@given(sequences, st.sampled_from(BACKENDS), st.booleans(), st.sampled_from([None, "optimiser", "group"]))
def test_settings_that_change_every_step_have_the_bits_of_a_numpy_loop_and_the_values_of_torch(
    sequence, backend, nesterov, assigned
):
    p, v, started = start(), np.zeros(SIZE, np.float32), False
    tensor = torch.nn.Parameter(torch.from_numpy(start()))
    theirs = torch.optim.SGD([tensor], lr=1.0, momentum=0.5, nesterov=nesterov, foreach=False)
    for values, g in zip(sequence, GRADS):
        values = values | {"dampening": 0.0} if nesterov else values
        p, v, started = sgd_by_hand(p, v, g, not started, **values, nesterov=nesterov)
        theirs.param_groups[0].update(values)
        tensor.grad = torch.from_numpy(g.copy())
        theirs.step()
    found, velocity = run(sequence, backend, nesterov, assigned)
    assert_same_bits(found, p)
    assert_same_bits(velocity, v)
    np.testing.assert_allclose(found, tensor.detach().numpy(), rtol=1e-5, atol=1e-5)


@examples(15)
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "learning_rate": st.floats(0, 0.5, width=32),
                "momentum": st.floats(0.125, 0.875, width=32),  # at 0 optax keeps the last gradient, torch does not
                "weight_decay": st.floats(0.125, 0.5, width=32),
            }
        ),
        min_size=2,
        max_size=8,
    ),
    st.booleans(),
)
def test_settings_that_change_every_step_agree_with_optax(sequence, nesterov):
    def method(learning_rate, momentum, weight_decay):
        return optax.chain(
            optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate, momentum=momentum, nesterov=nesterov)
        )

    transform = optax.inject_hyperparams(method)(learning_rate=1.0, momentum=0.5, weight_decay=0.5)
    p, theirs = start(), start()
    kept = transform.init(theirs)
    opt = fm.Momentum(p, lr=1.0, nesterov=nesterov)
    for values, g in zip(sequence, GRADS):
        kept.hyperparams.update({name: np.float32(value) for name, value in values.items()})
        updates, kept = transform.update(g, kept, theirs)
        theirs = np.asarray(optax.apply_updates(theirs, updates))
        opt.lr, opt.momentum, opt.weight_decay = values["learning_rate"], values["momentum"], values["weight_decay"]
        opt.step(g)
    np.testing.assert_allclose(p, theirs, rtol=1e-5, atol=1e-5)


def test_momentum_raised_from_zero_starts_from_rest_as_in_torch():
    path = []
    p = np.zeros(1)
    opt = fm.Momentum(p, lr=1.0, momentum=[0.0, 0.5, 0.5].__getitem__)
    for _ in range(3):
        opt.step(np.ones(1))
        path.append(p[0])
    assert path == [-1.0, -2.0, -3.5]


def test_velocity_is_kept_while_momentum_is_zero_for_a_while():
    p = np.zeros(1)
    opt = fm.Momentum(p, lr=1.0, momentum=0.5, dampening=0.5)
    opt.step(np.ones(1))
    opt.momentum = 0.0
    opt.step(np.full(1, 8.0))
    assert opt.velocity[0] == 1.0
    opt.momentum = 0.5
    opt.step(np.ones(1))
    assert (opt.velocity[0], p[0]) == (1.0, -10.0)  # 0.5·1 + 0.5·1; it is no first step


def test_nesterov_uses_the_momentum_of_its_step_as_torch_does():
    p, path = np.zeros(1), []
    opt = fm.Momentum(p, lr=1.0, momentum=fm.schedules.Linear(0.5, 0.9, steps=2), nesterov=True)
    for _ in range(2):
        opt.step(np.ones(1))
        path.append(p[0])
    assert path == [-1.5, pytest.approx(-3.69, rel=1e-15)]


def test_one_cycle_with_nesterov_walks_the_path_of_torch():
    steps = 40
    lr, momentum = fm.schedules.one_cycle(0.5, steps=steps)
    p = np.ones(3)
    opt = fm.Momentum(p, lr=lr, momentum=momentum, nesterov=True)
    tensor = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    theirs = torch.optim.SGD([tensor], lr=0.02, momentum=0.9, nesterov=True)
    cycle = torch.optim.lr_scheduler.OneCycleLR(theirs, max_lr=0.5, total_steps=steps)
    for _ in range(steps):
        opt.step(p * [1.0, 0.1, 0.01])
        tensor.grad = tensor.detach() * torch.tensor([1.0, 0.1, 0.01], dtype=torch.float64)
        theirs.step()
        if cycle.last_epoch < steps - 1:
            cycle.step()
        np.testing.assert_allclose(p, tensor.detach().numpy(), rtol=1e-9, atol=1e-12)


# What may be assigned, and read.

NAMES = ("lr", "momentum", "dampening", "weight_decay", "decoupled_weight_decay", "clip_value", "clip_norm", "max_norm")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_setting_may_be_a_number_a_function_or_assigned(name, backend):
    """Check that a constant, a function and an assignment give the same bits, and a value of 0 or None turns it off."""
    off = {"clip_value": None, "clip_norm": None, "max_norm": None}.get(name, 0.0)
    values = [0.25, 0.25, off, 0.5, 0.5]
    if name == "lr":
        values = [0.25, 0.25, 0.125, 0.5, 0.5]
    paths = []
    for way in ("assigned", "group", "function", "new optimiser"):
        p = start()
        given = {"lr": 0.1, "backend": backend}
        if way == "function":
            given[name] = values.__getitem__
        opt = fm.Momentum(p, **given)
        for value, g in zip(values, GRADS):
            if way == "assigned":
                setattr(opt, name, value)
            elif way == "group":
                opt.groups[0][name] = value
            elif way == "new optimiser":
                saved = opt.state_dict()
                opt = fm.Momentum(p, **given | {name: value})
                saved["groups"] = opt.state_dict()["groups"]
                opt.load_state_dict(saved)
            opt.step(g)
            assert getattr(opt, name) == value or way == "function"
        paths.append(p)
    assert_all_same_bits(paths, [paths[0]] * 4)
    assert not (paths[0] == start()).all()


def test_settings_of_a_rule_of_the_user_s_own_live_too():
    def leaky(p, v, g, lr, mu, leak, kept):
        v = mu * v + kept * g
        return p - lr * v - leak * p, v

    rule = fm.Rule(
        leaky,
        hyper=("lr", "momentum", "leak", "kept"),
        derived={"kept": lambda leak: 1 - leak},
        defaults={"leak": 0.25},
        ranges={"leak": (0, 1)},
    )
    p, q = start(), start()
    opt, other = fm.Momentum(p, rule=rule, lr=0.1), fm.Momentum(q, rule=rule, lr=0.1, leak=lambda t: 0.5 / (1 + t))
    v, r = np.zeros_like(p), start()
    assert opt.leak == 0.25
    for step, g in enumerate(GRADS[:4]):
        opt.leak = leak = 0.5 / (1 + step)
        opt.step(g)
        other.step(g)
        fm.step(r, v, g, rule=rule, lr=0.1, leak=leak)
    assert_all_same_bits((p, q), (r, r))
    with pytest.raises(ValueError, match=r"leak: expected a number in \[0, 1\]; got 2"):
        opt.leak = 2.0
    assert opt.leak == leak


def test_a_default_of_a_chain_is_read_and_replaced():
    p, q = start(), start()
    opt = fm.Momentum(p, rule=fm.chain(fm.stages.weight_decay(0.125), fm.stages.clip_value(5.0), "pytorch"), lr=0.1)
    plain = fm.Momentum(q, lr=0.1, weight_decay=0.125, clip_value=None)
    assert (opt.weight_decay, opt.clip_value) == (0.125, 5.0)
    for name, off in (("weight_decay", 0.0), ("clip_value", None)):
        with pytest.raises(
            ValueError, match=f"{name}: expected a value other than {off}, which stands for the default"
        ):
            setattr(opt, name, off)
    for g, decay in zip(GRADS, (0.125, 0.5, 0.25)):
        opt.weight_decay = plain.weight_decay = decay
        opt.step(g)
        plain.step(g)
    assert_same_bits(p, q)
    assert opt.weight_decay == 0.25


@pytest.mark.parametrize("rule", ["quasi_hyperbolic", "lion"])
def test_hyper_parameters_of_variants_are_settings(rule):
    name = {"quasi_hyperbolic": "nu", "lion": "beta2"}[rule]
    p, q, v = start(), start(), np.zeros(SIZE, np.float32)
    opt = fm.Momentum(p, rule=rule, lr=0.1)
    for g, value in zip(GRADS, (0.5, 0.25, 0.75)):
        setattr(opt, name, value)
        opt.step(g)
        fm.step(q, v, g, rule=rule, lr=0.1, **{name: value})
    assert_same_bits(p, q)


def test_several_groups_read_as_a_list_and_one_group_as_a_number():
    one = fm.Momentum([np.ones(2), np.ones(3)], lr=0.1)
    two = fm.Momentum([{"params": np.ones(2)}, {"params": np.ones(3)}], lr=0.1)
    assert (one.lr, one.weight_decay, one.clip_value) == (0.1, 0.0, None)
    assert (two.lr, two.weight_decay, two.clip_value) == ([0.1, 0.1], [0.0, 0.0], [None, None])
    two.lr = [x * 0.5 for x in two.lr]
    two.weight_decay = 0.25
    two.groups[1]["momentum"] = lambda t: 0.5
    assert (two.lr, two.weight_decay, two.momentum) == ([0.05, 0.05], [0.25, 0.25], [0.9, 0.5])
    two.max_norm = 3.0
    assert two.max_norm == 3.0
    assert dict(two.groups[1])["momentum"] == 0.5


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("lr", [0.2, -1.0]), ("lr", [0.2, "x"]), ("lr", [0.2]), ("lr", [0.2, None]), ("lr", [0.2, True]),
        ("lr", [0.2, 1e39]), ("momentum", [0.5, 1.5]), ("momentum", [0.5, float("nan")]), ("dampening", [0.5, -0.5]),
        ("weight_decay", [0.1, -0.1]), ("clip_value", [1.0, 0.0]), ("clip_norm", [1.0, -1.0]),
        ("max_norm", [1.0, 2.0]), ("max_norm", -1.0), ("skip_nonfinite", 0), ("skip_nonfinite", "yes"),
        ("nesterov", [True, 1]), ("lr", [0.2, lambda t: -1.0]), ("lr", [0.2, lambda t: [0.1]]),
        ("lr", [0.2, fm.schedules.Linear]), ("momentum", lambda t: "x"), ("restart", "never"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # a function's text has its address
)  # fmt: skip
def test_a_refused_assignment_changes_no_group(name, values):
    arrays = [start(), start()]
    opt = fm.Momentum([{"params": arrays[0]}, {"params": arrays[1], "weight_decay": 0.5}], lr=0.1)
    opt.step([GRADS[0], GRADS[0]])
    before = pickle.dumps(opt.state_dict())
    with pytest.raises((TypeError, ValueError), match=name):
        setattr(opt, name, values)
    assert pickle.dumps(opt.state_dict()) == before
    opt.step([GRADS[1], GRADS[1]])
    assert opt.steps == 2


@pytest.mark.parametrize("name", ["rule", "lookahead", "backend", "threads"])
def test_what_decides_the_state_cannot_be_assigned(name):
    opt = fm.Momentum(start(), lr=0.1)
    with pytest.raises(AttributeError, match=f"{name}: expected by the constructor alone"):
        setattr(opt, name, "pytorch")
    with pytest.raises(AttributeError, match=f"{name}: expected by the constructor alone"):
        opt.groups[0][name] = "pytorch"


def test_a_shared_setting_is_assigned_to_the_optimiser():
    opt = fm.Momentum([{"params": start()}, {"params": start()}], lr=0.1)
    with pytest.raises(TypeError, match="max_norm: expected as an attribute of the optimiser"):
        opt.groups[0]["max_norm"] = 1.0
    with pytest.raises(KeyError, match="lrr"):
        opt.groups[0]["lrr"]
    with pytest.raises(AttributeError, match=r"lrr: expected a setting .*Did you mean lr\?"):
        opt.groups[0]["lrr"] = 1.0


# Functions of the step.


def test_a_function_is_asked_once_a_step_and_for_no_other_step():
    asked = []

    def rate(step):
        asked.append(step)
        return 0.1

    opt = fm.Momentum([{"params": start()}, {"params": start()}], lr=rate, weight_decay=lambda t: 0.1, momentum=0.5)
    asked.clear()  # the constructor asks once, to check the value
    for g in GRADS[:4]:
        opt.step([g, g])
    opt.step([GRADS[4], None])
    assert asked == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("settings", [{}, {"lookahead": True}, {"rule": "classical", "correct": True}], ids=str)
def test_a_table_of_n_values_serves_n_steps(settings, tmp_path):
    table = [0.4, 0.3, 0.2]
    p = start()
    opt = fm.Momentum(p, lr=lambda t: table[t], momentum=lambda t: [0.5, 0.6, 0.7][t], **settings)
    for g in GRADS[:3]:
        opt.step(g)
    with pytest.raises(IndexError):
        opt.step(GRADS[3])
    assert (opt.steps, opt.lr, opt.groups[0]["momentum"]) == (3, 0.2, 0.7)
    assert "lr=0.2" in repr(opt)
    saved = copy.deepcopy(opt).state_dict()
    opt.save(tmp_path / "run.npz")
    opt.load_state_dict(saved)
    again = fm.Momentum.load(tmp_path / "run.npz", p, lr=table.__getitem__, momentum=[0.5, 0.6, 0.7].__getitem__)
    assert (again.steps, again.lr) == (3, 0.2)
    opt.lr, opt.momentum = 0.1, 0.5
    opt.step(GRADS[3])
    assert opt.steps == 4


class Scalar:
    """A number of another library."""

    shape = ()

    def __init__(self, number):
        self.number = number

    def __float__(self):
        return self.number


@pytest.mark.parametrize(
    "wrap",
    [np.array, np.float32, np.float64, torch.tensor, optax.constant_schedule, Scalar, fm.schedules.Constant],
    ids=lambda wrap: wrap.__name__,
)
def test_values_are_what_float_accepts(wrap):
    value = wrap(0.25)
    p, q = start(), start()
    plain = fm.Momentum(q, lr=0.25, weight_decay=0.25, momentum=0.25)
    if callable(value):
        opt = fm.Momentum(p, lr=value, weight_decay=value, momentum=value)
    else:
        opt = fm.Momentum(p, lr=value, weight_decay=lambda t: value, momentum=0.5)
        opt.momentum = value
    for g in GRADS[:2]:
        opt.step(g)
        plain.step(g)
    assert_same_bits(p, q)
    assert type(opt.lr) is float


def test_schedules_of_optax_and_keras_pass_as_they_are():
    class Keras:  # keras.optimizers.schedules.LearningRateSchedule is called with the step and returns a tensor
        def __call__(self, step):
            return torch.tensor(0.5) * 0.5**step

    schedule = optax.exponential_decay(0.5, transition_steps=1, decay_rate=0.5)
    p, q = start(), start()
    one, two = fm.Momentum(p, lr=schedule), fm.Momentum(q, lr=Keras())
    for g in GRADS[:3]:
        one.step(g)
        two.step(g)
    assert_same_bits(p, q)
    assert one.lr == 0.0625


@pytest.mark.parametrize(
    "bad", [True, "0.1", [0.1], np.array([0.1]), torch.tensor([0.1]), None, 1j, np.nan, -1.0, 1e39]
)
def test_a_bad_value_of_a_function_is_refused_before_anything_is_written(bad):
    values = [0.1, bad, 0.2]
    p = start()
    opt = fm.Momentum(p, lr=lambda t: values[t])
    opt.step(GRADS[0])
    before = p.copy(), opt.velocity.copy()
    for _ in range(2):
        with pytest.raises((TypeError, ValueError), match="lr"):
            opt.step(GRADS[1])
        assert_all_same_bits((p, opt.velocity), before)
    values[1] = 0.1
    opt.step(GRADS[1])
    assert opt.steps == 2


def test_a_function_that_raises_leaves_the_optimiser_usable():
    def rate(step):
        if step == 1 and fails:
            raise RuntimeError("no rate")
        return 0.1

    fails, p = True, start()
    opt = fm.Momentum([p, start()], lr=rate, weight_decay=lambda t: 0.1)
    opt.step([GRADS[0], None])
    before = p.copy()
    with pytest.raises(RuntimeError, match="no rate"):
        opt.step([GRADS[1], GRADS[1]])
    assert_same_bits(p, before)
    fails = False
    opt.step([GRADS[1], GRADS[1]])
    assert (opt.steps, opt.state_dict()["updates"]) == (2, [2, 1])


def test_a_rule_without_lr_is_not_asked_for_it():
    rule = fm.Rule(lambda p, g, rate: (p - rate * g,), state=(), hyper=("rate",), name="plain")
    p = np.ones(2)
    opt = fm.Optimizer(p, rule, rate=lambda t: 0.5)
    opt.step(np.ones(2))
    assert p.tolist() == [0.5, 0.5]
    assert repr(opt) == "Optimizer(rule='plain', arrays=1, steps=1)"
    fm.step(p, None, np.ones(2), rule=rule, rate=0.5)
    assert p.tolist() == [0.0, 0.0]

    def never(step):
        raise AssertionError("the rule has no momentum")

    sgd = fm.Momentum(p, rule="sgd", lr=0.5, momentum=never)
    sgd.step(np.ones(2))
    assert repr(sgd) == "Momentum(rule='sgd', lr=0.5, arrays=1, steps=1)"
    with pytest.raises(TypeError, match="lr: expected a finite number >= 0, as rule 'sgd' needs this hyper-parameter"):
        fm.Momentum(p, rule="sgd")


def amsgradless_adam(p, m, s, g, lr, b1, keep1, b2, keep2, weight1, weight2, eps):
    m = b1 * m + keep1 * g
    s = b2 * s + keep2 * (g * g)
    return p - lr * (m / weight1) / (np.sqrt(s / weight2) + eps), m, s


ADAM = fm.Rule(
    amsgradless_adam,
    state=(("m", "zero"), ("s", "zero")),
    hyper=("lr", "momentum", "keep1", "beta2", "keep2", "weight1", "weight2", "eps"),
    derived={
        "keep1": lambda momentum: 1 - momentum,
        "keep2": lambda beta2: 1 - beta2,
        "weight1": lambda momentum, step: 1 - momentum**step,
        "weight2": lambda beta2, step: 1 - beta2**step,
    },
    defaults={"beta2": 0.999, "eps": 1e-8},
    ranges={"momentum": (0, 0.9999), "beta2": (0, 0.9999)},
    name="adam by hand",
)


@pytest.mark.parametrize("backend", BACKENDS)
def test_derived_numbers_may_depend_on_the_step_of_each_array(backend, tmp_path):
    """Check bias corrections against torch.optim.Adam, with an array that starts late and one that misses steps."""
    present = [(1, 0, 1), (1, 0, 1), (1, 1, 0), (1, 1, 1), (1, 1, 0), (1, 1, 1), (1, 1, 1)]
    arrays = [start(np.float64) for _ in range(3)]
    tensors = [torch.nn.Parameter(torch.from_numpy(start(np.float64))) for _ in range(3)]
    theirs = torch.optim.Adam(tensors, lr=0.05, betas=(0.9, 0.999), foreach=False)
    rate = fm.schedules.Linear(0.05, 0.01, steps=6)
    opt = fm.Momentum(arrays, rule=ADAM, lr=rate, momentum=0.9, backend=backend)
    for step, which in enumerate(present):
        grads = [GRADS[step].astype(np.float64) + i if there else None for i, there in enumerate(which)]
        theirs.param_groups[0]["lr"] = rate(step)
        for tensor, g in zip(tensors, grads):
            tensor.grad = None if g is None else torch.from_numpy(g)
        theirs.step()
        opt.step(grads)
        if step == 3:
            opt.save(tmp_path / "run.npz")
            opt = fm.Momentum.load(tmp_path / "run.npz", arrays, rule=ADAM, backend=backend)
        for mine, tensor in zip(arrays, tensors):
            np.testing.assert_allclose(mine, tensor.detach().numpy(), rtol=1e-12, atol=1e-14)
    assert opt.state_dict()["updates"] == [7, 5, 5]
    opt.reset("from its start", array=1)
    p = arrays[1].copy()
    opt.step([None, GRADS[0].astype(np.float64), None])
    np.testing.assert_allclose(arrays[1], p - rate(7) * np.sign(GRADS[0]), rtol=1e-6)


# Groups and arrays that come later.


def test_groups_may_be_added_and_begin_at_rest():
    arrays = [start() for _ in range(3)]
    twins = [array.copy() for array in arrays]
    opt = fm.Momentum({"a": arrays[0]}, lr=0.1, dampening=0.5)
    alone = [fm.Momentum(twin, lr=0.1, dampening=0.5) for twin in twins[:2]] + [fm.Momentum(twins[2], lr=0.5)]
    opt.step({"a": GRADS[0]})
    opt.add_group({"params": {"b": arrays[1]}})
    opt.add_group({"params": {"c": arrays[2]}, "lr": 0.5, "dampening": 0.0})
    alone[0].step(GRADS[0])
    for g in GRADS[1:4]:
        opt.step({"c": g, "b": g, "a": g})
        for each in alone:
            each.step(g)
    assert_all_same_bits(arrays, twins)
    assert opt.lr == [0.1, 0.1, 0.5]
    assert list(opt.params) == ["a", "b", "c"]
    for group, error in (
        ({"params": {"a": start()}}, ValueError), ({"params": start()}, TypeError),
        ({"params": {"d": arrays[0]}}, ValueError),
        ({"params": {"d": start()}, "lr": -1.0}, ValueError), ({"params": {"d": start()}, "max_norm": 1.0}, TypeError),
        ({"params": {"d": start().astype(int)}}, TypeError), (3, TypeError), ({}, TypeError),
    ):  # fmt: skip
        with pytest.raises(error):
            opt.add_group(group)
        opt.step({"b": GRADS[4]})
    assert len(opt.groups) == 3


def test_an_optimiser_may_begin_with_an_empty_group():
    opt = fm.Momentum([{"params": []}], lr=0.1)
    opt.step([])
    assert (opt.steps, opt.params, opt.lr) == (1, [], 0.1)
    p, q = start(), start()
    opt.add_group({"params": [p]})
    opt.step([GRADS[0]])
    fm.Momentum(q, lr=0.1).step(GRADS[0])
    assert_same_bits(p, q)
    opt.load_state_dict(opt.state_dict())
    opt.reset("a test")


@pytest.mark.parametrize("lookahead", [False, True])
def test_an_array_may_be_replaced_and_its_state_goes_along(lookahead):
    p, q = start(), start()
    opt, whole = (fm.Momentum({"w": x}, lr=0.1, lookahead=lookahead) for x in (p, q))
    for step, g in enumerate(GRADS[:6]):
        if step == 3:
            p = p.copy()
            opt.replace("w", p)
        opt.step({"w": g})
        whole.step({"w": g})
    assert_all_same_bits((p, opt.velocity["w"]), (q, whole.velocity["w"]))
    for bad, error in ((start(np.float64), ValueError), (start()[:3], ValueError), ([1.0], TypeError)):
        with pytest.raises(error, match="w"):
            opt.replace("w", bad)
        opt.step({"w": GRADS[6]})
    with pytest.raises(ValueError, match="array: expected the name of a parameter; got 'x'"):
        opt.replace("x", p)


def test_the_count_of_steps_can_be_set():
    opt = fm.Momentum(start(), lr=lambda t: 1.0 / (1 + t))
    opt.step(GRADS[0])
    opt.steps = 9
    assert (opt.steps, opt.lr) == (9, 0.1)
    opt.step(GRADS[1])
    assert (opt.steps, opt.state_dict()["updates"]) == (10, [2])
    for bad in (-1, 2.5, True, "x", 2**63):
        with pytest.raises((TypeError, ValueError), match="steps"):
            opt.steps = bad
    assert opt.steps == 10


def test_a_saved_state_with_names_is_matched_by_name(tmp_path):
    arrays = {"q": start(), "k": start(), "v": np.ones(3, np.float32)}
    opt = fm.Momentum(arrays, lr=0.1)
    opt.step({"q": GRADS[0], "k": GRADS[1]})
    opt.step({"q": GRADS[2], "v": np.ones(3, np.float32)})
    opt.save(tmp_path / "run.npz")
    again = fm.Momentum.load(tmp_path / "run.npz", {name: arrays[name] for name in ("v", "k", "q")})
    assert_all_same_bits([again.velocity[name] for name in arrays], [opt.velocity[name] for name in arrays])
    assert again.state_dict()["updates"] == [1, 1, 2]
    for names in (("q", "k"), ("q", "k", "v", "w"), ("q", "k", "x")):
        with pytest.raises(ValueError, match="state_dict does not fit"):
            fm.Momentum.load(tmp_path / "run.npz", {name: arrays.get(name, start()) for name in names})
    nameless = fm.Momentum.load(tmp_path / "run.npz", list(arrays.values()))
    assert_same_bits(nameless.velocity[0], opt.velocity["q"])
    with pytest.raises(ValueError, match=r"state\[0\]: expected"):
        fm.Momentum.load(tmp_path / "run.npz", [arrays["v"], arrays["q"], arrays["k"]])


def test_gradients_by_name_are_checked():
    opt = fm.Momentum({"weight": start(), "bias": start()}, lr=0.1)
    with pytest.raises(ValueError, match=r"grads: expected names of parameters; got 'weigth'. Did you mean weight\?"):
        opt.step({"weigth": GRADS[0]})
    with pytest.raises(ValueError, match=r"grads\['bias'\]"):
        opt.step({"bias": GRADS[0][:3]})
    opt.step([GRADS[0], GRADS[0]])
    opt.reset("a test", array="bias")
    assert opt.resets[-1].scope == "array 1"
    assert opt.steps == 1


# Resets, norms and skipped updates.


def test_resets_cost_the_same_after_many_and_the_record_can_be_bounded(tmp_path):
    opt = fm.Momentum(start(), lr=fm.schedules.Linear(0.5, 0.0, steps=8), restart=3, keep_resets=4)
    for step in range(200):
        opt.step(GRADS[step % 12])
    assert [reset.step for reset in opt.resets] == [189, 192, 195, 198]
    for _ in range(5):
        opt.reset("rows", rows=0)
    assert [reset.scope for reset in opt.resets] == ["array 0, rows 0:1"] * 4
    assert opt.lr == 0.375  # two steps after the last restart, which is no longer on record
    opt.save(tmp_path / "run.npz")
    assert fm.Momentum.load(tmp_path / "run.npz", start()).lr == 0.375


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_are_unscaled_before_they_are_clipped(backend):
    scale, p, q = 1 / 1024, start(np.float64), start(np.float64)
    rule = fm.chain(fm.stages.scale(scale), fm.stages.weight_decay(0.5), "pytorch")
    limits = {"max_norm": 1.0, "clip_value": 0.4, "backend": backend}
    opt = fm.Momentum(p, rule=rule, lr=0.1, **limits)
    plain = fm.Momentum(q, rule=fm.chain(fm.stages.weight_decay(0.5), "pytorch"), lr=0.1, **limits)
    for g in GRADS[:3].astype(np.float64):
        opt.step(1024 * g)
        plain.step(g)
    assert_same_bits(p, q)  # 1024 is a power of two
    by_option = fm.Momentum(
        start(), rule=fm.chain(fm.stages.scale, "sgd"), lr=0.1, scale=lambda t: scale, weight_decay=1.0
    )
    by_option.step(np.zeros(SIZE, np.float32))
    assert_same_bits(by_option.params, start() - np.float32(0.1) * start())  # weight decay is not scaled


@pytest.mark.parametrize("backend", BACKENDS)
def test_clip_norm_limits_the_norm_of_each_array(backend):
    arrays, twins = [start(np.float64) for _ in range(3)], [start(np.float64) for _ in range(3)]
    groups = [{"params": arrays[:2]}, {"params": arrays[2:], "clip_norm": None}]
    opt = fm.Momentum(groups, lr=0.5, momentum=0.0, clip_norm=1.0, backend=backend)
    grads = [np.full(SIZE, 3.0), np.full(SIZE, 0.01), np.full(SIZE, 3.0)]
    opt.step(grads)
    for twin, g, factor in zip(twins, grads, (1 / 9.0, 1.0, 1.0)):
        twin -= 0.5 * (factor * g)
    for mine, theirs in zip(arrays, twins):
        np.testing.assert_allclose(mine, theirs, rtol=1e-15)
    both = fm.Momentum([start(), start()], lr=1.0, momentum=0.0, clip_norm=1.0, max_norm=1.0, backend=backend)
    both.step([np.full(SIZE, 3.0, np.float32)] * 2)
    moved = np.concatenate(both.params) - np.concatenate([start(), start()])
    assert np.linalg.norm(moved) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_skips_in_a_row_are_limited_as_in_optax(backend):
    bad, p = np.array([np.nan, 1.0], np.float32), np.zeros(2, np.float32)
    transform = optax.apply_if_finite(optax.sgd(1.0), max_consecutive_errors=2)
    theirs, kept = np.zeros(2, np.float32), None
    kept = transform.init(theirs)
    opt = fm.Momentum(p, rule="sgd", lr=1.0, skip_nonfinite=2, backend=backend)
    for g in (bad, bad, np.ones(2, np.float32), bad, bad, np.ones(2, np.float32), bad, bad, bad, bad):
        opt.step(g)
        updates, kept = transform.update(g, kept, theirs)
        theirs = np.asarray(optax.apply_updates(theirs, updates))
        np.testing.assert_array_equal(p, theirs)
        opt.load_state_dict(opt.state_dict())
    assert (opt.skipped, opt.steps) == (6, 4)


def test_many_steps_with_schedules_need_no_more_memory():
    import tracemalloc

    opt = fm.Momentum(
        start(), lr=fm.schedules.Cosine(0.1, 0.0, steps=10**6), momentum=fm.schedules.Linear(0.5, 0.9, 99)
    )
    for _ in range(100):
        opt.step(GRADS[0])
    tracemalloc.start()
    before = tracemalloc.take_snapshot()
    for _ in range(20_000):
        opt.step(GRADS[0])
    grown = sum(each.size_diff for each in tracemalloc.take_snapshot().compare_to(before, "filename"))
    tracemalloc.stop()
    assert grown < 20_000  # one byte a step


# Faults that a reviewer found.


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_norm_may_go_off_as_the_other_goes_on(backend):
    limits = {"max_norm": [100.0, None].__getitem__, "clip_norm": [None, 5.0].__getitem__}
    opt = fm.Momentum(np.zeros(2), lr=1.0, momentum=0.5, backend=backend, **limits)
    opt.step(np.array([30.0, 40.0]))
    opt.step(np.array([30.0, 40.0]))
    np.testing.assert_allclose(opt.velocity - [15.0, 20.0], [3.0, 4.0], rtol=1e-12)


@pytest.mark.parametrize(
    "rule", ["sgd", "aggmo", fm.Rule(lambda p, g, rate: (p - rate * g,), state=(), hyper=("rate",))]
)
def test_a_rule_without_lr_or_momentum_can_be_saved_and_loaded(rule, tmp_path):
    settings = {"rate": 0.1} if isinstance(rule, fm.Rule) else {"lr": 0.1}
    opt = fm.Optimizer(start(), rule, **settings)
    opt.step(GRADS[0])
    opt.load_state_dict(opt.state_dict())
    opt.save(tmp_path / "run.npz")
    assert fm.Optimizer.load(tmp_path / "run.npz", start(), rule=rule).steps == 1


def test_functions_of_every_setting_are_passed_again_to_load(tmp_path):
    def decay(step):
        return 0.1 + step

    opt = fm.Momentum(start(), lr=0.1, weight_decay=decay, clip_norm=decay)
    opt.step(GRADS[0])
    opt.save(tmp_path / "run.npz")
    again = fm.Momentum.load(tmp_path / "run.npz", start(), weight_decay=decay, clip_norm=decay)
    assert (again.weight_decay, again.clip_norm) == (1.1, 1.1)
    with pytest.raises(TypeError, match="clip_norm: expected the function of the step"):
        fm.Momentum.load(tmp_path / "run.npz", start(), weight_decay=decay)
    with pytest.raises(ValueError, match="weight_decay was a function of the step, to be passed again; got 0.0"):
        fm.Momentum(start(), lr=0.1, clip_norm=decay).load_state_dict(opt.state_dict())


def test_a_refused_gradient_leaves_no_values_behind():
    class Refusing:
        def __dlpack__(self, *args, **kwargs):
            raise BufferError("no")

    p, q = start(), start()
    opt, twin = (fm.Momentum(x, lr=lambda t: 0.1 / (1 + t), weight_decay=0.1) for x in (p, q))
    for each in (opt, twin):
        each.step(GRADS[0])
        each.step(GRADS[1])
    with pytest.raises(TypeError, match="grads"):
        opt.step(Refusing())
    for each in (opt, twin):
        each.steps, each.weight_decay = 9, 0.5
        each.step(GRADS[2])
    assert_same_bits(p, q)
    assert opt.weight_decay == 0.5


@pytest.mark.parametrize("settings", [{"rule": "classical", "correct": True}, {"lookahead": True}], ids=str)
def test_idle_arrays_need_no_value_after_the_last_step(settings):
    rates = [0.1, 0.2]
    arrays = [start(np.float64), start(np.float64)]
    opt = fm.Momentum(arrays, lr=rates.__getitem__, momentum=0.5, **settings)
    g = GRADS[0].astype(np.float64)
    opt.step([g, g])
    before = [opt.point[1].copy(), opt.velocity[1].copy()]
    opt.step([g, None])  # there is no rate for a third step
    assert_all_same_bits([opt.point[1], opt.velocity[1]], before)


def test_setting_the_count_of_steps_rescales_state_and_moves_points():
    rate = [1.0 / (1 + t) for t in range(20)].__getitem__
    opt = fm.Momentum(start(np.float64), rule="classical", lr=rate, momentum=0.5, correct=True)
    opt.step(GRADS[0].astype(np.float64))
    scaled = opt.velocity / opt.lr
    opt.steps = 9
    np.testing.assert_allclose(opt.velocity / opt.lr, scaled, rtol=1e-15)
    ahead = fm.Momentum(start(np.float64), lr=rate, momentum=0.5, lookahead=True)
    ahead.step(GRADS[0].astype(np.float64))
    ahead.steps = 9
    np.testing.assert_array_equal(ahead.point, ahead.params - 0.1 * 0.5 * ahead.velocity)
    asked = []
    restarting = fm.Momentum(start(), lr=lambda t: asked.append(t) or 0.1, restart=3)
    for _ in range(4):
        restarting.step(GRADS[0])
    restarting.steps = 0
    restarting.step(GRADS[0])
    assert min(asked) == 0


def test_a_group_that_is_added_is_asked_for_the_present_step_alone():
    opt = fm.Momentum([start()], lr=0.1)
    for g in GRADS[:5]:
        opt.step([g])
    opt.add_group({"params": start(), "weight_decay": {5: 0.1, 6: 0.2}.__getitem__})
    opt.step([GRADS[5], GRADS[5]])
    assert opt.weight_decay == [0.0, 0.2]
    opt.add_group({"params": {}})
    assert [p.shape for p in opt.params] == [(SIZE,), (SIZE,)]


def test_an_assignment_is_checked_with_derived_numbers_beside_functions():
    rule = fm.Rule(
        lambda p, v, g, lr, k: (p - lr * v, v * k + g),
        hyper=("lr", "k"),
        derived={"k": lambda momentum, z: momentum / z},
        ranges={"z": (0, 1)},
    )
    opt = fm.Optimizer(start(), rule, lr=lambda t: 0.1, momentum=0.5, z=0.5)
    opt.step(GRADS[0])
    for bad in (0.0, 1e-300):
        with pytest.raises((ValueError, ZeroDivisionError)):
            opt.z = bad
    assert opt.z == 0.5
    opt.step(GRADS[1])


@pytest.mark.parametrize(
    "change",
    [
        {"functions": {"lr": []}}, {"functions": {"lr": ["x"]}}, {"functions": {3: [None]}},
        {"values": [{"lr": 10**400}]}, {"values": [{"lr": "x"}]}, {"updates": [1]}, {"names": ["b", "a", "a"]},
        {"names": ["b", "b"]}, {"last_reset": 5}, {"skipped_in_a_row": -1}, {"state": []},
    ],
    ids=str,
)  # fmt: skip
def test_a_hostile_saved_state_is_refused_with_a_message(change):
    opt = fm.Momentum({"a": start(), "b": start()}, lr=lambda t: 0.1)
    opt.step({"a": GRADS[0], "b": GRADS[0]})
    before = pickle.dumps(opt.velocity)
    with pytest.raises((TypeError, ValueError), match=f"{next(iter(change))}|names"):
        opt.load_state_dict({**opt.state_dict(), **change})
    assert pickle.dumps(opt.velocity) == before
    opt.step({"a": GRADS[0], "b": GRADS[0]})


def test_sequences_of_theory_keep_the_velocity_of_a_step_with_momentum_zero():
    for momentum, kept in (
        (fm.schedules.Nesterov(), True),
        (fm.schedules.Nesterov().then(fm.schedules.Constant(0.5), after=3), True),
        (fm.schedules.Constant(0.0), False),
        (lambda t: 0.0, False),
        (0.0, False),
    ):
        opt = fm.Momentum(start(), lr=0.1, momentum=momentum)
        opt.step(GRADS[0])
        assert opt.velocity.any() == kept
        assert opt.state_dict()["updates"] == [kept]


METHODS = {name for name in dir(fm.Momentum) if callable(getattr(fm.Momentum, name)) and name[0] != "_"}
OTHERS = {"params", "state", "velocity", "steps", "groups", "rule", "backend", "threads", "nesterov", "mask", "_x"}


@pytest.mark.parametrize("name", sorted(METHODS - {"step"} | OTHERS))
def test_a_hyper_parameter_that_could_not_be_a_setting_is_refused(name):
    """Check that optimisers refuse it by its name, while fm.step, which has no attributes, takes it."""
    p = np.ones(2)
    rule, renamed = (
        fm.Rule(lambda p, g, lr, own: (p - lr * own * g,), state=(), hyper=("lr", own), defaults={own: 0.5})
        for own in (name, "own")
    )
    with pytest.raises(ValueError, match=f"expected hyper-parameters that Momentum can have as settings; got '{name}'"):
        fm.Momentum(p, rule=rule, lr=0.5, backend="numpy")
    if name in METHODS:
        fm.step(p, None, np.ones(2), rule=rule, lr=0.5, backend="numpy")
        assert (p == 0.75).all()
    opt = fm.Momentum(p, rule=renamed, lr=0.5, own=0.25, backend="numpy")
    opt.own = 0.125
    assert opt.own == 0.125
