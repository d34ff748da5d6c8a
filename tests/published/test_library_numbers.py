"""Numbers that other libraries publish in their tests and documentation.

Most of them stand in the tables of library_runs.py. The tests of groups, of which each array has settings of its own,
and of a printed loss stand here. The beginning of the commit that was read stands in parentheses after a file.
"""

import numpy as np
import pytest

import fastmomentum as fm
from tests.helpers.reference import DTYPES
from tests.published.compare import typed, updates
from tests.published.library_runs import RUNS

CASES = [
    pytest.param(row, dtype, api, id=f"{row.name}-{dtype.__name__}-{api}")
    for row in RUNS
    for dtype in row.dtypes
    for api in row.apis
]


@pytest.mark.parametrize(("row", "dtype", "api"), CASES)
def test_updates_match_the_published_numbers(row, dtype, api):
    params = typed(dtype, row.params)
    start = None if row.velocities is None else typed(dtype, row.velocities)
    walk = updates(api, params, row.settings, len(row.grads), lambda t: typed(dtype, row.grads[t]), start)
    for step, (velocities, (expected_params, slots)) in enumerate(zip(walk, row.after, strict=True), 1):
        if expected_params is not None:
            for p, expected in zip(params, expected_params, strict=True):
                if row.in_single_precision:
                    row.tolerance.check(p.astype(np.float32), np.array(expected, dtype), step)
                else:
                    row.tolerance.check(p, expected, step)
        if slots is not None:
            for v, expected in zip(velocities, slots, strict=True):
                row.tolerance.check(row.sign * v, expected, step)


@pytest.mark.parametrize("dtype", DTYPES)
def test_groups_match_the_decoupled_weight_decay_of_keras(dtype):
    """keras-team/keras, keras/src/optimizers/sgd_test.py (51d7e77), test_weight_decay.

    The gradients are zero. Three steps decay var1, while var2 and var3 are excluded from the decay.

    The published 1.9760959 has seven decimals: half of the last one is allowed. Keras computes p − p·λ·lr, and the
    package p·(1 − lr·λ). A step rounds the factor and the product, half a unit at 1 each, and there are three steps.
    """
    params = [np.array(2.0, dtype) for _ in range(3)]
    groups = [{"params": params[:1], "decoupled_weight_decay": 0.004}, {"params": params[1:]}]
    opt = fm.Momentum(groups, rule="classical", lr=1.0, momentum=0.0)
    for _ in range(3):
        opt.step([np.zeros((), dtype)] * 3)
    np.testing.assert_allclose(params[0], 1.9760959, rtol=0, atol=5e-8 + 3 * np.finfo(dtype).eps)
    assert params[1:] == [2.0, 2.0]


def test_groups_match_the_numbers_of_flax():
    """google/flax, tests/optim_test.py (0b1916b), MultiOptimizerTest.test_multi_optimizer.

    The learning rates of a and b are 1 and 10 first, and then 2 for both.
    """
    grads = [np.array(-1.0), np.array(-2.0)]
    params = [np.array(0.0), np.array(0.0)]
    opt = fm.Momentum([{"params": params[0], "lr": 1.0}, {"params": params[1], "lr": 10.0}], rule="sgd", lr=0.0)
    opt.step(grads)
    assert params == [1.0, 20.0]
    for p in params:
        p[...] = 0.0
    opt.lr = 2.0
    opt.step(grads)
    assert params == [2.0, 4.0]


def test_momentum_prints_the_losses_of_the_optax_docstring():
    """google-deepmind/optax, optax/_src/alias.py, the example in the docstring of sgd, all five printed values."""
    params = np.array([1.0, 2.0, 3.0], np.float32)
    opt = fm.Momentum(params, lr=0.003, momentum=0.0)
    printed = []
    for _ in range(5):
        opt.step(2 * params)
        printed.append(f"{np.sum(params**2):.2E}")
    assert printed == ["1.38E+01", "1.37E+01", "1.35E+01", "1.33E+01", "1.32E+01"]
