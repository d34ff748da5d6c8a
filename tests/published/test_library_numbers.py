"""Other people's published numbers.

Each test names the project, the file and the test function (or the formula) that its numbers and settings come from;
behind a file stands the beginning of the commit that was read. Published half-precision cases are left out, since the
package has none; sparse gradients are given as dense ones, which is the same where the velocity of a row that has no
gradient is zero.

Where the source computes in the same type and order, the bits are compared. Elsewhere a tolerance is counted in units:
a unit is the eps of the type times the largest number met (1 at least), and a rounding costs half a unit at most.
"""

from itertools import product

import numpy as np
import pytest
from sklearn.neural_network._stochastic_optimizers import SGDOptimizer

import fastmomentum as fm
from tests.helpers.reference import assert_same_bits

S = fm.stages
FLOATS = (np.float32, np.float64)


def assert_within(found, expected, units):
    scale = max(np.abs(expected).max(), 1.0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=units * np.finfo(found.dtype).eps * scale)


# TensorFlow

VAR0, VAR1, GRADS0, GRADS1 = [1.0, 2.0], [3.0, 4.0], [0.1, 0.1], [0.01, 0.01]


def typed(dtype, *lists):
    return [np.array(values, dtype) for values in lists]


@pytest.mark.parametrize("dtype", FLOATS)
def test_momentum_has_the_numbers_of_tensorflow(dtype):
    """tensorflow, python/training/momentum_test.py (06b9206), testBasic: variables and accumulators of two steps.

    testTensorLearningRateAndMomentum and testSharing publish the same numbers. Two units: two subtractions from the
    variable, half a unit each, and casts and operations of smaller numbers.
    """
    params, grads = typed(dtype, VAR0, VAR1), typed(dtype, GRADS0, GRADS1)
    opt = fm.Momentum(params, lr=2.0, momentum=0.9)
    published = [
        (
            ([0.1, 0.1], [0.01, 0.01]),
            ([1.0 - (0.1 * 2.0), 2.0 - (0.1 * 2.0)], [3.0 - (0.01 * 2.0), 4.0 - (0.01 * 2.0)]),
        ),
        (
            ([(0.9 * 0.1 + 0.1), (0.9 * 0.1 + 0.1)], [(0.9 * 0.01 + 0.01), (0.9 * 0.01 + 0.01)]),
            (
                [1.0 - (0.1 * 2.0) - ((0.9 * 0.1 + 0.1) * 2.0), 2.0 - (0.1 * 2.0) - ((0.9 * 0.1 + 0.1) * 2.0)],
                [2.98 - ((0.9 * 0.01 + 0.01) * 2.0), 3.98 - ((0.9 * 0.01 + 0.01) * 2.0)],
            ),
        ),
    ]
    for slots, variables in published:
        opt.step(grads)
        for found, expected in zip([*opt.velocity, *params], [*slots, *variables], strict=True):
            assert_within(found, expected, 2)


@pytest.mark.parametrize("dtype", FLOATS)
def test_momentum_has_the_numbers_of_tensorflow_by_rows(dtype):
    """tensorflow, python/training/momentum_test.py (06b9206), testSparse: row 1 of var0, rows 2 and 3 of var1.

    Two units, as above.
    """
    params = [np.zeros((4, 2), dtype), np.ones((4, 2), dtype)]
    grads = [np.zeros((4, 2), dtype), np.zeros((4, 2), dtype)]
    grads[0][1], grads[1][2:] = 0.1, 0.01
    opt = fm.Momentum(params, lr=2.0, momentum=0.9)
    published = [
        (0.1, 0.01, -(0.1 * 2.0), 1.0 - (0.01 * 2.0)),
        (
            (0.9 * 0.1 + 0.1),
            (0.9 * 0.01 + 0.01),
            -(0.1 * 2.0) - ((0.9 * 0.1 + 0.1) * 2.0),
            0.98 - ((0.9 * 0.01 + 0.01) * 2.0),
        ),
    ]
    for slot0, slot1, var0, var1 in published:
        opt.step(grads)
        assert_within(opt.velocity[0], np.outer([0, slot0, 0, 0], [1, 1]), 2)
        assert_within(opt.velocity[1], np.outer([0, 0, slot1, slot1], [1, 1]), 2)
        assert_within(params[0], np.outer([0, var0, 0, 0], [1, 1]), 2)
        assert_within(params[1], np.outer([1, 1, var1, var1], [1, 1]), 2)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_momentum_has_the_whole_numbers_of_tensorflow(momentum, dtype):
    """testMinimizeSparseResourceVariable and testMinimizeWith2DIndicesForEmbeddingLookup.

    With momentum 0.0 in tensorflow, python/training/momentum_test.py (06b9206); with 0.9 in keras-team/tf-keras,
    tf_keras/optimizers/legacy/gradient_descent_test.py (6add81a). One step: the momentum has no part in it.
    """
    var = np.array([[1.0, 2.0]], dtype)
    x = np.array([[4.0], [5.0]], dtype)
    fm.Momentum(var, lr=1.0, momentum=momentum).step(2 * (var @ x) * x.T)
    assert_same_bits(var, np.array([[-111, -138]], dtype))
    var = np.ones((2, 2), dtype)
    fm.Momentum(var, lr=1.0, momentum=momentum).step(np.array([[0, 0], [1, 1]], dtype))
    assert_same_bits(var, np.array([[1, 1], [0, 0]], dtype))


@pytest.mark.parametrize("dtype", FLOATS)
def test_nesterov_agrees_with_tensorflow(dtype):
    """tensorflow, python/training/momentum_test.py (06b9206), testNesterovMomentum and its NumPy formula.

    TensorFlow's formula goes back from the look-ahead point, steps, and looks ahead again. Gradients 10·var0 and 3,
    each taken at the side's own variables, learning rate 2, momentum 0.9. A step multiplies var0, and the errors in
    it, by some −40, so that only the largest number counts: 1.8 units measured, eight allowed.
    """
    cast = dtype
    lr, mu = cast(2.0), cast(0.9)
    params = typed(dtype, VAR0, VAR1)
    theirs = [(p.copy(), np.zeros_like(p)) for p in params]
    opt = fm.Momentum(params, lr=2.0, momentum=0.9, nesterov=True)
    for _ in range(4):
        for i, (var, accum) in enumerate(theirs):
            g = cast(10) * var if i == 0 else np.full_like(var, 3)
            var = var + accum * lr * mu
            accum = accum * mu + g
            var = var - lr * accum
            theirs[i] = var - accum * lr * mu, accum
        opt.step([cast(10) * params[0], np.full_like(params[1], 3)])
        for p, v, (var, accum) in zip(params, opt.velocity, theirs, strict=True):
            assert_within(p, var, 8)
            assert_within(v, accum, 8)


