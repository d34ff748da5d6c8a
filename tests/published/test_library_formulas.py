"""Formulas that other libraries publish, each written out in NumPy and run beside the package.

Each row names the project, the file and the test function that its formula and settings come from; the beginning of the
commit that was read stands in parentheses after the file.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest

import fastmomentum as fm
from tests.helpers.reference import DTYPES, assert_same_bits
from tests.published.compare import APIS, BITS, Tolerance, typed, updates
from tests.published.library_runs import NUMBERS

S = fm.stages


def constant(*grads):
    """Return a function that gives the same gradients at all parameters."""
    return lambda params: [np.asarray(g, p.dtype) for g, p in zip(grads, params, strict=True)]


@dataclass(frozen=True)
class Walk:
    """A formula, and the settings under which the package follows it for some steps."""

    name: str
    source: str
    formula: Callable  # (cast, p, v, g, step) → (p, v), where `cast` converts a double to the dtype
    settings: dict
    params: list
    grads: Callable  # the gradients of all arrays at the parameters of either side
    steps: int
    tolerance: Tolerance = BITS  # of the parameters
    velocity_tolerance: Tolerance = BITS
    velocities: list | None = None  # the initial velocities; None for zeros
    sign: int = 1  # −1 if the source stores the velocity with the opposite sign
    dtypes: tuple = DTYPES
    apis: tuple = APIS


# TensorFlow and Keras


def tensorflow_nesterov(cast, var, accum, g, step):
    """Go back from the look-ahead point, take the step, and look ahead again."""
    lr, mu = cast(2.0), cast(0.9)
    var = var + accum * lr * mu
    accum = accum * mu + g
    var = var - lr * accum
    return var - accum * lr * mu, accum


def tf_keras_nesterov(cast, var, accum, g, step):
    lr, mu = cast(2.0), cast(0.9)
    accum = accum * mu - g * lr
    return var + (accum * mu - g * lr), accum


def keras_decay_first(cast, variable, m, g, step, *, nesterov):
    lr, mu, decay = cast(0.5), cast(0.06), cast(0.004)
    variable = variable - variable * decay * lr
    m = m * mu - g * lr
    return (variable + (m * mu - g * lr) if nesterov else variable + m), m


def ten_times_the_first(params):
    """Return the gradients 10·var0 and 3."""
    return [params[0].dtype.type(10) * params[0], np.full_like(params[1], 3)]


# A step multiplies var0, and the errors in it, by about −40, so that only the largest number counts.
NESTEROV_UNITS = Tolerance("1.8 units were measured.", units=8)
KERAS_UNITS = Tolerance(
    "The decay rounds three times in Keras and twice here, half a unit at most; the sum rounds once on each side.",
    units_a_step=2,
)

VARS = [[1.0, 2.0], [3.0, 4.0]]

TENSORFLOW_AND_KERAS = [
    Walk(
        "tensorflow_nesterov",
        "tensorflow, python/training/momentum_test.py (06b9206), testNesterovMomentum",
        tensorflow_nesterov,
        {"lr": 2.0, "momentum": 0.9, "nesterov": True},
        params=VARS,
        grads=ten_times_the_first,
        steps=4,
        tolerance=NESTEROV_UNITS,
        velocity_tolerance=NESTEROV_UNITS,
    ),
    Walk(
        "tf_keras_nesterov",
        "keras-team/tf-keras, tf_keras/optimizers/legacy/gradient_descent_test.py (6add81a), testNesterovMomentum",
        tf_keras_nesterov,
        {"rule": "classical", "nesterov": True, "lr": 2.0, "momentum": 0.9},
        params=VARS,
        grads=ten_times_the_first,
        steps=4,
        sign=-1,
    ),
    *(
        Walk(
            f"keras_decay_nesterov={nesterov}",
            "keras-team/keras, keras/src/optimizers/sgd_test.py (51d7e77): settings of test_config and numbers of "
            "test_single_step; formulas of sgd.py (1937d48), update_step, after base_optimizer.py (001750d), "
            "_apply_weight_decay",
            partial(keras_decay_first, nesterov=nesterov),
            {"rule": "classical", "nesterov": nesterov, "lr": 0.5, "momentum": 0.06, "decoupled_weight_decay": 0.004},
            params=[[1.0, 2.0, 3.0, 4.0]],
            grads=constant([1.0, 6.0, 7.0, 2.0]),
            steps=3,
            tolerance=KERAS_UNITS,
            sign=-1,
        )
        for nesterov in (False, True)
    ),
]


# optax, Flax and ONNX


def optax_trace(cast, p, trace, g, step, *, decay, nesterov):
    trace = g + cast(decay) * trace
    return p - cast(0.01) * (g + cast(decay) * trace if nesterov else trace), trace


def onnx_momentum(cast, x, v, g, step, *, beta):
    g_regularized = cast(0.001) * x + g
    v = cast(0.95) * v + cast(beta if step > 0 else 1) * g_regularized
    return x - cast(0.1) * v, v


ONNX_INPUTS = [node for node in NUMBERS["onnx_momentum"]["nodes"] if node["T"] == 0]

OPTAX_AND_ONNX = [
    *(
        Walk(
            f"optax_and_flax_momentum={momentum}_nesterov={nesterov}",
            "google-deepmind/optax, optax/_src/equivalence_test.py (2459756), FlaxOptimizersEquivalenceTest: sgd, "
            "momentum and nesterov_momentum; formula of optax's trace, optax/transforms/_accumulation.py (006cebd), "
            "which is the one of google/flax, flax/optim/momentum.py (23ef065)",
            partial(optax_trace, decay=momentum, nesterov=nesterov),
            {"lr": 0.01, "momentum": momentum, "nesterov": nesterov},
            params=VARS,
            grads=constant([500.0, 5.0], [300.0, 3.0]),
            steps=50,
        )
        for momentum, nesterov in ((0.0, False), (0.9, False), (0.9, True))
    ),
    # The velocities start at 0 here. Momentum does not dampen its first gradient, as torch does not, and so is
    # equivalent to ONNX from T = 0 on.
    *(
        Walk(
            f"onnx_from_rest_beta={beta}",
            "onnx/onnx, onnx/reference/ops/aionnx_preview_training/op_momentum.py (33c6c5c), _apply_momentum",
            partial(onnx_momentum, beta=beta),
            {"lr": 0.1, "momentum": 0.95, "dampening": 1 - beta, "weight_decay": 0.001},
            params=[node["X"] for node in ONNX_INPUTS],
            grads=constant(*(node["G"] for node in ONNX_INPUTS)),
            steps=4,
            dtypes=(np.float32,),
            apis=("Momentum",),
        )
        for beta in (0.1, 0.85)
    ),
]


# Paddle


def paddle_momentum(cast, param, velocity, grad, step, *, lr, mu, nesterov, coeff=None, rescale_grad=1.0):
    """PaddlePaddle/Paddle, test/legacy_test/test_momentum_op.py (08f23e3), calculate_momentum_by_numpy."""
    grad = cast(rescale_grad) * grad
    if coeff is not None:
        grad = grad + cast(coeff) * param
    velocity = cast(mu) * velocity + grad
    if not nesterov:
        return param - cast(lr) * velocity, velocity
    if coeff is not None:
        return param - (grad + velocity * cast(mu)) * cast(lr), velocity
    return param - grad * cast(lr) - velocity * cast(mu) * cast(lr), velocity


def paddle_at_its_settings(nesterov):
    """Return the run of one step on (123, 321) random numbers."""
    rng = np.random.default_rng(9)
    p, g = (rng.random((123, 321)).astype(np.float32) for _ in range(2))
    return Walk(
        f"paddle_nesterov={nesterov}",
        "PaddlePaddle/Paddle, test/legacy_test/test_momentum_op.py (08f23e3), TestMomentumOp1 and, with nesterov, "
        "TestMomentumOp2",
        partial(paddle_momentum, lr=0.001, mu=0.0001, nesterov=nesterov),
        {"lr": 0.001, "momentum": 0.0001, "nesterov": nesterov},
        params=[p],
        grads=constant(g),
        steps=1,
        tolerance=Tolerance("Paddle subtracts twice, and so rounds a number near 1 once more.", units=1)
        if nesterov
        else BITS,
        dtypes=(np.float32,),
    )


def paddle_merged(seed, shapes, nesterov, coeff, rescale_grad):
    """Return the run of many arrays of random numbers, which Momentum updates together and step one by one."""
    rng = np.random.RandomState(seed)
    params, grads, velocities = ([rng.random_sample(s).astype(np.float32) for s in shapes] for _ in range(3))
    lr = float(rng.random_sample(1).astype(np.float32)[0])
    stages = [S.scale(rescale_grad)] if coeff is None else [S.scale(rescale_grad), S.weight_decay(coeff)]
    sizes = ",".join("x".join(map(str, shape)) for shape in shapes)
    return Walk(
        f"paddle_seed={seed}_shapes={sizes}_nesterov={nesterov}_coeff={coeff}_rescale={rescale_grad}",
        "PaddlePaddle/Paddle, test/legacy_test/test_merged_momentum_op.py (e709f20), TestMergedMomentum (no decay) and "
        "TestMergedMomentum2 (l2_decay with coefficient 2.0)",
        partial(paddle_momentum, lr=lr, mu=0.9, nesterov=nesterov, coeff=coeff, rescale_grad=rescale_grad),
        {"rule": fm.chain(*stages, "pytorch"), "lr": lr, "momentum": 0.9, "nesterov": nesterov},
        params=params,
        grads=constant(*grads),
        steps=3,
        velocities=velocities,
        dtypes=(np.float32,),
    )


# The first row has the seed and shapes of test/legacy_test/test_merged_momentum_op.py (e709f20), and the others those
# of test/xpu/test_merged_momentum_op_xpu.py (22c9c2c).
PADDLE_SHAPES = [
    (10, [(3, 4), (2, 7), (5, 6), (7, 8)]),
    (1, [(3, 4), (2, 7), (5, 6, 8)]),
    (10, [(3, 4), (2, 7), (5, 6, 8)]),
    (10, [(3, 4), (2, 7)]),
    (10, [(3, 4)]),
    (10, [(3, 4), (2, 7), (5, 6, 7), (9, 9), (10, 12)]),
]

PADDLE = [
    *(paddle_at_its_settings(nesterov) for nesterov in (False, True)),
    *(
        paddle_merged(seed, shapes, nesterov, coeff, rescale_grad)
        for seed, shapes in PADDLE_SHAPES
        for nesterov, coeff in ((False, None), (True, 2.0), (False, 2.0))
        for rescale_grad in (1.0, 0.01)
    ),
]

CASES = [
    pytest.param(walk, dtype, api, id=f"{walk.name}-{dtype.__name__}-{api}")
    for walk in (*TENSORFLOW_AND_KERAS, *OPTAX_AND_ONNX, *PADDLE)
    for dtype in walk.dtypes
    for api in walk.apis
]


@pytest.mark.parametrize(("walk", "dtype", "api"), CASES)
def test_updates_match_the_published_formula(walk, dtype, api):
    params, theirs = typed(dtype, walk.params), typed(dtype, walk.params)
    start = None if walk.velocities is None else typed(dtype, walk.velocities)
    slots = [np.zeros_like(p) for p in params] if start is None else [v.copy() for v in start]
    run = updates(api, params, walk.settings, walk.steps, lambda step: walk.grads(params), start)
    for step, velocities in enumerate(run):
        for i, g in enumerate(walk.grads(theirs)):
            theirs[i], slots[i] = walk.formula(dtype, theirs[i], slots[i], g, step)
            walk.tolerance.check(params[i], theirs[i], step + 1)
            if api == "Momentum" and walk.settings.get("momentum") == 0.0:  # as in torch, no velocity is kept then
                assert not velocities[i].any()
            else:
                walk.velocity_tolerance.check(walk.sign * velocities[i], slots[i], step + 1)


@pytest.mark.parametrize(("nesterov", "published"), [(False, 5 - 2 * 5), (True, 5 - 2 * (4 + 5))])
def test_step_matches_the_whole_numbers_of_paddle(nesterov, published):
    """PaddlePaddle/Paddle, test/legacy_test/test_momentum_op.py (08f23e3), TestSparseMomentumOp.

    With nesterov, the source is TestSparseMomentumOp2 in the same file. The momentum is 1, the learning rate 2, the
    parameters are 5, the velocities 1, and the rows 0, 4 and 7 have gradients.
    """
    p, v, g = np.full((10, 12), 5.0, np.float32), np.ones((10, 12), np.float32), np.zeros((10, 12), np.float32)
    g[[0, 4, 7]] = 1.0
    g[0, 0], g[7, 8] = 2.0, 4.0
    param, velocity = paddle_momentum(np.float32, p, v, g, 0, lr=2.0, mu=1.0, nesterov=nesterov)
    fm.step(p, v, g, lr=2.0, momentum=1.0, nesterov=nesterov)
    assert_same_bits(v, velocity)
    assert_same_bits(p, param)
    assert p[7, 8] == published
