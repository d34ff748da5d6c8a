"""Tables of the runs that other libraries publish in their tests and documentation.

Each row names the project, the file and the test function that its numbers and settings come from; the beginning of
the commit that was read stands in parentheses after the file. Published half-precision cases are left out, because the
package has no half precision. Sparse gradients are given as dense gradients, which is equivalent as long as the
velocity of each row without a gradient is zero. Numbers that fill many lines are in numbers.json.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import fastmomentum as fm
from tests.helpers.reference import DTYPES
from tests.published.compare import APIS, BITS, Tolerance

NUMBERS = json.loads(Path(__file__).with_name("numbers.json").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Published:
    """One published run: the settings, the initial arrays, and the published arrays after each step."""

    name: str
    source: str
    settings: dict
    params: list
    grads: list  # for each step the gradients of all arrays
    after: list  # for each step (params, velocities); None stands for numbers that are not published
    tolerance: Tolerance
    velocities: list | None = None  # the initial velocities; None for zeros
    sign: int = 1  # −1 if the source stores the velocity with the opposite sign
    dtypes: tuple = DTYPES
    apis: tuple = APIS
    in_single_precision: bool = False  # the source computed so, and params are compared so


# TensorFlow and tf-keras

TF_MOMENTUM = "tensorflow, python/training/momentum_test.py (06b9206)"
TF_SGD = "tensorflow, python/training/gradient_descent_test.py (0304934)"
TF_KERAS = "keras-team/tf-keras, tf_keras/optimizers/legacy/gradient_descent_test.py (6add81a)"

VARS, GRADS = [[1.0, 2.0], [3.0, 4.0]], [[0.1, 0.1], [0.01, 0.01]]
VARS_AFTER_MOMENTUM = [
    [[1.0 - (0.1 * 2.0), 2.0 - (0.1 * 2.0)], [3.0 - (0.01 * 2.0), 4.0 - (0.01 * 2.0)]],
    [
        [1.0 - (0.1 * 2.0) - ((0.9 * 0.1 + 0.1) * 2.0), 2.0 - (0.1 * 2.0) - ((0.9 * 0.1 + 0.1) * 2.0)],
        [2.98 - ((0.9 * 0.01 + 0.01) * 2.0), 3.98 - ((0.9 * 0.01 + 0.01) * 2.0)],
    ],
]
VARS_AFTER_SGD = [[1.0 - 3.0 * 0.1, 2.0 - 3.0 * 0.1], [3.0 - 3.0 * 0.01, 4.0 - 3.0 * 0.01]]
TWO_SUBTRACTIONS = Tolerance(
    "Two subtractions from the variable round, half a unit each; casts and the other operations have smaller numbers.",
    units=2,
)
ONE_SUBTRACTION = Tolerance("One subtraction rounds, half a unit; the casts and the product are smaller.", units=1)
# DistBelief's order of operations is not known.
DISTBELIEF_UNIT = Tolerance("0.54 units of single precision were measured.", units=1)


def outer(*values):
    """Return an array of two equal columns."""
    return np.outer(values, [1, 1])


TF_PRED, TF_SGD_GRAD = 1.0 * 4.0 + 2.0 * 5.0, 2 * (1.0 * 4.0 + 2.0 * 5.0 + 3.0)

TENSORFLOW = [
    Published(
        "tensorflow_momentum",
        f"{TF_MOMENTUM}, testBasic; testTensorLearningRateAndMomentum and testSharing have the same numbers",
        {"lr": 2.0, "momentum": 0.9},
        params=VARS,
        grads=[GRADS, GRADS],
        after=[
            (VARS_AFTER_MOMENTUM[0], [[0.1, 0.1], [0.01, 0.01]]),
            (
                VARS_AFTER_MOMENTUM[1],
                [[(0.9 * 0.1 + 0.1), (0.9 * 0.1 + 0.1)], [(0.9 * 0.01 + 0.01), (0.9 * 0.01 + 0.01)]],
            ),
        ],
        tolerance=TWO_SUBTRACTIONS,
    ),
    Published(
        "tensorflow_momentum_by_rows",
        f"{TF_MOMENTUM}, testSparse: gradients in row 1 of var0 and in rows 2 and 3 of var1",
        {"lr": 2.0, "momentum": 0.9},
        params=[np.zeros((4, 2)), np.ones((4, 2))],
        grads=[[outer(0, 0.1, 0, 0), outer(0, 0, 0.01, 0.01)]] * 2,
        after=[
            (
                [outer(0, -(0.1 * 2.0), 0, 0), outer(1, 1, 1.0 - (0.01 * 2.0), 1.0 - (0.01 * 2.0))],
                [outer(0, 0.1, 0, 0), outer(0, 0, 0.01, 0.01)],
            ),
            (
                [
                    outer(0, -(0.1 * 2.0) - ((0.9 * 0.1 + 0.1) * 2.0), 0, 0),
                    outer(1, 1, 0.98 - ((0.9 * 0.01 + 0.01) * 2.0), 0.98 - ((0.9 * 0.01 + 0.01) * 2.0)),
                ],
                [outer(0, (0.9 * 0.1 + 0.1), 0, 0), outer(0, 0, (0.9 * 0.01 + 0.01), (0.9 * 0.01 + 0.01))],
            ),
        ],
        tolerance=TWO_SUBTRACTIONS,
    ),
    # The momentum has no effect in a single step.
    *(
        Published(
            f"{project}_whole_numbers_{test}",
            f"{source}, {test}",
            {"lr": 1.0, "momentum": momentum},
            params=[var],
            grads=[[grad]],
            after=[([published], None)],
            tolerance=BITS,
        )
        for project, source, momentum in (("tensorflow", TF_MOMENTUM, 0.0), ("tf_keras", TF_KERAS, 0.9))
        for test, var, grad, published in (
            (
                "testMinimizeSparseResourceVariable",
                [[1.0, 2.0]],
                [[2 * TF_PRED * 4.0, 2 * TF_PRED * 5.0]],
                [[-111, -138]],
            ),
            ("testMinimizeWith2DIndicesForEmbeddingLookup", np.ones((2, 2)), [[0, 0], [1, 1]], [[1, 1], [0, 0]]),
        )
    ),
    Published(
        "distbelief",
        NUMBERS["tensorflow_distbelief"]["source"],
        {"lr": 0.1, "momentum": 0.1},
        params=[np.zeros(10)],
        grads=[[grad] for grad in NUMBERS["tensorflow_distbelief"]["grads"]],
        after=[([row], None) for row in NUMBERS["tensorflow_distbelief"]["params"]],
        tolerance=DISTBELIEF_UNIT,
        in_single_precision=True,
    ),
    Published(
        "tensorflow_sgd",
        f"{TF_SGD}, testBasic",
        {"rule": "sgd", "lr": 3.0},
        params=VARS,
        grads=[GRADS],
        after=[(VARS_AFTER_SGD, None)],
        tolerance=ONE_SUBTRACTION,
    ),
    Published(
        "tensorflow_sgd_by_rows",
        f"{TF_SGD}, testSparseBasic",
        {"rule": "sgd", "lr": 3.0},
        params=[[[1.0], [2.0]], [[3.0], [4.0]]],
        grads=[[[[0.1], [0.0]], [[0.0], [0.01]]]],
        after=[([[[1.0 - 3.0 * 0.1], [2.0]], [[3.0], [4.0 - 3.0 * 0.01]]], None)],
        tolerance=ONE_SUBTRACTION,
    ),
    Published(
        "tensorflow_sgd_linear_model",
        f"{TF_SGD}, testMinimizeResourceVariable",
        {"rule": "sgd", "lr": 1.0},
        params=[[[1.0, 2.0]], [3.0]],
        grads=[[[[TF_SGD_GRAD * 4.0, TF_SGD_GRAD * 5.0]], [TF_SGD_GRAD]]],
        after=[([[[1.0 - TF_SGD_GRAD * 4.0, 2.0 - TF_SGD_GRAD * 5.0]], [3.0 - TF_SGD_GRAD]], None)],
        tolerance=BITS,
    ),
    Published(
        "tf_keras_momentum",
        f"{TF_KERAS}, testBasic of MomentumOptimizerTest",
        {"rule": "classical", "lr": 2.0, "momentum": 0.9},
        params=VARS,
        grads=[GRADS, GRADS],
        after=[
            (VARS_AFTER_MOMENTUM[0], [[-0.2, -0.2], [-0.02, -0.02]]),
            (
                VARS_AFTER_MOMENTUM[1],
                [
                    [(0.9 * (-0.2) - 2.0 * 0.1), (0.9 * (-0.2) - 2.0 * 0.1)],
                    [(0.9 * (-0.02) - 2.0 * 0.01), (0.9 * (-0.02) - 2.0 * 0.01)],
                ],
            ),
        ],
        tolerance=TWO_SUBTRACTIONS,
        sign=-1,
    ),
    Published(
        "tf_keras_schedule",
        f"{TF_KERAS}, testBasicWithLearningRateDecay and testBasicWithLearningRateInverseTimeDecay: the learning rates "
        "of 3 / (1 + t/2) are 3 and 2",
        {"rule": "sgd", "lr": lambda t: 3.0 / (1 + 0.5 * t)},
        params=VARS,
        grads=[GRADS, GRADS],
        after=[
            (VARS_AFTER_SGD, None),
            (
                [
                    [1.0 - 3.0 * 0.1 - 2.0 * 0.1, 2.0 - 3.0 * 0.1 - 2.0 * 0.1],
                    [3.0 - 3.0 * 0.01 - 2.0 * 0.01, 4.0 - 3.0 * 0.01 - 2.0 * 0.01],
                ],
                None,
            ),
        ],
        tolerance=TWO_SUBTRACTIONS,
    ),
]


# Keras

KERAS_SGD = "keras-team/keras, keras/src/optimizers/sgd_test.py (51d7e77)"


def keras_decay(p, decay, lr):
    """Decay as in Keras's base_optimizer.py, _apply_weight_decay, in the same order of operations."""
    return p - p * decay * lr


