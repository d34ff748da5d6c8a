"""The package while NUMBA_DISABLE_JIT switches Numba's compiler off, as debuggers need it."""

import ctypes
import pickle

import numpy as np
import pytest

import fastmomentum as fm
from tests.helpers.jit import CHAIN, given, rule_arrays, stepped
from tests.helpers.processes import run_python
from tests.helpers.reference import DTYPES, assert_all_same_bits, assert_same_bits
from tests.helpers.rules import ADAPTIVE

RULES = (*map(fm.rules.find, ("sgd", "pytorch", "heavy_ball")), CHAIN, ADAPTIVE)
"""Rules of no state array, one and two, a chain, and a rule that divides."""

SIZE = 7
STAR = [(0, 0), (0, -1), (0, 1), (-1, 0), (1, 0)]


def slope(p, h):
    return h * p - h


def star(here, left, right, up, down, h):
    return here + here + here + here - left - right - up - down - h


def check_scalars(rule, arrays, hyper, dtype):
    expected, scalar = stepped(rule, arrays), fm.jit.update(rule)
    *written, g = arrays
    for i in range(SIZE):
        values = scalar(*(array[i] for array in written), g[i], *map(float, hyper))
        for array, value in zip(written, values, strict=True):
            assert value.dtype == dtype
            array[i] = value
    assert_all_same_bits(written, expected)


def check_kernel(rule, arrays, hyper, dtype):
    expected = stepped(rule, arrays, 2)
    for _ in range(2):
        fm.jit.kernel(rule)(*arrays, *hyper)
    assert_all_same_bits(arrays[:-1], expected)


def check_c_function(rule, arrays, hyper, dtype):
    expected, function = stepped(rule, arrays, 2), fm.jit.cfunc(rule, dtype)
    addresses = (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))
    numbers = (ctypes.c_double * len(hyper))(*hyper)
    function.ctypes(0, addresses, numbers)
    for call in (function.ctypes, type(function.ctypes)(function.address)):
        call(SIZE, addresses, numbers)
    assert_all_same_bits(arrays[:-1], expected)


def check_fused(rule, arrays, hyper, dtype):
    *expected, h = [array.copy() for array in arrays]
    with np.errstate(all="ignore"):
        for _ in range(4):
            expected = stepped(rule, [*expected, slope(expected[0], h)])
    kernels = fm.jit.fuse(slope, rule)
    kernels.step(*arrays, *hyper)
    kernels.run(3, *arrays, *hyper)
    assert_all_same_bits(arrays[:-1], expected)


def check_stencil(rule, arrays, hyper, dtype):
    new, *state, h = (np.resize(array, (5, 6)) for array in arrays)
    old = new[::-1].copy()
    inner = (slice(1, -1), slice(1, -1))
    neighbours = [old[1 + y : 4 + y, 1 + x : 5 + x] for y, x in STAR]
    given_arrays = [old[inner], *(slot[inner] for slot in state), star(*neighbours, h[inner])]
    expected = stepped(rule, [np.ascontiguousarray(array).reshape(-1) for array in given_arrays])
    edge = new[0].copy()
    fm.jit.fuse_stencil(star, rule, STAR)(new, *state, old, h, *hyper)
    assert_all_same_bits([array[inner].reshape(-1) for array in (new, *state)], expected)
    assert_same_bits(new[0], edge)


def check_optimizer(rule, arrays, hyper, dtype):
    p, *_, g = arrays
    found = []
    for backend in (None, "numpy"):
        params = [p.copy()]
        settings = {"lr": 0.1, "max_norm": 0.5, "skip_nonfinite": True, "threads": 2} | given(rule)
        opt = fm.Optimizer(params, rule, backend=backend, **settings)
        for grad in (g, g * np.nan, g):
            opt.step([grad])
        found.append(params)
    assert_all_same_bits(*found)


CHECKS = (check_scalars, check_kernel, check_c_function, check_fused, check_stencil, check_optimizer)