DISTBELIEF_GRADS = """
0.00096264342 0.17914793 0.93945462 0.41396621 0.53037018 0.93197989 0.78648776 0.50036013 0.55345792 0.96722615
0.17075552 0.88821375 0.20873757 0.25236958 0.57578111 0.15312378 0.5513742 0.94687688 0.16012503 0.22159521
0.35077485 0.47304362 0.44412705 0.44368884 0.078527533 0.81223965 0.31168157 0.43203235 0.16792089 0.24644311
0.9694621 0.75035888 0.28171822 0.83813518 0.53807181 0.3728098 0.81454384 0.03848977 0.89759839 0.93665648
0.38578293 0.8536852 0.88722926 0.66276771 0.13678469 0.94036359 0.69107032 0.81897682 0.5433259 0.67860287
0.27885768 0.76100707 0.24625534 0.81354135 0.18959245 0.48038563 0.84163809 0.41172323 0.83259648 0.44941229
0.27233034 0.056316052 0.5039115 0.24105175 0.35697976 0.75913221 0.73577434 0.16014607 0.57500273 0.071136251
0.58697265 0.2494842 0.08106143 0.39954534 0.15892942 0.12683646 0.74053431 0.16033 0.66625422 0.73515922
0.8215279 0.41994119 0.95172721 0.68000203 0.79439718 0.43384039 0.55561525 0.22567581 0.93331909 0.29438227
0.68297005 0.67758518 0.1748755 0.13266537 0.70697063 0.055731893 0.68593478 0.50580865 0.12602448 0.093537711
"""
DISTBELIEF_PARAMS = """
-9.6264346e-05 -0.017914793 -0.093945466 -0.041396622 -0.053037018
-0.093197994 -0.078648776 -0.050036013 -0.055345792 -0.096722618
-0.017181443 -0.10852765 -0.12421377 -0.070773244 -0.11591884
-0.11783017 -0.14165108 -0.14972731 -0.076892875 -0.1285544
-0.053967446 -0.1648933 -0.1716533 -0.1180798 -0.13005978 -0.20151734 -0.17911947 -0.20289968 -0.095839672 -0.15638189
-0.15459226 -0.24556576 -0.20456907 -0.20662397 -0.18528105 -0.24716705 -0.2643207 -0.21206589 -0.18749419 -0.2528303
-0.20323303 -0.33900154 -0.29658359 -0.28175515 -0.20448165 -0.34576839 -0.34194785 -0.29488021 -0.25099224 -0.33033544
-0.23598288 -0.42444581 -0.33041057 -0.3706224 -0.22536094 -0.40366709 -0.43387437 -0.34433398 -0.34060168 -0.38302717
-0.26649091 -0.43862185 -0.38418442 -0.40361428 -0.26314685 -0.48537019 -0.51664448 -0.36529395 -0.40706289 -0.39540997
-0.32823896 -0.46498787 -0.39766794 -0.446868 -0.28281838 -0.50622416 -0.59897494 -0.38342294 -0.48033443 -0.47016418
-0.41656655 -0.50961858 -0.49418902 -0.51919359 -0.36422527 -0.55169362 -0.6627695 -0.40780342 -0.58099347 -0.50707781
-0.49369633 -0.58184016 -0.52132869 -0.5396927 -0.44306302 -0.56181377 -0.73774242 -0.46082234 -0.60366184 -0.52012295
"""


@pytest.mark.parametrize("dtype", FLOATS)
def test_momentum_has_the_numbers_of_distbelief(dtype):
    """tensorflow, python/training/momentum_test.py (06b9206), testLikeDistBeliefMom01: all 100 parameters of ten steps.

    DistBelief's numbers are of single precision, and its order of operations is not known: 0.54 units of single
    precision measured, one allowed.
    """
    grads, expected = (np.array(text.split(), dtype).reshape(10, 10) for text in (DISTBELIEF_GRADS, DISTBELIEF_PARAMS))
    p = np.zeros(10, dtype)
    opt = fm.Momentum(p, lr=0.1, momentum=0.1)
    for g, row in zip(grads, expected, strict=True):
        opt.step(g)
        assert_within(p.astype(np.float32), row, 1)


@pytest.mark.parametrize("dtype", FLOATS)
def test_sgd_has_the_numbers_of_tensorflow(dtype):
    """tensorflow, python/training/gradient_descent_test.py (0304934), testBasic, testSparseBasic and
    testMinimizeResourceVariable: learning rates 3 and 1, one step. One unit: half for the subtraction, and
    casts and a product of smaller numbers.
    """
    params = typed(dtype, VAR0, VAR1)
    fm.Momentum(params, rule="sgd", lr=3.0).step(typed(dtype, GRADS0, GRADS1))
    assert_within(params[0], [1.0 - 3.0 * 0.1, 2.0 - 3.0 * 0.1], 1)
    assert_within(params[1], [3.0 - 3.0 * 0.01, 4.0 - 3.0 * 0.01], 1)

    params = typed(dtype, [[1.0], [2.0]], [[3.0], [4.0]])
    fm.Momentum(params, rule="sgd", lr=3.0).step(typed(dtype, [[0.1], [0.0]], [[0.0], [0.01]]))
    assert_within(params[0], [[1.0 - 3.0 * 0.1], [2.0]], 1)
    assert_within(params[1], [[3.0], [4.0 - 3.0 * 0.01]], 1)

    params, x = typed(dtype, [[1.0, 2.0]], [3.0]), np.array([[4.0], [5.0]], dtype)
    pred = params[0] @ x + params[1]
    fm.Momentum(params, rule="sgd", lr=1.0).step([2 * pred * x.T, 2 * pred[0]])
    np_grad = 2 * (1.0 * 4.0 + 2.0 * 5.0 + 3.0)
    assert_same_bits(params[0], np.array([[1.0 - np_grad * 4.0, 2.0 - np_grad * 5.0]], dtype))
    assert_same_bits(params[1], np.array([3.0 - np_grad], dtype))


# Keras


