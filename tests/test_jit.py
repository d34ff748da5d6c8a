"""Rules inside compiled code: the bits of the formula, the speed's cause in the assembly, and what is refused."""

import ctypes
import inspect
import re
import shutil
import subprocess
import sys
import textwrap

import numba
import numpy as np
import oracles
import pytest
import scipy
from numba.core.errors import TypingError
from oracles import RULES, assert_same_bits
from scipy.ndimage import generic_filter1d

import fastmomentum as fm
from benchmarks.assembly import hottest

DTYPES = [np.float32, np.float64]
SIZES = [0, 1, 7, 8, 9, 101, 4099]
CHAIN = fm.chain(
    fm.stages.clip_value(0.5), fm.stages.weight_decay(0.1), "pytorch", fm.stages.decoupled_weight_decay(0.2)
)


def adaptive(p, v, s, g, lr, mu, beta, eps):
    v = mu * v + g
    s = beta * s + g * g
    return p - lr * v / (np.sqrt(s) + eps), v, s


ADAPTIVE = fm.Rule(
    adaptive, state=(("velocity", "zero"), ("square", "zero")), hyper=("lr", "momentum", "beta", "eps"), name="adaptive"
)
VALUES = {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "beta": 0.99, "eps": 1e-8}


def given(rule):
    return {name: VALUES[name] for name in rule.parameters if name in VALUES}


def arrays_of(rule, size, dtype, seed=0):
    """p, the state and g."""
    rng = np.random.default_rng(seed)
    slots = [np.abs(rng.standard_normal(size)) for _ in rule.state]
    return [np.asarray(x, dtype) for x in (rng.standard_normal(size), *slots, rng.standard_normal(size))]


def stepped(rule, arrays, steps=1):
    """The same arrays after steps of the reference, with one gradient."""
    p, *state, g = (array.copy() for array in arrays)
    for _ in range(steps):
        fm.step(
            p, tuple(state) if len(state) != 1 else state[0], g, rule=rule, backend="numpy", **{"lr": 0.1} | given(rule)
        )
    return [p, *state]


ALL = [*(fm.rules.find(name) for name in RULES), CHAIN, ADAPTIVE]
every_rule = pytest.mark.parametrize("rule", ALL, ids=lambda rule: str(rule.name or "chain"))
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


@pytest.mark.parametrize("name", RULES)
@every_dtype
def test_scalars_in_a_users_loop_have_the_bits_of_the_formula(name, dtype):
    rule, scalar = fm.rules.find(name), getattr(fm.jit, name)
    hyper = fm.jit.hyper(rule, dtype, **given(rule))
    p, *state, g = arrays_of(rule, 101, dtype)
    start = [p.copy(), *(slot.copy() for slot in state)]
    if rule.state:

        @numba.njit
        def loop(p, s, g, hyper):
            for i in range(p.size):
                p[i], s[i] = scalar(p[i], s[i], g[i], *hyper)

        loop(p, state[0], g, hyper)
    else:

        @numba.njit
        def loop(p, g, hyper):
            for i in range(p.size):
                (p[i],) = scalar(p[i], g[i], *hyper)

        loop(p, g, hyper)
    values = {"lr": 0.1, "momentum": 0.9} | ({"dampening": 0.3} if name == "pytorch" else {})
    expected = oracles.update(name, start[0], start[1] if state else None, g, dtype, **values)
    for found, wanted in zip([p, *state], expected):
        assert_same_bits(found, wanted)


def test_scalars_are_cast_to_the_dtype_of_the_parameter():
    pytorch = fm.jit.pytorch

    @numba.njit
    def one(p, v, g):
        return pytorch(p, v, g, 0.1, 0.9, 1)

    p, v = one(np.float32(1.3), np.float32(0.7), np.float64(0.3))
    f = np.float32
    assert_same_bits(
        np.array([p, v], f), np.array(oracles.update("pytorch", f(1.3), f(0.7), f(0.3), f, lr=0.1, momentum=0.9))
    )
    assert one.nopython_signatures[0].return_type == numba.types.UniTuple(numba.float32, 2)


@every_rule
@every_dtype
@pytest.mark.parametrize("size", SIZES)
def test_kernels_have_the_bits_of_step(rule, dtype, size):
    arrays, hyper = arrays_of(rule, size, dtype), fm.jit.hyper(rule, dtype, **given(rule))
    expected, kernel = stepped(rule, arrays, 3), fm.jit.kernel(rule)
    for _ in range(3):
        kernel(*arrays, *hyper)
    for found, wanted in zip(arrays, expected):
        assert_same_bits(found, wanted)


