"""Averages of the parameters, which are updated in the rule's own pass over memory."""

import os
from fractions import Fraction

import numpy as np
import pytest
import torch

import fastmomentum as fm
from tests.helpers.arrays import gradients
from tests.helpers.ids import label
from tests.helpers.reference import BACKENDS, DTYPES, assert_all_same_bits, assert_same_bits, slots_of

CHAIN = fm.chain(fm.stages.clip_value(0.5), "pytorch", fm.stages.decoupled_weight_decay(0.1))
AVERAGED_RULES = ["sgd", "pytorch", "heavy_ball", "lion", "aggmo", CHAIN]
SIZE, AVERAGED_STEPS = 33, 12
AVERAGED_START = np.linspace(-1, 1, SIZE)


@pytest.mark.parametrize("rule", AVERAGED_RULES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("decay", [None, 0.9])
def test_an_average_has_the_bits_of_its_formula_and_leaves_the_rule_alone(rule, dtype, backend, decay):
    plain, p = AVERAGED_START.astype(dtype), AVERAGED_START.astype(dtype)
    settings = {"lr": 0.1, "backend": backend, "weight_decay": 0.05}
    alone = fm.Momentum(plain, rule=rule, **settings)
    opt = fm.Momentum(p, rule=fm.averaged(rule, decay), **settings)
    average = np.zeros(SIZE, dtype) if decay is None else AVERAGED_START.astype(dtype)
    for n, g in enumerate(gradients(SIZE, AVERAGED_STEPS, dtype), 1):
        alone.step(g)
        opt.step(g)
        step = plain - average
        average = average + (step / dtype(n) if decay is None else dtype(1 - decay) * step)
        own = len(slots_of(alone.state))
        assert_same_bits(p, plain)
        assert_all_same_bits(slots_of(opt.state)[: own + 1], (*slots_of(alone.state), average))
        assert len(slots_of(opt.state)) == own + (2 if decay is None else 1)
        assert decay is not None or (slots_of(opt.state)[-1] == n).all()


def test_the_mean_is_the_mean_of_all_iterates_in_fractions():
    rule = fm.averaged("sgd")
    p, average, count, lr = Fraction(2), Fraction(0), Fraction(0), Fraction(1, 3)
    iterates = []
    for n in range(1, 10):
        p, average, count = rule.build()(p, average, count, Fraction(n, 5) - p, lr, Fraction(1))
        iterates.append(p)
        assert average == sum(iterates) / n


def test_the_exponential_average_weighs_iterates_as_its_closed_form_says():
    rule, d = fm.averaged("sgd", 0.75), Fraction(3, 4)
    p = average = Fraction(2)
    wanted = [p]
    for n in range(1, 10):
        p, average = rule.build()(p, average, Fraction(n, 5) - p, Fraction(1, 3), 1 - d)
        wanted.append(p)
    assert average == d**9 * wanted[0] + sum((1 - d) * d ** (9 - t) * wanted[t] for t in range(1, 10))


def test_the_mean_agrees_with_torch():
    module = torch.nn.Linear(SIZE, 1, bias=False, dtype=torch.float64)
    p = AVERAGED_START.copy()
    with torch.no_grad():
        module.weight[:] = torch.from_numpy(p)
    theirs, swa = (
        torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9),
        torch.optim.swa_utils.AveragedModel(module),
    )
    opt = fm.Momentum(p, rule=fm.averaged("pytorch"), lr=0.1, momentum=0.9)
    for g in gradients(SIZE, AVERAGED_STEPS):
        module.weight.grad = torch.from_numpy(g[None])
        theirs.step()
        swa.update_parameters(module)
        opt.step(g)
    found = swa.module.weight.detach().numpy()[0]
    # Numbers up to 4, each with torch's rounding errors as in tests/optim/test_interop.py.
    np.testing.assert_allclose(found, opt.state[1], atol=50 * 2.2e-16 * 4)


def test_average_is_taken_before_or_after_a_parameter_stage_as_written():
    decay = fm.stages.decoupled_weight_decay(1.0)
    found = []
    for rule in (fm.averaged(fm.chain("sgd", decay)), fm.chain(fm.averaged("sgd"), decay)):
        p = np.array([1.0])
        opt = fm.Momentum(p, rule=rule, lr=0.5)
        opt.step(np.array([1.0]))
        found.append((p[0], opt.state[0][0]))
    assert found == [(0.25, 0.25), (0.25, 0.5)]