@pytest.mark.parametrize("dtype", FLOATS)
def test_classical_has_the_numbers_of_keras(dtype):
    """keras-team/tf-keras, tf_keras/optimizers/legacy/gradient_descent_test.py (6add81a), testBasic of
    MomentumOptimizerTest: variables and slots of two steps; Keras's velocity has the other sign. Two units, as for
    TensorFlow above.
    """
    params, grads = typed(dtype, VAR0, VAR1), typed(dtype, GRADS0, GRADS1)
    opt = fm.Momentum(params, rule="classical", lr=2.0, momentum=0.9)
    published = [
        (
            ([-0.2, -0.2], [-0.02, -0.02]),
            ([1.0 - (0.1 * 2.0), 2.0 - (0.1 * 2.0)], [3.0 - (0.01 * 2.0), 4.0 - (0.01 * 2.0)]),
        ),
        (
            (
                [(0.9 * (-0.2) - 2.0 * 0.1), (0.9 * (-0.2) - 2.0 * 0.1)],
                [(0.9 * (-0.02) - 2.0 * 0.01), (0.9 * (-0.02) - 2.0 * 0.01)],
            ),
            (
                [1.0 - (0.1 * 2.0) - ((0.9 * 0.1 + 0.1) * 2.0), 2.0 - (0.1 * 2.0) - ((0.9 * 0.1 + 0.1) * 2.0)],
                [2.98 - ((0.9 * 0.01 + 0.01) * 2.0), 3.98 - ((0.9 * 0.01 + 0.01) * 2.0)],
            ),
        ),
    ]
    for slots, variables in published:
        opt.step(grads)
        for v, p, slot, variable in zip(opt.velocity, params, slots, variables, strict=True):
            assert_within(-v, slot, 2)
            assert_within(p, variable, 2)


@pytest.mark.parametrize("dtype", FLOATS)
def test_classical_nesterov_has_the_bits_of_keras(dtype):
    """keras-team/tf-keras, tf_keras/optimizers/legacy/gradient_descent_test.py (6add81a), testNesterovMomentum and its
    NumPy formula: four steps of learning rate 2 and momentum 0.9 with the gradients 10·var0 and 3.
    """
    cast = dtype
    lr, mu = cast(2.0), cast(0.9)
    params = typed(dtype, VAR0, VAR1)
    theirs = [(p.copy(), np.zeros_like(p)) for p in params]
    opt = fm.Momentum(params, rule="classical", nesterov=True, lr=2.0, momentum=0.9)
    for _ in range(4):
        for i, (var, accum) in enumerate(theirs):
            g = cast(10) * var if i == 0 else np.full_like(var, 3)
            accum = accum * mu - g * lr
            theirs[i] = var + (accum * mu - g * lr), accum
        opt.step([cast(10) * params[0], np.full_like(params[1], 3)])
        for p, v, (var, accum) in zip(params, opt.velocity, theirs, strict=True):
            assert_same_bits(p, var)
            assert_same_bits(-v, accum)


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_schedule_has_the_numbers_of_keras(dtype):
    """keras-team/tf-keras, tf_keras/optimizers/legacy/gradient_descent_test.py (6add81a),
    testBasicWithLearningRateDecay and testBasicWithLearningRateInverseTimeDecay: 3 / (1 + t/2), so that the steps are
    of 3 and 2. Two units: two subtractions from the variable, half a unit each, and smaller numbers.
    """
    params, grads = typed(dtype, VAR0, VAR1), typed(dtype, GRADS0, GRADS1)
    opt = fm.Momentum(params, rule="sgd", lr=lambda t: 3.0 / (1 + 0.5 * t))
    opt.step(grads)
    assert_within(params[0], [1.0 - 3.0 * 0.1, 2.0 - 3.0 * 0.1], 2)
    assert_within(params[1], [3.0 - 3.0 * 0.01, 4.0 - 3.0 * 0.01], 2)
    opt.step(grads)
    assert_within(params[0], [1.0 - 3.0 * 0.1 - 2.0 * 0.1, 2.0 - 3.0 * 0.1 - 2.0 * 0.1], 2)
    assert_within(params[1], [3.0 - 3.0 * 0.01 - 2.0 * 0.01, 4.0 - 3.0 * 0.01 - 2.0 * 0.01], 2)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("rule", ["sgd", "classical"])
def test_one_step_has_the_numbers_of_keras(rule, dtype):
    """keras-team/keras, keras/src/optimizers/sgd_test.py (51d7e77), test_single_step (momentum 0)."""
    p = np.array([1.0, 2.0, 3.0, 4.0], dtype)
    fm.Momentum(p, rule=rule, lr=0.5, momentum=0.0).step(np.array([1.0, 6.0, 7.0, 2.0], dtype))
    assert_same_bits(p, np.array([0.5, -1.0, -0.5, 3.0], dtype))


@pytest.mark.parametrize("dtype", FLOATS)
def test_classical_nesterov_has_the_golden_numbers_of_keras(dtype):
    """keras-team/keras, keras/src/optimizers/sgd_test.py (51d7e77), test_correctness_with_golden: SGD(nesterov=True)
    with its defaults, learning rate 0.01 and momentum 0, after 1 to 5 steps.

    The four printed digits are all there are (each step subtracts a multiple of 0.001), so that the published
    tolerance of 5e-4 is not needed: two units, for five subtractions from a number below 1, a quarter of a unit each,
    and casts and products of numbers 100 times smaller.
    """
    grads = np.arange(0.1, 1.1, 0.1).astype(dtype)
    golden = [
        [0.9999, 0.9999, 0.9999, 0.9999, 0.9999, 0.9999, 0.9999, 0.9999, 0.9999, 0.9999],
        [0.9989, 0.9979, 0.9969, 0.9959, 0.9949, 0.9939, 0.9929, 0.9919, 0.9909, 0.9899],
        [0.9979, 0.9959, 0.9939, 0.9919, 0.9899, 0.9879, 0.9859, 0.9839, 0.9819, 0.9799],
        [0.9969, 0.9939, 0.9909, 0.9879, 0.9849, 0.9819, 0.9789, 0.9759, 0.9729, 0.9699],
        [0.9959, 0.9919, 0.9879, 0.9839, 0.9799, 0.9759, 0.9719, 0.9679, 0.9639, 0.9599],
    ]
    x = np.ones(10, dtype)
    opt = fm.Momentum(x, rule="classical", nesterov=True, lr=0.01, momentum=0.0)
    for row, g in zip(golden, [np.full(10, 0.01, dtype), *[grads] * 4], strict=True):
        opt.step(g)
        assert_within(x, row, 2)


