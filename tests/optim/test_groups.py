"""Groups of parameters with settings of their own, and how params is read."""

import numpy as np
import pytest

import fastmomentum as fm
from tests.helpers.arrays import arrays_of, gradients_of, read_only
from tests.helpers.reference import BACKENDS, assert_all_same_bits, assert_same_bits
from tests.helpers.runs import SHAPES


def test_groups_override_the_settings_that_they_name():
    params = arrays_of(SHAPES, np.float32)
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
    for grads in gradients_of(SHAPES, 4, np.float32):
        opt.step(grads)
        for each, g in zip(separate, grads, strict=True):
            each.step(g)
    assert_all_same_bits(params, alone)
    assert_all_same_bits(opt.velocity, [each.velocity for each in separate])
    assert opt.lr == [0.1, 0.5, 0.1]
    assert opt.momentum == [0.9, 0.5, 0.9]
    assert all(a is b for a, b in zip(opt.params, params, strict=True))


def test_arrays_of_both_dtypes_can_share_an_optimiser():
    params = [np.ones(3, np.float32), np.ones(3, np.float64)]
    opt = fm.Momentum(params, lr=0.1)
    opt.step([np.ones(3, np.float32), np.ones(3)])
    assert_same_bits(params[0], np.full(3, np.float32(1) - np.float32(0.1)))
    assert_same_bits(params[1], np.full(3, 0.9))


@pytest.mark.parametrize("backend", BACKENDS)
def test_first_step_uses_the_dampening_of_the_array_s_group(backend):
    params = [np.zeros(2), np.zeros(2)]
    groups = [{"params": params[0], "nesterov": True}, {"params": params[1], "dampening": 0.5}]
    opt = fm.Momentum(groups, lr=0.1, backend=backend)
    opt.step([np.ones(2), np.ones(2)])
    np.testing.assert_array_equal(opt.velocity[1], 1.0)


@pytest.mark.parametrize(
    ("params", "error", "reason"),
    [
        ([], ValueError, "at least one"),
        ({}, ValueError, "at least one"),
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


def test_parameters_may_come_from_a_generator_or_a_dict_s_values():
    arrays = {"w": np.ones(3), "b": np.ones(2)}
    for params in (arrays.values(), iter(arrays.values()), [{"params": (a for a in arrays.values())}]):
        opt = fm.Momentum(params, lr=0.1)
        assert all(ours is theirs for ours, theirs in zip(opt.params, arrays.values(), strict=True))
