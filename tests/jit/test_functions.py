"""Rules inside compiled code: the bits of the formula, the instructions, and refused arguments."""

import ctypes
import inspect
import re
import shutil
import subprocess
import sys

import numba
import numpy as np
import pytest
import scipy
from numba.core.errors import TypingError
from scipy.ndimage import generic_filter1d

import fastmomentum as fm
from benchmarks.assembly import hot_loop
from tests.helpers import reference
from tests.helpers.arrays import gradients, misaligned, read_only
from tests.helpers.jit import every_dtype, every_rule, given, rule_arrays, stepped
from tests.helpers.processes import run_python
from tests.helpers.reference import DTYPES, RULES, assert_all_same_bits, assert_same_bits
from tests.helpers.rules import ADAPTIVE

SIZES = [0, 1, 7, 8, 9, 101, 4099]


@pytest.mark.parametrize("name", RULES)
@every_dtype
def test_scalars_in_a_users_loop_have_the_bits_of_the_formula(name, dtype):
    rule, scalar = fm.rules.find(name), getattr(fm.jit, name)
    hyper = fm.jit.hyper(rule, dtype, **given(rule))
    p, *state, g = rule_arrays(rule, 101, dtype)
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
    expected = reference.update(name, start[0], start[1] if state else None, g, dtype, **values)
    assert_all_same_bits([p, *state], expected[: 1 + len(state)])


def test_scalars_are_cast_to_the_dtype_of_the_parameter():
    pytorch = fm.jit.pytorch

    @numba.njit
    def one(p, v, g):
        return pytorch(p, v, g, 0.1, 0.9, 1)

    p, v = one(np.float32(1.3), np.float32(0.7), np.float64(0.3))
    f = np.float32
    assert_same_bits(
        np.array([p, v], f), np.array(reference.update("pytorch", f(1.3), f(0.7), f(0.3), f, lr=0.1, momentum=0.9))
    )
    assert one.nopython_signatures[0].return_type == numba.types.UniTuple(numba.float32, 2)


@every_rule
@every_dtype
def test_kernels_have_the_bits_of_step(rule, dtype):
    kernel, hyper = fm.jit.kernel(rule), fm.jit.hyper(rule, dtype, **given(rule))
    for size in SIZES:
        arrays = rule_arrays(rule, size, dtype)
        expected = stepped(rule, arrays, 3)
        for _ in range(3):
            kernel(*arrays, *hyper)
        assert_all_same_bits(arrays[:-1], expected)


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
        q, w = reference.update("classical", q, w, h * q, np.float32, lr=0.1, momentum=0.5)
    assert_same_bits(p, q)
    assert_same_bits(v, w)


def test_a_division_by_zero_in_a_kernel_is_numpys():
    kernel, p = fm.jit.kernel(ADAPTIVE), np.ones(3)
    kernel(p, np.zeros(3), np.zeros(3), np.zeros(3), 0.1, 0.9, 0.9, 0.0)
    assert np.isnan(p).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_users_loop_has_the_instructions_of_a_loop_by_hand(dtype):
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
    loops = [hot_loop(function.inspect_asm(signature)) for function in (by_rule, by_hand)]
    assert loops[0] == loops[1]
    assert loops[0].arithmetic > 0


def test_calls_are_detected_by_these_tests():
    """Check that the count of the test above sees calls."""
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
    with pytest.raises(TypeError, match="lr: expected a finite number >= 0, as rule 'sgd' needs this"):
        fm.jit.hyper("sgd")
    with pytest.raises(TypeError, match="dtype: expected float32 or float64; got 'int32'"):
        fm.jit.hyper("sgd", "int32", lr=0.1)


P, V, G = np.ones(4), np.zeros(4), np.ones(4)
HYPER = (0.1, 0.9, 1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((P, V, G, 0.1, 0.9), "expected 6 arguments, p, velocity, g, lr, momentum, keep; got 5"),
        ((P, V, G.astype(np.float32), *HYPER), "g: expected float32 or float64, and one dtype for all"),
        ((P.astype(int), V, G, *HYPER), "p: expected float32 or float64"),
        ((np.ones(8)[::2], V, G, *HYPER), "p: expected a C-contiguous array of dimension 1"),
        ((np.ones((2, 2)), V, G, *HYPER), "p: expected a C-contiguous array of dimension 1"),
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
        ((misaligned(P), V, G, *HYPER), "p: expected an aligned array"),
        (([1.0], V, G, *HYPER), "p: expected a NumPy array"),
        ((P, V, G, np.nan, 0.9, 1.0), "lr: expected a number, -inf and inf included; got nan"),
        ((P, V, G, "0.1", 0.9, 1.0), "lr: expected a number"),
        ((P.reshape(2, 2), V.reshape(2, 2), G.reshape(2, 2), *HYPER), "p: expected an array of dimension 1; got shape"),
    ],
)
def test_kernels_called_from_python_have_the_checks_of_step(arguments, message):
    kernel = fm.jit.kernel("pytorch")
    kernel(P.copy(), V.copy(), G, *HYPER)  # compiles for these dtypes, which must not be used for others
    with pytest.raises((TypeError, ValueError), match=message):
        kernel(*arguments)