@pytest.mark.parametrize("dtype", FLOATS)
def test_clip_value_has_the_numbers_of_keras(dtype):
    """keras-team/keras, keras/src/optimizers/sgd_test.py (51d7e77), test_clip_value: 100 is clipped to 1."""
    p = np.zeros(2, dtype)
    opt = fm.Momentum(p, rule="classical", lr=1.0, momentum=0.9, clip_value=1.0)
    opt.step(np.array([100.0, 100.0], dtype))
    assert_same_bits(opt.velocity, np.array([1.0, 1.0], dtype))
    assert_same_bits(p, np.array([-1.0, -1.0], dtype))


@pytest.mark.parametrize("dtype", FLOATS)
def test_decoupled_weight_decay_has_the_numbers_of_keras(dtype):
    """keras-team/keras, keras/src/optimizers/sgd_test.py (51d7e77), test_weight_decay: zero gradients, three steps of
    var1, while var2 and var3 are excluded from decay.

    The published 1.9760959 has seven decimals: half of the last. Keras computes p − p·λ·lr, this package p·(1 − lr·λ):
    a step rounds the factor and the product, half a unit at 1 each, and there are three steps.
    """
    params = [np.array(2.0, dtype) for _ in range(3)]
    groups = [{"params": params[:1], "decoupled_weight_decay": 0.004}, {"params": params[1:]}]
    opt = fm.Momentum(groups, rule="classical", lr=1.0, momentum=0.0)
    for _ in range(3):
        opt.step([np.zeros((), dtype)] * 3)
    np.testing.assert_allclose(params[0], 1.9760959, rtol=0, atol=5e-8 + 3 * np.finfo(dtype).eps)
    assert params[1:] == [2.0, 2.0]


def keras_decay(p, decay, lr):
    return p - p * decay * lr


def test_a_stage_of_the_users_own_has_the_bits_of_keras():
    """The same test, and keras-team/tf-keras, tf_keras/optimizers/optimizer_test.py (6add81a), testWeightDecay, which
    asks for 1.9760959 itself; with the order of operations that base_optimizer.py has in _apply_weight_decay.
    """
    stage = fm.Stage(keras_decay, kind="param", hyper=("decay", "lr"), name="keras_decay")
    p = np.array(2.0, np.float32)
    opt = fm.Momentum(p, rule=fm.chain(stage(0.004), "classical"), lr=1.0, momentum=0.0)
    for _ in range(3):
        opt.step(np.zeros((), np.float32))
    assert_same_bits(p, np.array(1.9760959, np.float32))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("nesterov", [False, True])
def test_decay_and_momentum_together_agree_with_keras(nesterov, dtype):
    """keras-team/keras, the settings of sgd_test.py (51d7e77), test_config, and the numbers of test_single_step; the
    formulas of sgd.py (1937d48), update_step, behind base_optimizer.py (001750d), _apply_weight_decay: decay first.

    Two units a step: the decay is rounded in another way, three times there and twice here, half a unit at most, and
    the sum that follows once on either side.
    """
    cast = dtype
    lr, mu, decay = cast(0.5), cast(0.06), cast(0.004)
    variable, g = np.array([1.0, 2.0, 3.0, 4.0], dtype), np.array([1.0, 6.0, 7.0, 2.0], dtype)
    m, p = np.zeros_like(variable), variable.copy()
    opt = fm.Momentum(p, rule="classical", nesterov=nesterov, lr=0.5, momentum=0.06, decoupled_weight_decay=0.004)
    for step in range(1, 4):
        variable = variable - variable * decay * lr
        m = m * mu - g * lr
        variable = variable + (m * mu - g * lr) if nesterov else variable + m
        opt.step(g)
        assert_same_bits(-opt.velocity, m)
        assert_within(p, variable, 2 * step)


# ONNX

# Settings (mode, norm_coefficient, beta) and inputs X, G, V of onnx/onnx, onnx/backend/test/case/node/momentum.py
# (0d484ac); R = 0.1 and alpha = 0.95 throughout. The last takes the first's inputs and beta in the other mode, since
# the published node of that mode has beta = 1.
ONNX = {
    "momentum": ("standard", 0.001, 0.1, [1.2, 2.8], [-0.94, -2.5], [1.7, 3.6]),
    "nesterov_momentum": ("nesterov", 0.01, 1.0, [1.2, 2.8], [-0.94, -2.5], [1.7, 3.6]),
    "momentum_multiple: X1": ("standard", 0.001, 0.85, [1.0], [-1.0], [2.0]),
    "momentum_multiple: X2": ("standard", 0.001, 0.85, [1.0, 2.0], [-1.0, -3.0], [4.0, 1.0]),
    "momentum in the mode nesterov": ("nesterov", 0.001, 0.1, [1.2, 2.8], [-0.94, -2.5], [1.7, 3.6]),
}
# X_new and V_new, in single precision to the bit, from ONNX's own onnx/reference/ops/aionnx_preview_training/
# op_momentum.py, run by the ReferenceEvaluator of onnx 1.23.2. The published nodes have T = 0 (where the gradient's
# coefficient is 1 whatever beta is), those with T = 1 (where it is beta) are the same nodes one iteration on.
ONNX_OUTPUTS = {
    ("momentum", 0): ([1.13238, 2.70772], [0.67620003, 0.9227998]),
    ("momentum", 1): ([1.047888, 2.482972], [1.5211201, 3.1702797]),
    ("nesterov_momentum", 0): ([1.227535, 2.95714], [0.68700004, 0.94799995]),
    ("nesterov_momentum", 1): ([1.227535, 2.95714], [0.68700004, 0.94799995]),
    ("momentum_multiple: X1", 0): ([0.9099], [0.90099996]),
    ("momentum_multiple: X1", 1): ([0.894915], [1.0508499]),
    ("momentum_multiple: X2", 0): ([0.7199, 2.2048], [2.8009999, -2.0479999]),
    ("momentum_multiple: X2", 1): ([0.704915, 2.15983], [2.95085, -1.5983]),
    ("momentum in the mode nesterov", 0): ([1.2296411, 2.962054], [0.67620003, 0.9227998]),
    ("momentum in the mode nesterov", 1): ([1.1493737, 2.7485433], [1.5211201, 3.1702797]),
}


def onnx_nesterov(x, v, g, r, alpha, beta):
    v = alpha * v + beta * g
    return x - r * (g + alpha * v), v


# The one of ONNX's forms that the package does not have: Nesterov's with a coefficient at the gradient.
ONNX_NESTEROV = fm.Rule(onnx_nesterov, hyper=("lr", "momentum", "beta"), ranges={"beta": (0, 1)}, name="onnx_nesterov")


