"""Agreement with torch.optim.SGD, for-loop implementation, array by array."""

from itertools import product

import numpy as np
import pytest
import torch

import fastmomentum as fm

SHAPES = ((1,), (7,), (3, 5), (2, 3, 4), (257,))
STEPS = 25
GRID = [
    dict(zip(("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize"), values, strict=True))
    for values in product((0.1, 1e-3), (0.0, 0.5, 0.9), (0.0, 0.3, 1.0), (0.0, 0.05), (False, True), (False, True))
    if not (values[4] and (values[2] or not values[1]))  # torch refuses Nesterov with dampening or without momentum
]
# torch contracts products and sums to FMA, so that one operation in three is rounded once less; over 25 steps of a
# stable update the difference stays below this many units in the last place of the largest number met.
UNITS = 50


def gradients(dtype, sparse=False):
    rng = np.random.default_rng(5)
    for step in range(STEPS):
        yield [
            None if sparse and (step < 2 * i or (step + i) % 5 == 4) else rng.standard_normal(shape).astype(dtype)
            for i, shape in enumerate(SHAPES)
        ]


def run_both(options, dtype, sparse=False, groups=None):
    rng = np.random.default_rng(6)
    ours = [rng.standard_normal(shape).astype(dtype) for shape in SHAPES]
    theirs = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in ours]

    def grouped(params):
        cut = [params[:2], params[2:]]
        return params if groups is None else [{"params": p, **g} for p, g in zip(cut, groups, strict=True)]

    opt = fm.Momentum(grouped(ours), **options)
    sgd = torch.optim.SGD(grouped(theirs), foreach=False, fused=False, **options)
    for grads in gradients(dtype, sparse):
        for p, g in zip(theirs, grads, strict=True):
            p.grad = None if g is None else torch.from_numpy(g.copy())
        opt.step(grads)
        sgd.step()
    buffers = [sgd.state[p].get("momentum_buffer") for p in theirs]
    return ours, opt.velocity, [p.detach().numpy() for p in theirs], buffers


def assert_agree(found, expected):
    scale = max(abs(expected).max(), 1.0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=UNITS * np.finfo(found.dtype).eps * scale)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("options", GRID, ids=lambda o: "-".join(map(str, o.values())))
def test_momentum_agrees_with_torch(options, dtype):
    ours, velocities, theirs, buffers = run_both(options, dtype)
    for p, v, q, buffer in zip(ours, velocities, theirs, buffers, strict=True):
        assert_agree(p, q)
        if options["momentum"]:  # torch keeps no buffer without
            assert_agree(v, buffer.numpy())


@pytest.mark.parametrize("dampening", [0.0, 0.3])
def test_arrays_without_gradient_are_left_alone_and_start_late_as_in_torch(dampening):
    options = {"lr": 0.1, "momentum": 0.9, "dampening": dampening, "weight_decay": 0.05}
    ours, _, theirs, _ = run_both(options, np.float64, sparse=True)
    for p, q in zip(ours, theirs, strict=True):
        assert_agree(p, q)


def test_groups_agree_with_torch():
    groups = [{"lr": 0.01, "weight_decay": 0.1}, {"momentum": 0.5, "nesterov": True}]
    ours, _, theirs, _ = run_both({"lr": 0.1, "momentum": 0.9}, np.float64, groups=groups)
    for p, q in zip(ours, theirs, strict=True):
        assert_agree(p, q)


def test_a_parameter_unfrozen_later_starts_with_its_own_gradient():
    p = [np.zeros(3), np.zeros(3)]
    opt = fm.Momentum(p, lr=1.0, momentum=0.5, dampening=0.5)
    g = np.ones(3)
    opt.step([g, None])
    opt.step([g, None])
    assert not p[1].any()
    assert not opt.velocity[1].any()
    opt.step([g, g])  # its first velocity is g, undamped, while the other's is 0.5·(0.5 + 0.5) + 0.5
    np.testing.assert_array_equal(opt.velocity[1], g)
    np.testing.assert_array_equal(opt.velocity[0], g)
    opt.step([2 * g, 2 * g])
    np.testing.assert_array_equal(opt.velocity[1], 0.5 * g + 0.5 * 2 * g)
