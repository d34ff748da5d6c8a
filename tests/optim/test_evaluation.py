"""Points at which to evaluate a model: averages of schedule-free and averaged rules."""

import numpy as np
import pytest

import fastmomentum as fm
from tests.helpers.arrays import gradients_of
from tests.helpers.reference import BACKENDS


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


def test_point_of_evaluation_is_the_parameter_where_no_update_has_been_averaged():
    mask = np.array([True, False])
    for rule in ("schedule_free_sgd", fm.averaged("sgd"), fm.averaged("sgd", 0.5)):
        params = [np.ones(2), np.ones(2), np.array(1.0)]
        settings = {"momentum": 0.5} if rule == "schedule_free_sgd" else {}
        opt = fm.Optimizer(params, rule, lr=0.5, mask=[mask, None, None], **settings)
        assert [x.tolist() for x in opt.evaluate()] == [[1.0, 1.0], [1.0, 1.0], 1.0]
        for _ in range(2):
            opt.step([np.ones(2), None, np.array(1.0)])
        first, second, third = opt.evaluate()
        assert second.tolist() == [1.0, 1.0]
        assert first[1] == 1.0
        assert first[0] == third != 1.0
        assert isinstance(third, np.ndarray)
        opt.reset("rows", array=0, rows=0)
        assert opt.evaluate()[0][0] == params[0][0]


def schedule_free_by_hand(all_grads, momenta, lr):
    """Return y and x after every step of Defazio et al. 2024, Equations 3 to 5, from 1, with equal weights."""
    z = x = y = np.ones(3)
    for t, (g, beta) in enumerate(zip(all_grads, momenta)):
        z = z - lr * g
        x = x + (z - x) / (t + 1)
        y = (1 - beta) * z + beta * x
        yield y, x


@pytest.mark.parametrize("how", ["function", "assigned"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_schedule_free_average_is_kept_when_momentum_changes(backend, how):
    grads, momenta = [g for (g,) in gradients_of(((3,),), 8, np.float64)], [0.9, 0.9, 0.5, 0.5, 0.99, 0.1, 0.1, 0.9]
    p = np.ones(3)
    momentum = momenta.__getitem__ if how == "function" else 0.9
    opt = fm.Optimizer(p, "schedule_free_sgd", lr=0.1, momentum=momentum, backend=backend)
    for t, (y, x) in enumerate(schedule_free_by_hand(grads, momenta, 0.1)):
        before = opt.evaluate()
        if how == "assigned":
            opt.momentum = momenta[t]
            np.testing.assert_array_equal(opt.evaluate(), before)
        opt.step(grads[t])
        np.testing.assert_allclose(p, y, rtol=1e-13)
        np.testing.assert_allclose(opt.evaluate(), x, rtol=1e-12)


@pytest.mark.parametrize("rule", ["schedule_free_sgd", "schedule_free_adamw"])
def test_schedule_free_momentum_of_zero_is_refused_as_the_parameter_would_not_hold_the_average(rule):
    with pytest.raises(ValueError, match=r"momentum: expected a number in \(0, 1\); got 0.0"):
        fm.Optimizer(np.ones(2), rule, lr=0.1, momentum=0.0)