def forms_of_onnx(mode, beta):
    """The settings of step() that are ONNX's Momentum with this coefficient at the gradient."""
    if mode == "standard":
        yield {"dampening": 1 - beta}
    else:
        yield {"rule": ONNX_NESTEROV, "beta": beta}
        if beta == 1:
            yield {"nesterov": True}


@pytest.mark.parametrize(("node", "t"), ONNX_OUTPUTS)
def test_step_has_the_bits_of_onnx(node, t):
    mode, norm_coefficient, beta, *inputs = ONNX[node]
    x, g, v = typed(np.float32, *inputs)
    x_new, v_new = typed(np.float32, *ONNX_OUTPUTS[node, t])
    for form in forms_of_onnx(mode, beta if t > 0 else 1.0):
        p, state = x.copy(), v.copy()
        fm.step(p, state, g, lr=0.1, momentum=0.95, weight_decay=norm_coefficient, **form)
        assert_same_bits(p, x_new)
        assert_same_bits(state, v_new)


@pytest.mark.parametrize("beta", [0.1, 0.85])
def test_momentum_from_rest_has_the_bits_of_onnx_from_t_0_on(beta):
    """onnx/onnx, onnx/reference/ops/aionnx_preview_training/op_momentum.py (33c6c5c), the formula of _apply_momentum.

    The undamped first step of Momentum, which is torch's, is ONNX's at T = 0 too. Inputs as above, but V = 0.
    """
    r, alpha, norm_coefficient = np.float32(0.1), np.float32(0.95), np.float32(0.001)
    xs, gs = (typed(np.float32, *(ONNX[node][place] for node in ONNX)) for place in (3, 4))
    params = [x.copy() for x in xs]
    vs = [np.zeros_like(x) for x in xs]
    opt = fm.Momentum(params, lr=0.1, momentum=0.95, dampening=1 - beta, weight_decay=0.001)
    for t in range(4):
        opt.step(gs)
        for i, g in enumerate(gs):
            g_regularized = norm_coefficient * xs[i] + g
            vs[i] = alpha * vs[i] + np.float32(beta if t > 0 else 1) * g_regularized
            xs[i] = xs[i] - r * vs[i]
            assert_same_bits(params[i], xs[i])
            assert_same_bits(opt.velocity[i], vs[i])


# scikit-learn

# sklearn/neural_network/tests/test_stochastic_optimizers.py (as installed; the same grids in 2bbc8ec)
SKLEARN_SHAPES = [(4, 6), (6, 8), (7, 8, 9)]
SKLEARN_MOMENTA = np.arange(0.5, 0.9, 0.1)


def assert_walks_with_sklearn(theirs, ours, arrays, rng, between=lambda step: None):
    """Five updates with the same gradients; scikit-learn's velocities have the other sign."""
    params = [p.copy() for p in arrays]
    for step in range(5):
        grads = [rng.random_sample(p.shape) for p in params]
        theirs.update_params(params, grads)
        ours.step(grads)
        for mine, p, v, update in zip(arrays, params, ours.velocity, theirs.velocities, strict=True):
            assert_same_bits(mine, p)
            assert_same_bits(-v, update)
        between(step)


@pytest.mark.parametrize("lr", [10**i for i in range(-3, 4)])
def test_classical_without_momentum_has_the_bits_of_sklearn(lr):
    """scikit-learn itself, on the grid of test_sgd_optimizer_no_momentum."""
    rng = np.random.RandomState(0)
    arrays = [np.zeros(shape) for shape in SKLEARN_SHAPES]
    theirs = SGDOptimizer(arrays, lr, momentum=0, nesterov=False)
    ours = fm.Momentum(arrays, rule="classical", lr=lr, momentum=0)
    assert_walks_with_sklearn(theirs, ours, arrays, rng)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", SKLEARN_MOMENTA)
def test_classical_has_the_bits_of_sklearn(momentum, nesterov):
    """scikit-learn itself, on the grids of test_sgd_optimizer_momentum and test_sgd_optimizer_nesterovs_momentum:
    parameters at zero, random velocities, learning rate 0.1.
    """
    rng = np.random.RandomState(0)
    arrays = [np.zeros(shape) for shape in SKLEARN_SHAPES]
    theirs = SGDOptimizer(arrays, 0.1, momentum=momentum, nesterov=nesterov)
    theirs.velocities = [rng.random_sample(shape) for shape in SKLEARN_SHAPES]
    ours = fm.Momentum(arrays, rule="classical", nesterov=nesterov, lr=0.1, momentum=momentum)
    for v, velocity in zip(ours.velocity, theirs.velocities, strict=True):
        v[...] = -velocity
    assert_walks_with_sklearn(theirs, ours, arrays, rng)


@pytest.mark.parametrize("nesterov", [False, True])
def test_a_schedule_has_the_bits_of_sklearn(nesterov):
    """scikit-learn itself, with its defaults (learning rate 0.1, momentum 0.9) and lr_schedule="invscaling"."""
    rng = np.random.RandomState(0)
    arrays = [rng.random_sample(shape) for shape in SKLEARN_SHAPES]
    theirs = SGDOptimizer(arrays, lr_schedule="invscaling", nesterov=nesterov)
    ours = fm.Momentum(
        arrays, rule="classical", nesterov=nesterov, lr=lambda t: 0.1 / (7 * t + 1) ** 0.5 if t else 0.1, momentum=0.9
    )
    assert_walks_with_sklearn(theirs, ours, arrays, rng, lambda step: theirs.iteration_ends(7 * (step + 1)))


# MXNet

# apache/mxnet, tests/python/unittest/test_optimizer.py (02a3331), test_sgd: the grid of options; test_nag of the forks
# named below has the same. What is not named is off: no momentum, no clipping, rescale_grad 1, wd 0. The learning rate
# is 0.01, the references' own.
MXNET_GRID = [
    {name: value for option in options for name, value in option.items()}
    for options in product(
        [{}, {"momentum": 0.9}],
        [{}, {"clip_gradient": 0.4}, {"clip_gradient": 0.5}],
        [{}, {"rescale_grad": 0.14}, {"rescale_grad": 0.8}],
        [{}, {"wd": 0.03}, {"wd": 0.05}, {"wd": 0.07}],
    )
]
MXNET_OFF = {"momentum": 0.0, "clip_gradient": None, "rescale_grad": 1.0, "wd": 0.0}


def named(options):
    return "-".join(f"{name}={value}" for name, value in options.items()) if isinstance(options, dict) else None


def clipped(cast, grad, clip_gradient):
    return grad if clip_gradient is None else np.clip(grad, cast(-clip_gradient), cast(clip_gradient))