KERAS_DECAY = fm.Stage(keras_decay, kind="param", hyper=("decay", "lr"), name="keras_decay")

KERAS = [
    *(
        Published(
            f"keras_one_step_{rule}",
            f"{KERAS_SGD}, test_single_step: momentum 0",
            {"rule": rule, "lr": 0.5, "momentum": 0.0},
            params=[[1.0, 2.0, 3.0, 4.0]],
            grads=[[[1.0, 6.0, 7.0, 2.0]]],
            after=[([[0.5, -1.0, -0.5, 3.0]], None)],
            tolerance=BITS,
        )
        for rule in ("sgd", "classical")
    ),
    Published(
        "keras_golden",
        NUMBERS["keras_golden"]["source"],
        {"rule": "classical", "nesterov": True, "lr": 0.01, "momentum": 0.0},
        params=[np.ones(10)],
        grads=[[np.full(10, 0.01)], *[[np.arange(0.1, 1.1, 0.1)]] * 4],
        after=[([row], None) for row in NUMBERS["keras_golden"]["params"]],
        tolerance=Tolerance(
            "The four printed digits are exact, because each step subtracts a multiple of 0.001, so that the published "
            "tolerance of 5e-4 is not needed. Five subtractions from a number below 1 cost a quarter of a unit each; "
            "casts and products have numbers 100 times smaller.",
            units=2,
        ),
    ),
    Published(
        "keras_clip_value",
        f"{KERAS_SGD}, test_clip_value: 100 is clipped to 1",
        {"rule": "classical", "lr": 1.0, "momentum": 0.9, "clip_value": 1.0},
        params=[np.zeros(2)],
        grads=[[[100.0, 100.0]]],
        after=[([[-1.0, -1.0]], [[1.0, 1.0]])],
        tolerance=BITS,
    ),
    Published(
        "keras_decay_as_a_stage",
        f"{KERAS_SGD}, test_weight_decay, and keras-team/tf-keras, tf_keras/optimizers/optimizer_test.py (6add81a), "
        "testWeightDecay, which asks for 1.9760959 itself: zero gradients, three steps",
        {"rule": fm.chain(KERAS_DECAY(0.004), "classical"), "lr": 1.0, "momentum": 0.0},
        params=[2.0],
        grads=[[0.0]] * 3,
        after=[(None, None), (None, None), ([1.9760959], None)],
        tolerance=BITS,
        dtypes=(np.float32,),
    ),
]