def test_kernels_are_called_from_compiled_code_and_cast_what_they_take():
    classical = fm.jit.kernel("classical")

    @numba.njit
    def descend(p, v, g, h, steps):
        for _ in range(steps):
            g[:] = h * p
            classical(p, v, g, 0.1, 0.5)

    p, v, h = (np.asarray(x, np.float32) for x in (np.ones(5), np.zeros(5), np.arange(1, 6)))
    q, w = p.copy(), v.copy()
    descend(p, v, np.empty(5, np.float32), h, 20)
    for _ in range(20):
        q, w = oracles.update("classical", q, w, h * q, np.float32, lr=0.1, momentum=0.5)
    assert_same_bits(p, q)
    assert_same_bits(v, w)


def test_a_division_by_zero_in_a_kernel_is_numpys():
    kernel, p = fm.jit.kernel(ADAPTIVE), np.ones(3)
    kernel(p, np.zeros(3), np.zeros(3), np.zeros(3), 0.1, 0.9, 0.9, 0.0)
    assert np.isnan(p).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_users_loop_is_that_of_a_loop_by_hand(dtype):
    pytorch = fm.jit.pytorch

    @numba.njit(error_model="numpy")
    def by_rule(p, v, g, lr, mu, keep):
        for i in range(p.size):
            p[i], v[i] = pytorch(p[i], v[i], g[i], lr, mu, keep)

    @numba.njit(error_model="numpy")
    def by_hand(p, v, g, lr, mu, keep):
        for i in range(p.size):
            v[i] = mu * v[i] + keep * g[i]
            p[i] = p[i] - lr * v[i]

    kind = numba.from_dtype(np.dtype(dtype))
    signature = (kind[::1],) * 3 + (kind,) * 3
    for function in (by_rule, by_hand):
        function.compile(signature)
    assembly = by_rule.inspect_asm(signature)
    symbol = re.search(r"^(_ZN(?!7cpython)\S*by_rule\S*):$", assembly, re.MULTILINE)[1]
    assert assembly.split(f"\n{symbol}:\n")[1].split(".cfi_endproc")[0].count("call") == 0
    loops = [hottest(function.inspect_asm(signature)) for function in (by_rule, by_hand)]
    assert loops[0] == loops[1]
    assert loops[0].arithmetic > 0


def test_a_call_would_be_seen():
    """Or the test above could not fail."""
    called = numba.njit(lambda x: np.exp(x))

    @numba.njit
    def by_call(x):
        for i in range(x.size):
            x[i] = called(x[i])

    by_call.compile((numba.float64[::1],))
    assert by_call.inspect_asm((numba.float64[::1],)).count("call") > 0


def test_hyper_parameters_are_derived_checked_and_cast():
    found = fm.jit.hyper("ema", np.float32, lr=0.1, momentum=0.999)
    assert_same_bits(np.array(found), np.array([0.1, 0.999, 1 - 0.999], np.float32))
    with pytest.raises(ValueError, match="momentum: expected a number in"):
        fm.jit.hyper("ema", np.float32, lr=0.1, momentum=1.5)
    with pytest.raises(TypeError, match="lr: rule 'sgd' needs this"):
        fm.jit.hyper("sgd")
    with pytest.raises(TypeError, match="dtype: expected float32 or float64; got 'int32'"):
        fm.jit.hyper("sgd", "int32", lr=0.1)


P, V, G = np.ones(4), np.zeros(4), np.ones(4)
HYPER = (0.1, 0.9, 1.0)