def mxnet_sgd(cast, weight, grad, mom, *, momentum, clip_gradient, rescale_grad, wd):
    """apache/mxnet, python/mxnet/optimizer/sgd.py (4de4ef5), SGD.step."""
    grad = clipped(cast, grad * cast(rescale_grad), clip_gradient) + cast(wd) * weight
    mom = mom * cast(momentum) - cast(0.01) * grad
    return weight + mom, mom


def mxnet_nag(cast, weight, grad, mom, *, momentum, clip_gradient, rescale_grad, wd):
    """apache/mxnet, python/mxnet/optimizer/nag.py (4de4ef5), NAG.step."""
    grad = clipped(cast, grad * cast(rescale_grad), clip_gradient) + cast(wd) * weight
    mom = mom * cast(momentum) - cast(0.01) * grad
    return weight + (cast(momentum) * mom - cast(0.01) * grad), mom


def mxnet_pynag(cast, weight, grad, mom, *, momentum, clip_gradient, rescale_grad, wd):
    """D-Roberts/incubator-mxnet (a fork), tests/python/unittest/test_optimizer.py (5d69ce6), PyNAG.update."""
    grad = clipped(cast, grad * cast(rescale_grad), clip_gradient) + cast(wd) * weight
    mom = mom * cast(momentum) + grad
    return weight + -cast(0.01) * (grad + cast(momentum) * mom), mom


def mxnet_pynag_later(cast, weight, grad, mom, *, momentum, clip_gradient, rescale_grad, wd):
    """anirudhacharya/incubator-mxnet (a fork), the same file (384e8a8), PyNAG.update: decay in the momentum alone."""
    grad = clipped(cast, grad * cast(rescale_grad), clip_gradient)
    mom = mom * cast(momentum) + grad + cast(wd) * weight
    return weight - cast(0.01) * (grad + cast(momentum) * mom), mom


def mxnet_pysgd(cast, weight, grad, mom, *, momentum, clip_gradient, rescale_grad, wd):
    """apache/mxnet, tests/python/unittest/test_optimizer.py (02a3331), PySGD.update: scalars are joined in double."""
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


NAG_LATER = fm.Rule(nag_later, hyper=("lr", "momentum", "weight_decay"), name="nag_later")


def mxnet_walk(formula, rule, options, dtype):
    """Three steps by MXNet's formula and by the package: weights and momenta of the one, then of the other."""
    options = MXNET_OFF | options
    stages = [S.scale, *([] if options["clip_gradient"] is None else [S.clip_value])]
    chained = fm.chain(*stages, rule) if rule is NAG_LATER else fm.chain(*stages, S.weight_decay, rule)
    sign = -1 if str(rule).startswith("classical") else 1
    rng = np.random.default_rng(0)
    weight = rng.random((3, 4, 5)).astype(dtype)  # the published shape and distribution
    mom, p, v = np.zeros_like(weight), weight.copy(), np.zeros_like(weight)
    for _ in range(3):
        grad = rng.random(weight.shape).astype(dtype)
        weight, mom = formula(dtype, weight, grad, mom, **options)
        fm.step(
            p, v, grad, rule=chained, lr=0.01, momentum=options["momentum"], scale=options["rescale_grad"],
            clip_value=options["clip_gradient"], weight_decay=options["wd"],
        )  # fmt: skip
        yield weight, mom, p, sign * v


@pytest.mark.parametrize("options", MXNET_GRID, ids=named)
@pytest.mark.parametrize(
    ("formula", "rule"),
    [(mxnet_sgd, "classical"), (mxnet_nag, "classical_nesterov"), (mxnet_pynag, "pytorch_nesterov")],
)
def test_chains_have_the_bits_of_mxnet(formula, rule, options):
    for dtype in FLOATS:
        for weight, mom, p, v in mxnet_walk(formula, rule, options, dtype):
            assert_same_bits(p, weight)
            assert_same_bits(v, mom)


@pytest.mark.parametrize("options", [options for options in MXNET_GRID if "momentum" in options], ids=named)
def test_a_rule_of_the_users_own_has_the_bits_of_mxnet(options):
    for dtype in FLOATS:
        for weight, mom, p, v in mxnet_walk(mxnet_pynag_later, NAG_LATER, options, dtype):
            assert_same_bits(p, weight)
            assert_same_bits(v, mom)


@pytest.mark.parametrize("options", MXNET_GRID, ids=named)
def test_a_chain_agrees_with_mxnets_python_reference(options):
    """PySGD decays and scales in another order. Of a step's roundings those of the weight, below 1 (and of its product
    with 1 − lr·wd, where there is no momentum), cost half a unit of 1 at most; the others, of numbers 20 times smaller
    (the momentum stays below 0.05), are fewer than ten on either side, and stay in the momentum.
    """
    for dtype in FLOATS:
        for step, (weight, mom, p, v) in enumerate(mxnet_walk(mxnet_pysgd, "classical", options, dtype), 1):
            assert_within(p, weight, step)
            if mom is not None:
                assert_within(v, mom, 0.1 * step)


# Flax and optax


def test_pytorch_has_the_numbers_of_flax():
    """google/flax, tests/optim_test.py (0b1916b), MomentumTest.test_apply_gradient, equality asked for there too."""
    p, v = np.ones(1), np.array([1.0])
    fm.step(p, v, np.array([3.0]), lr=0.1, momentum=0.2)
    assert_same_bits(v, np.array([3.2]))
    assert_same_bits(p, np.array([1.0 - 0.32]))


def test_sgd_has_the_numbers_of_flax():
    """google/flax, tests/optim_test.py (0b1916b), GradientDescentTest.test_apply_gradient."""
    p = np.ones(1)
    fm.step(p, None, np.array([3.0]), rule="sgd", lr=0.1)
    assert_same_bits(p, np.array([0.7]))