def check_bits():
    """Check every function that others call from compiled code against the NumPy backend."""
    for dtype in DTYPES:
        for rule in RULES:
            for check in CHECKS:
                arrays = rule_arrays(rule, SIZE, dtype)
                if rule is ADAPTIVE:
                    arrays[-1][:2] = 0.0
                hyper = fm.jit.hyper(rule, dtype, **given(rule))
                check(rule, arrays, hyper, dtype)


def check_refusals():
    """Check that kernels refuse arrays before they write any."""
    one, base = np.ones(4), np.ones(6)
    for kernel in (fm.jit.kernel("pytorch"), *fm.jit.fuse(lambda p, h: h, "pytorch")):
        steps = (1,) * ("steps" in kernel.__signature__.parameters)
        for arrays, words in (
            ((one, np.ones(3), one.copy()), "velocity: expected shape (4,)"),
            ((base[:4], base[2:], one), "arrays: expected each written array to share memory with no other"),
            ((base[:4], one, base[2:]), "arrays: expected each written array to share memory with no other"),
            ((one[::2], np.ones(2), np.ones(2)), "p: expected a C-contiguous array"),
            ((np.ones((2, 2)), np.ones((2, 2)), np.ones((2, 2))), "p: expected an array of dimension 1"),
            ((one, one.astype(np.float32), one.copy()), "velocity: expected float64"),
        ):
            with pytest.raises((TypeError, ValueError)) as refused:
                kernel(*steps, *arrays, 0.1, 0.9, 1.0)
            assert str(refused.value).startswith(words), refused.value
            assert (base == 1).all()
            assert (one == 1).all()


def test_every_entry_point_works_with_the_same_bits_and_every_example_runs():
    code = """
        import doctest, importlib, pkgutil, warnings
        import fastmomentum as fm
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "the variable NUMBA_DISABLE_JIT")
        from tests.test_without_jit import check_bits, check_refusals
        check_bits()
        check_refusals()
        tried = 0
        for module in pkgutil.walk_packages(fm.__path__, "fastmomentum."):
            if not module.name.endswith("__main__"):
                done = doctest.testmod(importlib.import_module(module.name), optionflags=doctest.NORMALIZE_WHITESPACE)
                assert not done.failed, module.name
                tried += done.attempted
        print(tried)
        """
    assert int(run_python(code, NUMBA_DISABLE_JIT="1").splitlines()[-1]) > 400


def test_updates_run_on_the_reference_with_one_warning(tmp_path):
    (tmp_path / "compiled.pickle").write_bytes(pickle.dumps(fm.Momentum(np.ones(3), lr=0.5, backend="cpu")))
    code = f"""
        import pathlib, pickle, warnings, numpy as np, fastmomentum as fm
        p, g = np.ones(3), np.ones(3)
        calls = {{
            "step": lambda **how: fm.step(p, np.zeros(3), g, lr=0.5, **how),
            "Momentum": lambda **how: fm.Momentum(p, lr=0.5, **how).step(g),
            "Optimizer": lambda **how: fm.Optimizer(p, "sgd", lr=0.5, **how).step(g),
            "SparseRows": lambda **how: fm.SparseRows(p[:, None].copy(), lr=0.5, **how).step(np.arange(3), g[:, None]),
        }}
        for name, call in calls.items():
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                try:
                    call()
                except RuntimeWarning as warning:
                    assert "NUMBA_DISABLE_JIT" in str(warning) and "backend='numpy'" in str(warning)
                else:
                    raise AssertionError(name)
                call(backend="numpy")  # the advice
                try:
                    call(backend="cpu")
                except RuntimeError as error:
                    assert "backend 'cpu' needs Numba's compiler" in str(error) and "unset it" in str(error)
                else:
                    raise AssertionError(name)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for call in calls.values():
                call()
                call(threads=2) if call in (calls["step"], calls["Momentum"]) else None
            opt = pickle.loads(pathlib.Path({str(tmp_path / "compiled.pickle")!r}).read_bytes())
            opt.step(g)
        assert len(caught) == 1, [str(each.message) for each in caught]
        assert (opt.params[0] == 0.5).all()
        """
    run_python(code, NUMBA_DISABLE_JIT="1")