def test_the_decay_is_a_hyper_parameter_with_a_default():
    p, average = np.array([1.0]), np.array([1.0])
    rule = fm.averaged("sgd", 0.5)
    fm.step(p, average, np.array([1.0]), rule=rule, lr=1.0)
    assert average[0] == 0.5
    fm.step(p, average, np.array([0.0]), rule=rule, lr=1.0, average_decay=0.75)
    assert average[0] == 0.375


def test_average_leaves_the_first_step_undamped():
    p, plain = np.ones(2), np.ones(2)
    for array, rule in ((p, fm.averaged("pytorch", 0.9)), (plain, "pytorch")):
        fm.Momentum(array, rule=rule, lr=0.1, dampening=0.5).step(np.ones(2))
    assert_same_bits(p, plain)
    assert p[0] == 0.9


def test_mean_stops_counting_at_the_limit_of_float32():
    p, average, count = np.ones(1, np.float32), np.zeros(1, np.float32), np.full(1, 2**24, np.float32)
    fm.step(p, (average, count), np.zeros(1, np.float32), rule=fm.averaged("sgd"), lr=0.1)
    assert count[0] == 2**24
    assert average[0] == 2.0**-24


def test_mean_of_an_array_begins_with_its_first_gradient():
    early, late = np.zeros(1), np.zeros(1)
    opt = fm.Momentum([early, late], rule=fm.averaged("sgd"), lr=1.0)
    for grads in (([1.0], None), ([1.0], None), ([1.0], [1.0])):
        opt.step([g if g is None else np.array(g) for g in grads])
    assert [(state[0][0], state[1][0]) for state in opt.state] == [(-2.0, 3.0), (-1.0, 1.0)]


def test_first_mean_has_the_bits_of_the_parameter():
    p = np.array([1e8, -1e8])
    opt = fm.Momentum(p, rule=fm.averaged("sgd"), lr=1.0)
    assert not opt.state[0].any()
    opt.step(np.array([1e8 - 0.1, -1e8 + 0.3]))
    assert_same_bits(opt.state[0], p)
    assert abs(p).max() < 1


def test_average_keeps_the_ranges_and_defaults_of_the_rule():
    p = np.ones(2)
    for rule, setting in (("quasi_hyperbolic", {"nu": 1.5}), ("ema_corrected", {"momentum": 1.0})):
        with pytest.raises(ValueError, match=f"{next(iter(setting))}: expected a number in"):
            fm.Momentum(p, rule=fm.averaged(rule, 0.9), lr=0.1, **setting)
    assert fm.averaged("lion", 0.5).defaults == {"beta2": 0.99, "average_decay": 0.5}


def test_average_refuses_nesterov_lookahead_and_wrong_decays():
    p = np.ones(3)
    with pytest.raises(ValueError, match="no folded Nesterov form"):
        fm.Momentum(p, rule=fm.averaged("pytorch"), lr=0.1, nesterov=True)
    with pytest.raises(ValueError, match="no look-ahead form"):
        fm.Momentum(p, rule=fm.averaged("pytorch"), lr=0.1, lookahead=True)
    for decay, error in ((1.5, ValueError), (float("nan"), ValueError), (True, TypeError), ("lr", TypeError)):
        with pytest.raises(error, match=rf"decay: expected a number in \[0, 1\]; got {decay!r}"):
            fm.averaged("pytorch", decay)
    with pytest.raises(ValueError, match="rule must be one of"):
        fm.averaged("no such rule")


# An exponential average that starts at the p of the first update, as torch's and Keras's do.


class Averaged:
    """An average of torch's AveragedModel, of a model whose one weight is set by hand."""

    def __init__(self, p, decay):
        self.module = torch.nn.Module()
        self.module.weight = torch.nn.Parameter(torch.from_numpy(p.copy()))
        self.model = torch.optim.swa_utils.AveragedModel(
            self.module, avg_fn=torch.optim.swa_utils.get_ema_avg_fn(decay)
        )

    def update(self, p):
        with torch.no_grad():
            self.module.weight.copy_(torch.from_numpy(p))
        self.model.update_parameters(self.module)
        return self.model.module.weight.detach().numpy()