def test_groups_have_the_numbers_of_flax():
    """google/flax, tests/optim_test.py (0b1916b), MultiOptimizerTest.test_multi_optimizer: a and b with learning rates
    1 and 10, then 2 for both.
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


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_pytorch_has_the_bits_of_optax_and_flax(momentum, nesterov, dtype):
    """google-deepmind/optax, optax/_src/equivalence_test.py (2459756), FlaxOptimizersEquivalenceTest: sgd, momentum and
    nesterov_momentum, 50 steps of learning rate 0.01 with constant gradients; the formulas of optax's trace
    (optax/transforms/_accumulation.py, 006cebd), which are those of google/flax, flax/optim/momentum.py (23ef065).
    """
    params, grads = typed(dtype, [1.0, 2.0], [3.0, 4.0]), typed(dtype, [500.0, 5.0], [300.0, 3.0])
    theirs = [(p.copy(), np.zeros_like(p)) for p in params]
    decay, lr = dtype(momentum), dtype(0.01)
    opt = fm.Momentum(params, lr=0.01, momentum=momentum, nesterov=nesterov)
    for _ in range(50):
        opt.step(grads)
        for i, ((p, trace), g) in enumerate(zip(theirs, grads, strict=True)):
            trace = g + decay * trace
            theirs[i] = p - lr * (g + decay * trace if nesterov else trace), trace
    for p, v, (param, trace) in zip(params, opt.velocity, theirs, strict=True):
        assert_same_bits(p, param)
        assert_same_bits(v, trace)


def test_pytorch_has_the_numbers_of_optax_sgd():
    """google-deepmind/optax, optax/_src/alias.py, the example in the docstring of sgd, all five printed values."""
    params = np.array([1.0, 2.0, 3.0], np.float32)
    opt = fm.Momentum(params, lr=0.003, momentum=0.0)
    printed = []
    for _ in range(5):
        opt.step(2 * params)
        printed.append(f"{np.sum(params**2):.2E}")
    assert printed == ["1.38E+01", "1.37E+01", "1.35E+01", "1.33E+01", "1.32E+01"]


@pytest.mark.parametrize("dtype", FLOATS)
def test_ema_has_the_numbers_of_optax(dtype):
    """google-deepmind/optax, optax/transforms/_accumulation_test.py (05a7425), test_ema and the state, not debiased, of
    test_ema_debias: values 5 and 7, decay 0.9.

    The published tolerances of 1e-4 and 1e-2 are not needed: two units, for two casts and three operations.
    """
    d = 0.9
    p, v = np.zeros((), dtype), np.zeros((), dtype)
    fm.step(p, v, np.array(5.0, dtype), rule="ema", lr=1.0, momentum=d)
    assert_within(v, (1 - d) * 5.0, 2)
    assert_within(-p, (1 - d) * 5.0, 2)
    fm.step(p, v, np.array(7.0, dtype), rule="ema", lr=1.0, momentum=d)
    assert_within(v, (1 - d) * (7.0 + d * 5.0), 2)
    assert_within(v, (1 - d) * 7.0 + d * (1 - d) * 5.0, 2)


# Paddle


def paddle_formula(cast, param, grad, velocity, lr, mu, nesterov, coeff):
    """PaddlePaddle/Paddle, test/legacy_test/test_momentum_op.py (08f23e3), calculate_momentum_by_numpy."""
    if coeff is not None:
        grad = grad + cast(coeff) * param
    velocity = cast(mu) * velocity + grad
    if not nesterov:
        return param - cast(lr) * velocity, velocity
    if coeff is not None:
        return param - (grad + velocity * cast(mu)) * cast(lr), velocity
    return param - grad * cast(lr) - velocity * cast(mu) * cast(lr), velocity


# Seeds and shapes of test/legacy_test/test_merged_momentum_op.py (e709f20) and, behind the first,
# test/xpu/test_merged_momentum_op_xpu.py (22c9c2c).
PADDLE_SHAPES = [
    (10, [(3, 4), (2, 7), (5, 6), (7, 8)]),
    (1, [(3, 4), (2, 7), (5, 6, 8)]),
    (10, [(3, 4), (2, 7), (5, 6, 8)]),
    (10, [(3, 4), (2, 7)]),
    (10, [(3, 4)]),
    (10, [(3, 4), (2, 7), (5, 6, 7), (9, 9), (10, 12)]),
]


@pytest.mark.parametrize("rescale_grad", [1.0, 0.01])
@pytest.mark.parametrize(("nesterov", "coeff"), [(False, None), (True, 2.0), (False, 2.0)])
@pytest.mark.parametrize(("seed", "shapes"), PADDLE_SHAPES)
def test_many_arrays_have_the_bits_of_single_ones_as_in_paddle(seed, shapes, nesterov, coeff, rescale_grad):
    """PaddlePaddle/Paddle, test/legacy_test/test_merged_momentum_op.py (e709f20), TestMergedMomentum (no decay) and
    TestMergedMomentum2 (l2_decay with coefficient 2.0): mu 0.9, the same random numbers and learning rate from the same
    seed, merged against single. Both have the bits of Paddle's formula besides, and go on for three steps.
    """
    rng = np.random.RandomState(seed)
    params, grads, velocities = ([rng.random_sample(s).astype(np.float32) for s in shapes] for _ in range(3))
    lr = float(rng.random_sample(1).astype(np.float32)[0])
    stages = [S.scale(rescale_grad)] if coeff is None else [S.scale(rescale_grad), S.weight_decay(coeff)]
    settings = {"rule": fm.chain(*stages, "pytorch"), "lr": lr, "momentum": 0.9, "nesterov": nesterov}
    merged = [p.copy() for p in params]
    single = [(p.copy(), v.copy()) for p, v in zip(params, velocities, strict=True)]
    opt = fm.Momentum(merged, **settings)
    for v, velocity in zip(opt.velocity, velocities, strict=True):
        v[...] = velocity
    for _ in range(3):
        opt.step(grads)
        for i, g in enumerate(grads):
            fm.step(*single[i], g, **settings)
            params[i], velocities[i] = paddle_formula(
                np.float32, params[i], np.float32(rescale_grad) * g, velocities[i], lr, 0.9, nesterov, coeff
            )
            for p, v in ((merged[i], opt.velocity[i]), single[i]):
                assert_same_bits(p, params[i])
                assert_same_bits(v, velocities[i])


@pytest.mark.parametrize("nesterov", [False, True])
def test_pytorch_agrees_with_paddle_at_its_settings(nesterov):
    """PaddlePaddle/Paddle, test/legacy_test/test_momentum_op.py (08f23e3), TestMomentumOp1 and, with nesterov,
    TestMomentumOp2: (123, 321) random numbers, velocity 0, learning rate 0.001, mu 0.0001.

    With nesterov, and no decay, Paddle subtracts twice, and so rounds a number near 1 once more: one unit.
    """
    rng = np.random.default_rng(9)
    p, g = (rng.random((123, 321)).astype(np.float32) for _ in range(2))
    v = np.zeros_like(p)
    param, velocity = paddle_formula(np.float32, p, g, v, 0.001, 0.0001, nesterov, None)
    fm.step(p, v, g, lr=0.001, momentum=0.0001, nesterov=nesterov)
    assert_within(p, param, 1 if nesterov else 0)
    assert_same_bits(v, velocity)


@pytest.mark.parametrize("nesterov", [False, True])
def test_pytorch_has_the_whole_numbers_of_paddle(nesterov):
    """PaddlePaddle/Paddle, test/legacy_test/test_momentum_op.py (08f23e3), TestSparseMomentumOp and
    TestSparseMomentumOp2: mu 1, learning rate 2, parameters 5, velocity 1, gradients in rows 0, 4 and 7.
    """
    p, v, g = np.full((10, 12), 5.0, np.float32), np.ones((10, 12), np.float32), np.zeros((10, 12), np.float32)
    g[[0, 4, 7]] = 1.0
    g[0, 0], g[7, 8] = 2.0, 4.0
    param, velocity = paddle_formula(np.float32, p, g, v, 2.0, 1.0, nesterov, None)
    fm.step(p, v, g, lr=2.0, momentum=1.0, nesterov=nesterov)
    assert_same_bits(v, velocity)
    assert_same_bits(p, param)
    assert p[7, 8] == (5 - 2 * (4 + 5) if nesterov else 5 - 2 * 5)


# dfdx

# coreylowman/dfdx, dfdx/src/nn/optim/sgd.rs (4281e57): the parameters, all 1 at first, after each of five steps with
# learning rate 0.01 and the constant gradients 0.1, 1, 2, 10 and 100, divided by 5 (the loss is a mean).
DFDX = {
    "test_sgd_no_momentum": [
        [0.9998, 0.998, 0.996, 0.98, 0.8],
        [0.99960005, 0.99600005, 0.992, 0.96000004, 0.6],
        [0.9994001, 0.9940001, 0.988, 0.94000006, 0.40000004],
        [0.9992001, 0.9920001, 0.98399997, 0.9200001, 0.20000005],
        [0.99900013, 0.9900001, 0.97999996, 0.9000001, 5.9604645e-8],
    ],
    "test_sgd_classic_momentum": [
        [0.9998, 0.998, 0.996, 0.98, 0.8],
        [0.99950004, 0.995, 0.99, 0.95000005, 0.5],
        [0.99915004, 0.9915, 0.983, 0.915, 0.15],
        [0.99877506, 0.98775, 0.9755, 0.8775, -0.225],
        [0.9983876, 0.983875, 0.96775, 0.83875, -0.61249995],
    ],
    "test_sgd_nesterov_momentum": [
        [0.9997, 0.997, 0.994, 0.97, 0.70000005],
        [0.99935, 0.9935, 0.987, 0.935, 0.35000005],
        [0.99897504, 0.98974997, 0.9795, 0.8975, -0.024999946],
        [0.99858755, 0.98587495, 0.97175, 0.85875, -0.41249993],
        [0.9981938, 0.98193747, 0.963875, 0.819375, -0.8062499],
    ],
    "test_sgd_weight_decay_no_momentum": [
        [0.9988, 0.997, 0.995, 0.979, 0.799],
        [0.99760115, 0.994003, 0.990005, 0.958021, 0.59820104],
        [0.9964036, 0.991009, 0.98501503, 0.937063, 0.39760286],
        [0.9952072, 0.988018, 0.98003, 0.9161259, 0.19720526],
        [0.994012, 0.98502994, 0.97505, 0.8952098, -0.00299193],
    ],
    "test_sgd_decoupled_weight_decay_classic_momentum": [
        [0.9988, 0.997, 0.995, 0.979, 0.799],
        [0.9975012, 0.993003, 0.988005, 0.948021, 0.498201],
        [0.9961537, 0.98851, 0.980017, 0.912073, 0.147703],
        [0.9947826, 0.983771, 0.971537, 0.873661, -0.227445],
        [0.9934003, 0.978913, 0.962815, 0.834037, -0.614717],
    ],
    "test_sgd_l2_weight_decay_classic_momentum": [
        [0.9988, 0.997, 0.995, 0.979, 0.799],
        [0.9970012, 0.992503, 0.987505, 0.947521, 0.49770102],
        [0.99490476, 0.987262, 0.97877, 0.91083395, 0.14655378],
        [0.99266165, 0.9816542, 0.9694238, 0.8715796, -0.22916639],
        [0.99034745, 0.9758687, 0.9597812, 0.83108085, -0.6167973],
    ],
}


def dfdx_walk(name, **settings):
    p = np.ones(5, np.float32)
    g = np.array([0.1, 1.0, 2.0, 10.0, 100.0], np.float32) * np.float32(0.2)
    opt = fm.Momentum(p, lr=1e-2, **settings)
    for row in np.array(DFDX[name], np.float32):
        opt.step(g)
        yield p, row


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("test_sgd_no_momentum", {"rule": "sgd"}),
        ("test_sgd_no_momentum", {"momentum": 0.0}),
        ("test_sgd_classic_momentum", {"momentum": 0.5}),
        ("test_sgd_nesterov_momentum", {"momentum": 0.5, "nesterov": True}),
        ("test_sgd_l2_weight_decay_classic_momentum", {"momentum": 0.5, "weight_decay": 0.1}),
    ],
)
def test_momentum_has_the_bits_of_dfdx(name, settings):
    for p, row in dfdx_walk(name, **settings):
        assert_same_bits(p, row)


@pytest.mark.parametrize(
    ("name", "settings", "printed", "units"),
    [
        ("test_sgd_weight_decay_no_momentum", {"rule": "sgd", "weight_decay": 0.1}, 5e-9, 0),
        ("test_sgd_weight_decay_no_momentum", {"rule": "sgd", "decoupled_weight_decay": 0.1}, 5e-9, 1),
        ("test_sgd_decoupled_weight_decay_classic_momentum", {"momentum": 0.5, "decoupled_weight_decay": 0.1}, 5e-7, 1),
    ],
)
def test_decays_agree_with_dfdx(name, settings, printed, units):
    """Half of the last decimal that is printed: the eighth in the first table (its −0.00299193 has fewer digits than
    single precision has at that size), the sixth in the second. Decoupled decay is rounded in another way: dfdx
    subtracts λ·lr·p together with the gradient, this package multiplies by 1 − lr·λ first, which on either side is one
    rounding a step of a number below 1 more than the other has, half a unit each.
    """
    for step, (p, row) in enumerate(dfdx_walk(name, **settings), 1):
        np.testing.assert_allclose(p, row, rtol=0, atol=printed + units * step * np.finfo(np.float32).eps)