def misaligned():
    return np.zeros(33, np.uint8)[1:].view(np.float64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((P, V, G, 0.1, 0.9), "expected 6 arguments, p, velocity, g, lr, momentum, keep; got 5"),
        ((P, V, G.astype(np.float32), *HYPER), "g: expected float32 or float64, and one dtype for all"),
        ((P.astype(int), V, G, *HYPER), "p: expected float32 or float64"),
        ((np.ones(8)[::2], V, G, *HYPER), "p: expected a C-contiguous array, its dimensions 1"),
        ((np.ones((2, 2)), V, G, *HYPER), "p: expected a C-contiguous array, its dimensions 1"),
        ((P, 0.0, G, *HYPER), "velocity: expected a C-contiguous array"),
        ((P, V, G, None, 0.9, 1.0), "lr: expected a number; got none"),
        ((P, V, G, 0.1j, 0.9, 1.0), "lr: expected a number; got complex"),
    ],
)
def test_types_are_refused_while_the_caller_compiles(arguments, message):
    kernel = fm.jit.kernel("pytorch")
    with pytest.raises(TypingError, match=message):
        numba.njit(lambda given: kernel(*given))(arguments)
    with pytest.raises((TypeError, ValueError)):
        kernel(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((P, V, G, 0.1, 0.9), "expected 6 arguments, p, velocity, g, lr, momentum, keep; got 5"),
        ((P.astype(">f8"), V, G, *HYPER), "p: expected an array of float32 or float64; got float64 in another byte"),
        ((P, V, np.ma.array(G, mask=[1, 0, 0, 0]), *HYPER), "g: expected a plain array; got a masked one"),
        ((misaligned(), V, G, *HYPER), "p: expected an aligned array"),
        (([1.0], V, G, *HYPER), "p: expected a NumPy array"),
        ((P, V, G, np.nan, 0.9, 1.0), "lr: expected a number, -inf and inf included; got nan"),
        ((P, V, G, "0.1", 0.9, 1.0), "lr: expected a number"),
        ((P.reshape(2, 2), V.reshape(2, 2), G.reshape(2, 2), *HYPER), "p: expected 1 dimensions; got shape"),
    ],
)
def test_callers_in_python_have_the_checks_of_step(arguments, message):
    kernel = fm.jit.kernel("pytorch")
    kernel(P.copy(), V.copy(), G, *HYPER)  # once for these dtypes: what was compiled must not serve others
    with pytest.raises((TypeError, ValueError), match=message):
        kernel(*arguments)


def test_read_only_arrays_are_refused_where_they_are_written_to():
    kernel, locked = fm.jit.kernel("pytorch"), np.ones(4)
    locked.flags.writeable = False
    call = numba.njit(lambda p, v, g: kernel(p, v, g, 0.1, 0.9, 1.0))
    call(np.ones(4), np.zeros(4), locked)
    with pytest.raises(TypingError, match="p: expected a writeable array; got a read-only one"):
        call(locked, np.zeros(4), np.ones(4))
    with pytest.raises(ValueError, match="p: expected a writeable array; got a read-only one"):
        kernel(locked, np.zeros(4), np.ones(4), *HYPER)


def shared(first, second):
    memory = np.arange(12.0)
    return memory[first : first + 4], memory[second : second + 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.ones(5), np.zeros(4), np.ones(4)), "expected one shape"),
        ((np.ones(4), np.zeros(4), np.ones(3)), "expected one shape"),
        ((*shared(0, 2), np.ones(4)), "share memory with no other"),
        ((shared(0, 0)[0], *shared(3, 0)), "share memory with no other"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_written(arguments, message):
    kernel = fm.jit.kernel("pytorch")
    before, counts = [array.copy() for array in arguments], [sys.getrefcount(array) for array in arguments]
    call = numba.njit(lambda p, v, g: kernel(p, v, g, 0.1, 0.9, 1.0))
    for _ in range(20):
        with pytest.raises(ValueError, match="expected"):
            kernel(*arguments, *HYPER)
    for array, count in zip(arguments, counts):
        assert sys.getrefcount(array) <= count + 1  # the last traceback holds one; each refusal held one, once
    # Where an exception passes through a compiled caller, Numba itself keeps a reference to what that was given.
    with pytest.raises(ValueError, match=message):
        call(*arguments)
    for array, was in zip(arguments, before):
        np.testing.assert_array_equal(array, was)


def test_a_gradient_that_is_the_parameter_is_refused():
    p = np.ones(4)
    with pytest.raises(ValueError, match="share memory"):
        fm.jit.kernel("pytorch")(p, np.zeros(4), p, *HYPER)


@pytest.mark.parametrize("make", [fm.jit.kernel, lambda rule: fm.jit.fuse(lambda p, g: g, rule).step])
def test_a_caller_with_fastmath_changes_no_bits(make):
    rule = fm.rules.Rule(lambda p, v, g, a, b: (p - a * (b * v + g) * b, b * v + a * g), hyper=("a", "b"))
    kernel = make(rule)
    call = numba.njit(fastmath=True)(lambda p, v, g: kernel(p, v, g, 0.1, 0.9))
    p, v, g = arrays_of(rule, 1001, np.float64)
    expected = rule.update(p, v, g, 0.1, 0.9)
    call(p, v, g)
    assert_same_bits(p, expected[0])
    assert_same_bits(v, expected[1])


@pytest.mark.parametrize("arguments", [(1.0, 0.0, 1.0, 0.1, 0.9), (1.0, 0.0, 1.0, 0.1, 0.9, 1.0, 2.0)])
def test_scalars_take_their_arguments_and_no_others(arguments):
    pytorch = fm.jit.pytorch
    with pytest.raises(TypeError, match="expected 6 arguments, p, velocity, g, lr, momentum, keep"):
        pytorch(*arguments)
    with pytest.raises(TypingError, match="expected 6 arguments, p, velocity, g, lr, momentum, keep"):
        numba.njit(lambda given: pytorch(*given))(arguments)


def test_a_whole_number_is_no_parameter():
    pytorch = fm.jit.pytorch
    with pytest.raises(TypingError, match="p: expected float32 or float64; got"):
        numba.njit(lambda p: pytorch(p, 0.0, 1.0, 0.1, 0.9, 1.0))(1)


@every_rule
@every_dtype
def test_c_functions_have_the_bits_of_step(rule, dtype):
    arrays, made = arrays_of(rule, 101, dtype), fm.jit.cfunc(rule, dtype)
    expected, hyper = stepped(rule, arrays), np.array(fm.jit.hyper(rule, **given(rule)))
    addresses = (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))
    made.ctypes(101, addresses, hyper.ctypes.data_as(ctypes.POINTER(ctypes.c_double)))
    for found, wanted in zip(arrays, expected):
        assert_same_bits(found, wanted)