# ONNX


def onnx_nesterov(x, v, g, r, alpha, beta):
    """Nesterov's form with a coefficient at the gradient, which is the one form of ONNX that the package lacks."""
    v = alpha * v + beta * g
    return x - r * (g + alpha * v), v


ONNX_NESTEROV = fm.Rule(onnx_nesterov, hyper=("lr", "momentum", "beta"), ranges={"beta": (0, 1)}, name="onnx_nesterov")


def onnx_settings(node):
    """Return by name the settings of `fm.step` that are equivalent to a node of ONNX's operator Momentum.

    The published nodes have T = 0, for which the coefficient of the gradient is 1. With T = 1 it is beta.
    """
    beta = node["beta"] if node["T"] > 0 else 1.0
    if node["mode"] == "standard":
        return {"dampening": {"dampening": 1 - beta}}
    forms = {"own_rule": {"rule": ONNX_NESTEROV, "beta": beta}}
    return forms | {"nesterov": {"nesterov": True}} if beta == 1 else forms


# R = 0.1 and alpha = 0.95 throughout. The node "momentum in the mode nesterov" has the inputs and the beta of the first
# node, because the published node of that mode has beta = 1.
ONNX = [
    Published(
        f"onnx_{node['node']}_T={node['T']}_{form}",
        NUMBERS["onnx_momentum"]["source"],
        {"lr": 0.1, "momentum": 0.95, "weight_decay": node["norm_coefficient"], **settings},
        params=[node["X"]],
        grads=[[node["G"]]],
        after=[([node["X_new"]], [node["V_new"]])],
        tolerance=BITS,
        velocities=[node["V"]],
        dtypes=(np.float32,),
        apis=("step",),  # Momentum does not dampen its first gradient
    )
    for node in NUMBERS["onnx_momentum"]["nodes"]
    for form, settings in onnx_settings(node).items()
]