@pytest.mark.parametrize(
    ("rule", "dtype", "backend"),
    [
        *((rule, dtype, "numpy") for rule in AVERAGED_RULES for dtype in DTYPES),
        *(("pytorch", dtype, "cpu") for dtype in DTYPES),
    ],
    ids=label,
)
def test_an_average_from_the_first_update_has_the_bits_of_torch(rule, dtype, backend):
    p = AVERAGED_START.astype(dtype)
    opt = fm.Momentum(p, rule=fm.averaged(rule, 0.9, start="first update"), lr=0.1, backend=backend)
    theirs = Averaged(p, 0.9)
    assert_same_bits(opt.average, p)
    for g in gradients(SIZE, AVERAGED_STEPS, dtype):
        opt.step(g)
        assert_same_bits(opt.average, theirs.update(p))


@pytest.mark.filterwarnings("ignore")  # warnings of Keras while it is imported
def test_an_average_from_the_first_update_is_that_of_keras(monkeypatch):
    monkeypatch.setitem(os.environ, "KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras")
    start = np.array([10.0, -3.0], np.float32)
    weight = keras.Variable(start)
    sgd = keras.optimizers.SGD(0.125, use_ema=True, ema_momentum=0.99)
    rules = [fm.averaged("sgd", 0.99, start=name) for name in ("first update", "initial")]
    ours, other = [fm.Momentum(start.copy(), rule=rule, lr=0.125, backend="numpy") for rule in rules]
    for g in gradients(2, 10, np.float32):
        sgd.apply([keras.ops.convert_to_tensor(g)], [weight])
        ours.step(g)
        other.step(g)
    (average,) = sgd._model_variables_moving_average
    bound = 10 * 10 * 2.0**-23  # ten steps, each with roundings of numbers up to 10
    np.testing.assert_allclose(ours.average, average.numpy(), rtol=0, atol=bound)
    assert (abs(other.average - average.numpy()) > 100 * bound).all()


@pytest.mark.parametrize(("start", "first"), [("initial", 0), ("first update", 1)])
def test_an_average_weighs_the_p_at_which_it_starts_as_the_closed_form_says(start, first):
    d, p = 0.75, np.array([2.0])
    opt = fm.Momentum(p, rule=fm.averaged("sgd", d, start=start), lr=0.5)
    iterates = [Fraction(2)]
    for n in range(1, 8):
        opt.step(np.array([float(n)]))
        iterates.append(Fraction(p[0]))
        weights = [(1 - Fraction(d)) * Fraction(d) ** (n - t) for t in range(first + 1, n + 1)]
        wanted = Fraction(d) ** (n - first) * iterates[first] + sum(
            w * x for w, x in zip(weights, iterates[first + 1 :], strict=True)
        )
        assert Fraction(opt.average[0]) == wanted  # all numbers are dyadic and short


def test_an_average_from_the_first_update_starts_with_each_array_s_own_first_gradient():
    arrays = [np.full(2, 8.0) for _ in range(3)]
    opt = fm.Momentum(arrays, rule=fm.averaged("sgd", 0.5, start="first update"), lr=1.0)
    g = np.ones(2)
    for grads in ([g, None, None], [g, g, None], [g, g, None]):
        opt.step(grads)
    assert [average[0] for average in opt.average] == [5.75, 6.5, 8.0]  # of (7, 6, 5), of (7, 6), and of p₀
    opt.reset("the data changed")
    assert [average[0] for average in opt.average] == [5.0, 6.0, 8.0]
    opt.step([g, g, g])
    assert [average[0] for average in opt.average] == [4.0, 5.0, 7.0]


def test_an_average_of_frozen_elements_is_the_element():
    p = np.array([4.0, 4.0])
    opt = fm.Momentum(p, rule=fm.averaged("sgd", 0.5, start="first update"), lr=1.0, mask=np.array([True, False]))
    opt.step(np.ones(2))
    assert opt.average.tolist() == [3.0, 4.0]
    opt.mask = None
    opt.step(np.ones(2))
    assert opt.average.tolist() == [2.5, 3.5]