LIBRARY = """
#include <stdint.h>
typedef void (*update_t)(int64_t n, float **arrays, const double *hyper);
/* Descend on h p^2 / 2, as a solver written in C would. */
void descend(update_t update, int64_t n, int64_t steps, float *p, float *v, float *g, const float *h) {
    float *arrays[3] = {p, v, g};
    const double hyper[3] = {0.1, 0.9, 1.0};
    for (int64_t step = 0; step < steps; ++step) {
        for (int64_t i = 0; i < n; ++i) g[i] = h[i] * p[i];
        update(n, arrays, hyper);
    }
}
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler on this system")
def test_a_solver_in_c_calls_it(tmp_path):
    source, library = tmp_path / "solver.c", tmp_path / "solver.so"
    source.write_text(LIBRARY)
    subprocess.run(["cc", "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-o", library, source], check=True)
    update = fm.jit.cfunc("pytorch", np.float32)
    assert update.prototype == (
        "void update(int64_t n, float *arrays[3] /* p, velocity, g */, const double hyper[3] /* lr, momentum, keep */)"
    )
    p, v, g, h = arrays_of(ADAPTIVE, 1001, np.float32)
    expected = p.copy(), v.copy()
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (p, v, g, h)]
    descend = ctypes.CDLL(str(library)).descend
    descend(ctypes.c_void_p(update.address), ctypes.c_int64(1001), ctypes.c_int64(20), *pointers)
    for _ in range(20):
        expected = oracles.update("pytorch", *expected, h * expected[0], np.float32, lr=0.1, momentum=0.9)
    assert_same_bits(p, expected[0])
    assert_same_bits(v, expected[1])


def test_a_c_function_runs_in_threads_of_its_own_without_pythons_lock():
    code = """
        import ctypes, threading, numpy as np, fastmomentum as fm
        update = fm.jit.cfunc("sgd", np.float64)
        p, g, lr = np.zeros((4, 1000)), np.ones(1000), np.array([0.5])
        def work(row):
            arrays = (ctypes.c_void_p * 2)(row.ctypes.data, g.ctypes.data)
            for _ in range(100):
                update.ctypes(1000, arrays, lr.ctypes.data_as(ctypes.POINTER(ctypes.c_double)))
        threads = [threading.Thread(target=work, args=(row,)) for row in p]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert (p == -50.0).all()
        """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_low_level_callable_smooths_along_an_axis():
    """The velocity of `ema`, fed with a signal as gradients, is SciPy's recursive filter."""
    ema, beta = fm.jit.ema, 0.875
    arguments = (numba.types.CPointer(numba.float64), numba.intp, numba.types.CPointer(numba.float64), numba.intp)

    @numba.cfunc(numba.intc(*arguments, numba.types.voidptr))
    def smooth(line, length, out, count, data):
        seen, smoothed = numba.carray(line, length), numba.carray(out, count)
        velocity = 0.0
        for i in range(count):
            _, velocity = ema(0.0, velocity, seen[i], 0.0, beta, 1.0 - beta)
            smoothed[i] = velocity
        return 1

    signal = np.random.default_rng(0).standard_normal((5, 200))
    found = generic_filter1d(signal, scipy.LowLevelCallable(smooth.ctypes), 1, axis=1)
    expected = scipy.signal.lfilter([1 - beta], [1, -beta], signal, axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-15)