def test_read_only_arrays_are_refused_where_they_are_written_to():
    kernel, locked = fm.jit.kernel("pytorch"), read_only(np.ones(4))
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
def test_kernels_refuse_shapes_that_differ_and_shared_memory(arguments, message):
    kernel = fm.jit.kernel("pytorch")
    before, counts = [array.copy() for array in arguments], [sys.getrefcount(array) for array in arguments]
    call = numba.njit(lambda p, v, g: kernel(p, v, g, 0.1, 0.9, 1.0))
    for _ in range(20):
        with pytest.raises(ValueError, match="expected"):
            kernel(*arguments, *HYPER)
    for array, count in zip(arguments, counts):
        assert sys.getrefcount(array) <= count + 1  # the last traceback holds one reference
    # Where an exception passes through a compiled caller, Numba itself keeps a reference to what that was given.
    with pytest.raises(ValueError, match=message):
        call(*arguments)
    for array, was in zip(arguments, before):
        np.testing.assert_array_equal(array, was)


def test_kernels_refuse_a_gradient_that_is_the_parameter():
    p = np.ones(4)
    with pytest.raises(ValueError, match="share memory"):
        fm.jit.kernel("pytorch")(p, np.zeros(4), p, *HYPER)


@pytest.mark.parametrize("make", [fm.jit.kernel, lambda rule: fm.jit.fuse(lambda p, g: g, rule).step])
def test_a_caller_with_fastmath_changes_no_bits(make):
    rule = fm.Rule(lambda p, v, g, a, b: (p - a * (b * v + g) * b, b * v + a * g), hyper=("a", "b"))
    kernel = make(rule)
    call = numba.njit(fastmath=True)(lambda p, v, g: kernel(p, v, g, 0.1, 0.9))
    p, v, g = rule_arrays(rule, 1001, np.float64)
    expected = rule.update(p, v, g, 0.1, 0.9)
    call(p, v, g)
    assert_same_bits(p, expected[0])
    assert_same_bits(v, expected[1])


@pytest.mark.parametrize("arguments", [(1.0, 0.0, 1.0, 0.1, 0.9), (1.0, 0.0, 1.0, 0.1, 0.9, 1.0, 2.0)])
def test_scalars_refuse_a_wrong_number_of_arguments(arguments):
    pytorch = fm.jit.pytorch
    with pytest.raises(TypeError, match="expected 6 arguments, p, velocity, g, lr, momentum, keep"):
        pytorch(*arguments)
    with pytest.raises(TypingError, match="expected 6 arguments, p, velocity, g, lr, momentum, keep"):
        numba.njit(lambda given: pytorch(*given))(arguments)


def test_scalars_refuse_an_integer_parameter():
    pytorch = fm.jit.pytorch
    with pytest.raises(TypingError, match="p: expected float32 or float64; got"):
        numba.njit(lambda p: pytorch(p, 0.0, 1.0, 0.1, 0.9, 1.0))(1)


@pytest.mark.sampled(2)
@every_rule
@every_dtype
def test_c_functions_have_the_bits_of_step(rule, dtype):
    arrays, made = rule_arrays(rule, 101, dtype), fm.jit.cfunc(rule, dtype)
    expected, hyper = stepped(rule, arrays), np.array(fm.jit.hyper(rule, **given(rule)))
    addresses = (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))
    made.ctypes(101, addresses, hyper.ctypes.data_as(ctypes.POINTER(ctypes.c_double)))
    assert_all_same_bits(arrays[:-1], expected)


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
def test_c_functions_can_be_called_from_c(tmp_path):
    source, library = tmp_path / "solver.c", tmp_path / "solver.so"
    source.write_text(LIBRARY)
    subprocess.run(["cc", "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-o", library, source], check=True)
    update = fm.jit.cfunc("pytorch", np.float32)
    assert update.prototype == (
        "void update(int64_t n, float *arrays[3] /* p, velocity, g */, const double hyper[3] /* lr, momentum, keep */)"
    )
    p, v, g, h = rule_arrays(ADAPTIVE, 1001, np.float32)
    expected = p.copy(), v.copy()
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (p, v, g, h)]
    descend = ctypes.CDLL(str(library)).descend
    descend(ctypes.c_void_p(update.address), ctypes.c_int64(1001), ctypes.c_int64(20), *pointers)
    for _ in range(20):
        expected = reference.update("pytorch", *expected, h * expected[0], np.float32, lr=0.1, momentum=0.9)
    assert_same_bits(p, expected[0])
    assert_same_bits(v, expected[1])


def test_c_functions_run_in_threads_without_the_gil():
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
    run_python(code)


def test_scalars_serve_in_a_low_level_callable_of_scipy():
    """Check `ema` against SciPy's recursive filter, with the signal as gradients."""
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

    signal = gradients(200, 5)
    found = generic_filter1d(signal, scipy.LowLevelCallable(smooth.ctypes), 1, axis=1)
    expected = scipy.signal.lfilter([1 - beta], [1, -beta], signal, axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-15)


def test_jit_has_a_name_for_every_rule():
    assert set(RULES) < set(dir(fm.jit))
    assert fm.jit.pytorch is fm.jit.update("pytorch")
    with pytest.raises(AttributeError, match="there is no rule of that name"):
        fm.jit.no_such  # noqa: B018
    with pytest.raises(ValueError, match="rule must be one of"):
        fm.jit.kernel("no_such")
    assert str(inspect.signature(fm.jit.pytorch)) == "(p, velocity, g, lr, momentum, keep, /)"


def test_messages_name_the_slots_of_the_rule():
    for slot in ("first", "second"):
        rule = fm.Rule(lambda p, v, g, a: (p - a * g, v), state=((slot, "zero"),), hyper=("a",))
        with pytest.raises(TypeError, match=f"expected 4 arguments, p, {slot}, g, a"):
            fm.jit.kernel(rule)(1)