@pytest.mark.parametrize("start", ["initial", "first update"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_decay_of_an_average_is_a_live_setting(start, backend):
    def decay(step):
        return step / (step + 4.0)

    p = AVERAGED_START.copy()
    opt = fm.Momentum(p, rule=fm.averaged("pytorch", 0.5, start=start), lr=0.1, backend=backend, average_decay=decay)
    average = p.copy()
    for n, g in enumerate(gradients(SIZE, 8)):
        if n == 5:
            opt.average_decay = 0.25
        if n == 6:
            opt.groups[0]["average_decay"] = fm.schedules.Constant(0.125)
        d = decay(n) if n < 5 else 0.25 if n == 5 else 0.125
        assert opt.average_decay == d
        opt.step(g)
        if start == "initial":
            average = average + (1 - d) * (p - average)
        else:
            average = p.copy() if n == 0 else d * average + (1 - d) * p
        assert_same_bits(opt.average, average)
    with pytest.raises(ValueError, match=r"average_decay: expected a number in \[0, 1\]; got 1.5"):
        opt.average_decay = 1.5
    opt.step(g)


def test_average_is_the_optimiser_s_own_array_in_the_form_of_the_parameters():
    g, rule = np.ones(2), fm.averaged("pytorch", 0.5)
    for params, grads, read in (
        (np.ones(2), g, lambda found: found),
        ([np.ones(2)], [g], lambda found: found[0]),
        ({"w": np.ones(2)}, {"w": g}, lambda found: found["w"]),
    ):
        opt = fm.Momentum(params, rule=rule, lr=1.0)
        opt.step(grads)
        assert type(opt.average) is type(opt.velocity)
        assert read(opt.average).tolist() == [0.5, 0.5]
        read(opt.average)[:] = 8.0
        opt.step(grads)
        assert read(opt.average).tolist() == [0.5 * 8.0 + 0.5 * -1.9] * 2
    for name, keeps in (("pytorch", "velocity"), ("sgd", "no state")):
        with pytest.raises(AttributeError, match=f"rule '{name}' keeps no average; it keeps {keeps}"):
            fm.Momentum(np.ones(2), rule=name, lr=0.1).average  # noqa: B018


def test_a_run_with_an_average_is_saved_with_its_start(tmp_path):
    p = AVERAGED_START.copy()
    rule = fm.averaged("pytorch", 0.75, start="first update", name="averaged")
    opt = fm.Momentum(p, rule=rule, lr=0.1, average_decay=fm.schedules.Linear(0.5, 0.75, steps=4))
    grads = gradients(SIZE, 6)
    for g in grads[:3]:
        opt.step(g)
    opt.save(tmp_path / "run.npz")
    q = p.copy()
    with pytest.raises(ValueError, match="made_of: expected"):
        fm.Momentum.load(tmp_path / "run.npz", q, rule=fm.averaged("pytorch", 0.75, name="averaged"))
    again = fm.Momentum.load(tmp_path / "run.npz", q, rule=rule)
    for g in grads[3:]:
        opt.step(g)
        again.step(g)
    assert_all_same_bits((q, again.velocity, again.average), (p, opt.velocity, opt.average))


def test_step_starts_an_average_at_the_first_update_if_its_first_decay_is_0():
    p, average = np.array([4.0]), np.array([4.0])
    rule = fm.averaged("sgd", 0.5, start="first update")
    fm.step(p, average, np.array([1.0]), rule=rule, lr=1.0, average_decay=0.0)
    assert average[0] == 3.0
    fm.step(p, average, np.array([1.0]), rule=rule, lr=1.0)
    assert average[0] == 2.5


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"decay": 0.5, "start": "zero"}, "expected 'first update' or 'initial'; got 'zero'"),
        ({"decay": 0.5, "start": 1}, "expected 'first update' or 'initial'; got 1"),
        ({"start": "initial"}, "expected None, as the mean starts at the first update; got 'initial'"),
    ],
)
def test_averaged_refuses_an_unknown_start(settings, reason):
    with pytest.raises(ValueError, match=f"start: {reason}"):
        fm.averaged("sgd", **settings)