def slope(p, h, b):
    return 2.0 * h * p - b


@every_rule
@every_dtype
@pytest.mark.parametrize("size", [0, 1, 9, 101, 16_384, 40_001])
def test_fused_steps_have_the_bits_of_gradient_then_step(rule, dtype, size):
    p, *state, h = arrays_of(rule, size, dtype)
    b, hyper = np.random.default_rng(1).standard_normal(size).astype(dtype), fm.jit.hyper(rule, dtype, **given(rule))
    once, many = [x.copy() for x in (p, *state)], [x.copy() for x in (p, *state)]
    fused = fm.jit.fuse(slope, rule)
    for _ in range(5):
        g = (2.0 * h.astype(np.float64) * p - b).astype(dtype)
        fm.step(
            p, tuple(state) if len(state) != 1 else state[0], g, rule=rule, backend="numpy", **{"lr": 0.1} | given(rule)
        )
        fused.step(*once, h, b, *hyper)
    fused.run(5, *many, h, b, *hyper)
    for wanted, one, other in zip((p, *state), once, many):
        assert_same_bits(one, wanted)
        assert_same_bits(other, wanted)


def one(p):
    return p * 0.0 + 1.0


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 8])
def test_a_run_takes_as_many_steps_as_it_is_told(steps):
    fused, p = fm.jit.fuse(one, "sgd"), np.zeros(20_000)
    fused.run(steps, p, 0.25)
    np.testing.assert_array_equal(p, -0.25 * steps)


def test_fused_functions_are_called_from_compiled_code():
    step, run = fm.jit.fuse(numba.njit(lambda p, h: h * p), "classical")

    @numba.njit
    def both(p, v, h):
        step(p, v, h, 0.1, 0.5)
        run(9, p, v, h, 0.1, 0.5)

    p, v, h = np.ones(3), np.zeros(3), np.array([1.0, 2.0, 3.0])
    both(p, v, h)
    q, w = np.ones(3), np.zeros(3)
    for _ in range(10):
        q, w = oracles.update("classical", q, w, h * q, float, lr=0.1, momentum=0.5)
    assert_same_bits(p, q)


@pytest.mark.parametrize("steps", [-1, 2.5, None, True, "3"])
def test_a_number_of_steps_that_is_none_is_refused(steps):
    run, p = fm.jit.fuse(lambda p: p, "sgd").run, np.ones(3)
    with pytest.raises((TypeError, ValueError), match="steps: expected a whole number"):
        run(steps, p, 0.25)
    with pytest.raises((TypingError, ValueError), match="steps: expected a whole number"):
        numba.njit(lambda steps, p: run(steps, p, 0.25))(steps, p)
    np.testing.assert_array_equal(p, np.ones(3))


def test_a_gradient_that_divides_by_zero_is_numpys():
    inverse = numba.njit(lambda p, h: p / h)
    with pytest.raises(ZeroDivisionError):
        inverse(1.0, 0.0)
    p = np.ones(3)
    fm.jit.fuse(inverse, "sgd").step(p, np.array([1.0, 0.0, 2.0]), 0.5)
    np.testing.assert_array_equal(p, [0.5, -np.inf, 0.75])


def test_a_gradient_that_is_no_number_is_refused():
    with pytest.raises(TypingError, match="expected a number; got"):
        fm.jit.fuse(lambda p: (p, p), "sgd").step(np.ones(3), 0.5)


def test_the_same_gradient_and_rule_are_compiled_once():
    assert fm.jit.fuse(slope, "sgd") == fm.jit.fuse(slope, "sgd")
    assert fm.jit.fuse(slope, "sgd") != fm.jit.fuse(slope, "heavy_ball")


