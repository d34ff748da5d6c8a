"""The grids of settings that scikit-learn and MXNet test their optimizers on.

scikit-learn is installed and runs beside the package. The formulas of MXNet are written out in NumPy. The beginning of
the commit that was read stands in parentheses after a file.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest
from sklearn.neural_network._stochastic_optimizers import SGDOptimizer

import fastmomentum as fm
from tests.helpers.reference import DTYPES, assert_same_bits
from tests.published.compare import BITS, Tolerance

S = fm.stages


# scikit-learn

SKLEARN_SHAPES = [(4, 6), (6, 8), (7, 8, 9)]
SKLEARN_SCHEDULED = {"lr": lambda t: 0.1 / (7 * t + 1) ** 0.5 if t else 0.1, "momentum": 0.9}

# The grids of sklearn/neural_network/tests/test_stochastic_optimizers.py, as installed (2bbc8ec has the same grids), by
# the name of the test function. Each row has the settings of scikit-learn, the settings of the package, whether the
# parameters are random, and whether the initial velocities are random. Arrays that are not random are zero.
SKLEARN_GRID = [
    *(
        ("test_sgd_optimizer_no_momentum", {"learning_rate_init": lr, "momentum": 0}, {"lr": lr, "momentum": 0}, 0, 0)
        for lr in (10**i for i in range(-3, 4))
    ),
    *(
        (
            "test_sgd_optimizer_nesterovs_momentum" if nesterov else "test_sgd_optimizer_momentum",
            {"learning_rate_init": 0.1, "momentum": momentum, "nesterov": nesterov},
            {"lr": 0.1, "momentum": momentum, "nesterov": nesterov},
            0,
            1,
        )
        for momentum in np.arange(0.5, 0.9, 0.1)
        for nesterov in (False, True)
    ),
    # This row has scikit-learn's defaults, learning rate 0.1 and momentum 0.9.
    *(
        (
            "lr_schedule=invscaling",
            {"lr_schedule": "invscaling", "nesterov": nesterov},
            {**SKLEARN_SCHEDULED, "nesterov": nesterov},
            1,
            0,
        )
        for nesterov in (False, True)
    ),
]


@pytest.mark.parametrize(("source", "theirs", "ours", "random_params", "random_velocities"), SKLEARN_GRID)
def test_classical_has_the_bits_of_sklearn(source, theirs, ours, random_params, random_velocities):
    """Five updates with the same gradients. The velocities of scikit-learn have the opposite sign."""
    rng = np.random.RandomState(0)
    arrays = [rng.random_sample(shape) if random_params else np.zeros(shape) for shape in SKLEARN_SHAPES]
    theirs = SGDOptimizer(arrays, **{"nesterov": False, **theirs})
    ours = fm.Momentum(arrays, rule="classical", **ours)
    if random_velocities:
        theirs.velocities = [rng.random_sample(shape) for shape in SKLEARN_SHAPES]
        for v, velocity in zip(ours.velocity, theirs.velocities, strict=True):
            v[...] = -velocity
    params = [p.copy() for p in arrays]
    for step in range(5):
        grads = [rng.random_sample(p.shape) for p in params]
        theirs.update_params(params, grads)
        ours.step(grads)
        for mine, p, v, update in zip(arrays, params, ours.velocity, theirs.velocities, strict=True):
            assert_same_bits(mine, p)
            assert_same_bits(-v, update)
        if theirs.lr_schedule == "invscaling":
            theirs.iteration_ends(7 * (step + 1))


# MXNet

# The grid of options of apache/mxnet, tests/python/unittest/test_optimizer.py (02a3331), test_sgd. In the forks that
# are named below, test_nag has the same grid. The learning rate is 0.01, as in the references.
MXNET_OFF = {"momentum": 0.0, "clip_gradient": None, "rescale_grad": 1.0, "wd": 0.0}
MXNET_GRID = [
    {name: value for option in options for name, value in option.items()}
    for options in product(
        [{}, {"momentum": 0.9}],
        [{}, {"clip_gradient": 0.4}, {"clip_gradient": 0.5}],
        [{}, {"rescale_grad": 0.14}, {"rescale_grad": 0.8}],
        [{}, {"wd": 0.03}, {"wd": 0.05}, {"wd": 0.07}],
    )
]


def clipped(cast, grad, clip_gradient):
    return grad if clip_gradient is None else np.clip(grad, cast(-clip_gradient), cast(clip_gradient))


def mxnet_sgd(cast, weight, grad, mom, *, momentum, clip_gradient, rescale_grad, wd):
    grad = clipped(cast, grad * cast(rescale_grad), clip_gradient) + cast(wd) * weight
    mom = mom * cast(momentum) - cast(0.01) * grad
    return weight + mom, mom


def mxnet_nag(cast, weight, grad, mom, *, momentum, clip_gradient, rescale_grad, wd):
    grad = clipped(cast, grad * cast(rescale_grad), clip_gradient) + cast(wd) * weight
    mom = mom * cast(momentum) - cast(0.01) * grad
    return weight + (cast(momentum) * mom - cast(0.01) * grad), mom


def mxnet_pynag(cast, weight, grad, mom, *, momentum, clip_gradient, rescale_grad, wd):
    grad = clipped(cast, grad * cast(rescale_grad), clip_gradient) + cast(wd) * weight
    mom = mom * cast(momentum) + grad
    return weight + -cast(0.01) * (grad + cast(momentum) * mom), mom


def mxnet_pynag_later(cast, weight, grad, mom, *, momentum, clip_gradient, rescale_grad, wd):
    grad = clipped(cast, grad * cast(rescale_grad), clip_gradient)
    mom = mom * cast(momentum) + grad + cast(wd) * weight
    return weight - cast(0.01) * (grad + cast(momentum) * mom), mom


def mxnet_pysgd(cast, weight, grad, mom, *, momentum, clip_gradient, rescale_grad, wd):
    """The scalars are joined in double precision. Without momentum there is no state."""
    if clip_gradient is None:
        descent = cast(0.01 * rescale_grad) * grad
    else:
        descent = cast(0.01) * clipped(cast, grad * cast(rescale_grad), clip_gradient)
    if momentum == 0.0:
        return cast(1 - 0.01 * wd) * weight - descent, None
    mom = cast(momentum) * mom - cast(0.01 * wd) * weight - descent
    return weight + mom, mom


def nag_later(p, v, g, lr, mu, decay):
    v = mu * v + g + decay * p
    return p - lr * (g + mu * v), v


@dataclass(frozen=True)
class Reference:
    """One published formula of MXNet, the rule that is equivalent to it, and the tolerances of weight and momentum."""

    source: str
    formula: Callable  # (cast, weight, grad, mom, **options) → (weight, mom)
    rule: str | fm.Rule
    weight_tolerance: Tolerance = BITS
    momentum_tolerance: Tolerance = BITS
    sign: int = 1  # −1 if MXNet stores the momentum with the opposite sign
    decays_by_stage: bool = True
    always_momentum: bool = False  # leave the options without momentum out


# PySGD decays and scales in another order.
PYSGD_WEIGHT = Tolerance(
    "The roundings of the weight, below 1, and without momentum of its product with 1 − lr·wd, cost half a unit at "
    "most in each step.",
    units_a_step=1,
)
PYSGD_MOMENTUM = Tolerance(
    "The other roundings, of numbers 20 times smaller than 1 (the momentum stays below 0.05), are fewer than ten on "
    "each side in a step, and stay in the momentum.",
    units_a_step=0.1,
)

MXNET = [
    Reference("apache/mxnet, python/mxnet/optimizer/sgd.py (4de4ef5), SGD.step", mxnet_sgd, "classical", sign=-1),
    Reference(
        "apache/mxnet, python/mxnet/optimizer/nag.py (4de4ef5), NAG.step", mxnet_nag, "classical_nesterov", sign=-1
    ),
    Reference(
        "D-Roberts/incubator-mxnet (a fork), tests/python/unittest/test_optimizer.py (5d69ce6), PyNAG.update",
        mxnet_pynag,
        "pytorch_nesterov",
    ),
    # This form decays in the momentum alone, which is a rule of the user's own here.
    Reference(
        "anirudhacharya/incubator-mxnet (a fork), tests/python/unittest/test_optimizer.py (384e8a8), PyNAG.update",
        mxnet_pynag_later,
        fm.Rule(nag_later, hyper=("lr", "momentum", "weight_decay"), name="nag_later"),
        decays_by_stage=False,
        always_momentum=True,
    ),
    Reference(
        "apache/mxnet, tests/python/unittest/test_optimizer.py (02a3331), PySGD.update",
        mxnet_pysgd,
        "classical",
        weight_tolerance=PYSGD_WEIGHT,
        momentum_tolerance=PYSGD_MOMENTUM,
        sign=-1,
    ),
]

MXNET_CASES = [
    pytest.param(
        reference,
        options,
        id="-".join([reference.formula.__name__, *(f"{name}={value}" for name, value in options.items())]),
    )
    for reference in MXNET
    for options in MXNET_GRID
    if "momentum" in options or not reference.always_momentum
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("reference", "options"), MXNET_CASES)
def test_chains_match_the_formulas_of_mxnet(reference, options, dtype):
    options = MXNET_OFF | options
    stages = [S.scale, *([] if options["clip_gradient"] is None else [S.clip_value])]
    if reference.decays_by_stage:
        stages.append(S.weight_decay)
    chained = fm.chain(*stages, reference.rule)
    rng = np.random.default_rng(0)
    weight = rng.random((3, 4, 5)).astype(dtype)  # the published shape and distribution
    mom, p, v = np.zeros_like(weight), weight.copy(), np.zeros_like(weight)
    for step in range(1, 4):
        grad = rng.random(weight.shape).astype(dtype)
        weight, mom = reference.formula(dtype, weight, grad, mom, **options)
        fm.step(
            p, v, grad, rule=chained, lr=0.01, momentum=options["momentum"], scale=options["rescale_grad"],
            clip_value=options["clip_gradient"], weight_decay=options["wd"],
        )  # fmt: skip
        reference.weight_tolerance.check(p, weight, step)
        if mom is not None:
            reference.momentum_tolerance.check(reference.sign * v, mom, step)