# Flax, optax and dfdx

FLAX = "google/flax, tests/optim_test.py (0b1916b)"
OPTAX_EMA = "google-deepmind/optax, optax/transforms/_accumulation_test.py (05a7425)"
EMA_UNITS = Tolerance(
    "Two casts and three operations round; the published tolerances of 1e-4 and 1e-2 are not needed.", units=2
)
D = 0.9  # optax's decay

FLAX_AND_OPTAX = [
    Published(
        "flax_momentum",
        f"{FLAX}, MomentumTest.test_apply_gradient, which asks for equality too",
        {"lr": 0.1, "momentum": 0.2},
        params=[[1.0]],
        grads=[[[3.0]]],
        after=[([[1.0 - 0.32]], [[3.2]])],
        tolerance=BITS,
        velocities=[[1.0]],
        dtypes=(np.float64,),
    ),
    Published(
        "flax_sgd",
        f"{FLAX}, GradientDescentTest.test_apply_gradient",
        {"rule": "sgd", "lr": 0.1},
        params=[[1.0]],
        grads=[[[3.0]]],
        after=[([[0.7]], None)],
        tolerance=BITS,
        dtypes=(np.float64,),
    ),
    Published(
        "optax_ema",
        f"{OPTAX_EMA}, test_ema: values 5 and 7",
        {"rule": "ema", "lr": 1.0, "momentum": D},
        params=[0.0],
        grads=[[5.0], [7.0]],
        after=[([-(1 - D) * 5.0], [(1 - D) * 5.0]), (None, [(1 - D) * (7.0 + D * 5.0)])],
        tolerance=EMA_UNITS,
    ),
    Published(
        "optax_ema_debias",
        f"{OPTAX_EMA}, test_ema_debias: the state, which is not debiased",
        {"rule": "ema", "lr": 1.0, "momentum": D},
        params=[0.0],
        grads=[[5.0], [7.0]],
        after=[(None, None), (None, [(1 - D) * 7.0 + D * (1 - D) * 5.0])],
        tolerance=EMA_UNITS,
    ),
]

EIGHT_DECIMALS = Tolerance(
    "Half of the eighth decimal: the printed −0.00299193 has fewer digits than single precision has at that size.",
    printed=5e-9,
)
# The package multiplies by 1 − lr·λ first, and dfdx subtracts λ·lr·p together with the gradient. Each of the two has
# one rounding a step of a number below 1 that the other has not, half a unit each.
DECOUPLED_8 = Tolerance("Half of the eighth decimal, and one unit a step.", printed=5e-9, units_a_step=1)
DECOUPLED_6 = Tolerance("Half of the sixth decimal, and one unit a step.", printed=5e-7, units_a_step=1)

DFDX = [
    Published(
        f"dfdx_{test}_{'_'.join(map(str, settings))}",
        f"{NUMBERS['dfdx_sgd']['source']}, {test}",
        {"lr": 1e-2, **settings},
        params=[np.ones(5)],
        # The loss is a mean of five, which divides the gradients by 5.
        grads=[[np.array(NUMBERS["dfdx_sgd"]["grads"], np.float32) * np.float32(0.2)]] * 5,
        after=[([row], None) for row in NUMBERS["dfdx_sgd"][test]],
        tolerance=tolerance,
        dtypes=(np.float32,),
        in_single_precision=True,
    )
    for test, settings, tolerance in (
        ("test_sgd_no_momentum", {"rule": "sgd"}, BITS),
        ("test_sgd_no_momentum", {"momentum": 0.0}, BITS),
        ("test_sgd_classic_momentum", {"momentum": 0.5}, BITS),
        ("test_sgd_nesterov_momentum", {"momentum": 0.5, "nesterov": True}, BITS),
        ("test_sgd_l2_weight_decay_classic_momentum", {"momentum": 0.5, "weight_decay": 0.1}, BITS),
        ("test_sgd_weight_decay_no_momentum", {"rule": "sgd", "weight_decay": 0.1}, EIGHT_DECIMALS),
        ("test_sgd_weight_decay_no_momentum", {"rule": "sgd", "decoupled_weight_decay": 0.1}, DECOUPLED_8),
        (
            "test_sgd_decoupled_weight_decay_classic_momentum",
            {"momentum": 0.5, "decoupled_weight_decay": 0.1},
            DECOUPLED_6,
        ),
    )
]

RUNS = (*TENSORFLOW, *KERAS, *ONNX, *FLAX_AND_OPTAX, *DFDX)