@pytest.mark.parametrize(
    ("grad", "message"),
    [
        (3, "grad: expected a plain function, or one compiled by Numba; got 3"),
        (np.sin, "grad: expected a plain function"),
        (lambda p, h=2.0: p, "grad: expected arguments of a fixed number, one at least, without defaults"),
        (lambda: 0, "grad: expected arguments of a fixed number"),
        (lambda p, *data: p, "grad: expected arguments of a fixed number"),
    ],
)
def test_what_is_no_gradient_of_a_coordinate_is_refused(grad, message):
    with pytest.raises(TypeError, match=message):
        fm.jit.fuse(grad, "sgd")


FIVE = [(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)]
STENCILS = {
    1: ([(0,), (-1,), (2,)], lambda c, left, right, f: c + c - left - right - f),
    2: (FIVE, lambda c, n, s, w, e, f: c + c + c + c - n - s - w - e - f),
    3: ([(0, 0, 0), (-1, 0, 0), (0, 1, 0), (0, 0, -1)], lambda c, a, b, d, f: c + c + c - a - b - d - f),
}


@pytest.mark.parametrize("axes", STENCILS)
@pytest.mark.parametrize("rule", ["pytorch", "heavy_ball", "sgd"])
@every_dtype
@pytest.mark.parametrize("length", [3, 9, 20])
def test_stencils_have_the_bits_of_shifted_arrays(axes, rule, dtype, length):
    offsets, grad = STENCILS[axes]
    rng = np.random.default_rng(0)
    old, f = (rng.standard_normal((length, 7, 11)[-axes:] if axes > 1 else length).astype(dtype) for _ in range(2))
    halos = [max(abs(x) for x in axis) for axis in zip(*offsets)]
    inner = tuple(slice(halo, length - halo) for halo, length in zip(halos, old.shape))
    new, p, state = old.copy(), old.copy(), oracles.rest(rule, old)
    s, hyper = (
        state.copy(),
        fm.jit.hyper(rule, dtype, **given(fm.rules.find(rule)) | ({"dampening": 0.0} if rule == "pytorch" else {})),
    )
    step = fm.jit.fuse_stencil(grad, rule, offsets)
    for _ in range(4):
        step(new, *([state] if rule != "sgd" else []), old, f, *hyper)
        old, new = new, old
        shifted = [np.roll(p, [-x for x in offset], range(axes))[inner] for offset in offsets]
        g = grad(*shifted, f[inner])
        p = p.copy()
        p[inner], s[inner] = oracles.update(rule, p[inner].copy(), s[inner], g, dtype, lr=0.1, momentum=0.9)
        assert_same_bits(old, p)
    assert_same_bits(state, np.zeros_like(state) if rule == "sgd" else s)


def test_a_grid_smaller_than_the_stencil_is_left_alone():
    step = fm.jit.fuse_stencil(STENCILS[1][1], "sgd", STENCILS[1][0])
    for size in range(5):
        new, old = np.full(size, 7.0), np.ones(size)
        step(new, old, np.ones(size), 0.1)
        np.testing.assert_array_equal(new, np.full(size, 7.0))


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([], "offsets: expected one shift for each axis"),
        ([(0,), (0, 1)], "offsets: expected one shift for each axis"),
        ([-1, 0, 1], "offsets: expected a tuple for each neighbour"),
        ([(0.5,)], "offsets: expected a whole number"),
        ([(0,)] * 9, "grad: expected an argument for each of 9 offsets"),
    ],
)
def test_offsets_that_make_no_stencil_are_refused(offsets, message):
    with pytest.raises((TypeError, ValueError), match=message):
        fm.jit.fuse_stencil(lambda c, f: c, "sgd", offsets)


def test_every_rule_has_its_name_and_nothing_else_has():
    assert set(RULES) < set(dir(fm.jit))
    assert fm.jit.pytorch is fm.jit.update("pytorch")
    with pytest.raises(AttributeError, match="there is no rule of that name"):
        fm.jit.no_such  # noqa: B018
    with pytest.raises(ValueError, match="rule must be one of"):
        fm.jit.kernel("no_such")
    assert str(inspect.signature(fm.jit.pytorch)) == "(p, velocity, g, lr, momentum, keep, /)"


def test_rules_with_other_names_have_messages_of_their_own():
    for slot in ("first", "second"):
        rule = fm.Rule(lambda p, v, g, a: (p - a * g, v), state=((slot, "zero"),), hyper=("a",))
        with pytest.raises(TypeError, match=f"expected 4 arguments, p, {slot}, g, a"):
            fm.jit.kernel(rule)(1)
