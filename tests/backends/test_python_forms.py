"""The source of the kernels, run as plain Python instead of compiled, so that coverage and debuggers see it.

Only the operations that Python does not have (reading memory, vector registers) are replaced.
"""

import ctypes
import operator

import numpy as np
import pytest

import fastmomentum as fm
from fastmomentum.backends.base import CHUNK, LANES
from fastmomentum.backends.cpu import headers, kernels, reductions
from fastmomentum.rules import cache
from tests.helpers.arrays import arrays_of, gradients, gradients_of
from tests.helpers.reference import BACKENDS, DTYPES, RULES, assert_all_same_bits, assert_same_bits, rest, update


def views_in_python(kinds):
    def views(table, row, column, size):
        def array(address, kind):
            buffer = (ctypes.c_char * (int(size) * kind.dtype.bitwidth // 8)).from_address(int(address))
            return np.frombuffer(buffer, f"f{kind.dtype.bitwidth // 8}")

        return tuple(array(table[row, column + i], kind) for i, kind in enumerate(kinds))

    return views


def spans_in_python(arrays):
    starts = [a.__array_interface__["data"][0] for a in arrays]
    return tuple(x for start, a in zip(starts, arrays, strict=True) for x in (start, start + a.nbytes))


def add_in_python(program, hyper_count):
    *operations, results = program
    functions = {name: getattr(operator, each) for name, each in zip("+-*/", ("add", "sub", "mul", "truediv"))}
    functions |= {"widen": lambda x: x.astype(np.float64)}

    def add(lanes, arrays, hyper):
        values = [*arrays, *hyper[:hyper_count]]
        for name, *operands in operations:
            values.append(functions[name](*[values[i] for i in operands]))
        for k, summand in enumerate(values[i] for i in results):
            for i, number in enumerate(summand):
                lanes[k * LANES + i % LANES] += number

    return add


@pytest.fixture(autouse=True)
def in_python(monkeypatch):
    for module in (kernels, reductions):
        monkeypatch.setattr(module, "compiled", lambda function, signature: function)
        monkeypatch.setattr(module, "make_views", views_in_python)
    monkeypatch.setattr(kernels, "memory_spans", spans_in_python)
    monkeypatch.setattr(reductions, "make_add", add_in_python)
    monkeypatch.setattr(headers, "load_word", lambda address: ctypes.c_int64.from_address(int(address)).value)
    monkeypatch.setattr(headers, "load_half", lambda address: ctypes.c_int32.from_address(int(address)).value)
    monkeypatch.setattr(cache, "_kernels", {})  # the compiled kernels stay for the tests that come after
    fm.clear_cache()
    yield
    fm.clear_cache()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", RULES)
def test_kernels_in_python_have_the_bits_of_numpy(rule, dtype):
    params = arrays_of((5, 0, 3), dtype, seed=1)
    alone = params[0].copy()
    want = [(p, rest(rule, p)) for p in (params[0].copy(), params[2].copy())]
    state = None if rule == "sgd" else rest(rule, alone)
    opt = fm.Momentum(params, rule=rule, lr=0.1, momentum=0.5)
    for grads in gradients_of((5, 0, 3), 3, dtype):
        opt.step(grads)
        fm.step(alone, state, grads[0], rule=rule, lr=0.1, momentum=0.5)
        pairs = zip(want, (grads[0], grads[2]), strict=True)
        want = [update(rule, p, s, g, dtype, lr=0.1, momentum=0.5) for (p, s), g in pairs]
    for found, (expected, _) in zip((params[0], params[2]), want, strict=True):
        assert_same_bits(found, expected)
    assert_same_bits(alone, want[0][0])


def test_array_check_in_python_finds_every_change():
    params = [np.ones((2, 3)), np.ones(4), np.ones(2)]
    grads = [np.ones((2, 3)), np.ones(4), None]
    opt = fm.Momentum(params, lr=0.5)
    opt.step(grads)
    opt.step([np.ones((2, 3)), np.ones(4), None])  # new arrays in other memory
    before = [p.copy() for p in params]
    read_only, base = np.ones(4), np.ones(100)
    read_only.flags.writeable = False
    for bad in (
        [np.ones((3, 2)), *grads[1:]],
        [np.ones(6), *grads[1:]],
        [grads[0], np.ones(4, np.float32), None],
        [grads[0], np.ones(8)[::2], None],
        [grads[0], np.ones(4, ">f8"), None],
        [grads[0], [1.0] * 4, None],
        [grads[0], params[1], None],
        [params[1].repeat(2)[:6].reshape(2, 3), opt.velocity[0].reshape(-1)[1:5], None],
    ):
        with pytest.raises((TypeError, ValueError), match=r"grads\[[01]\]"):
            opt.step(bad)
    params[0].flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        opt.step(grads)
    params[0].flags.writeable = True
    assert_all_same_bits(params, before)
    opt.step([grads[0], read_only, None])
    opt.step([grads[0], base[3:7], np.ones(2)])  # the third array gets its first gradient
    assert opt.steps == 4
    with pytest.raises(ValueError, match="shares"):
        fm.step(params[1], params[1], grads[1], lr=0.1)


def test_norm_in_python_is_that_of_the_numpy_backend():
    found = []
    for backend in BACKENDS:
        params = [np.zeros(100), np.zeros(33), np.zeros(CHUNK + 5)]
        opt = fm.Momentum(params, lr=1.0, max_norm=0.5, backend=backend)
        opt.step(arrays_of([p.size for p in params]))
        with pytest.raises(TypeError, match="grads"):
            opt.step([np.ones(100, np.float32), None, None])
        found.append(np.concatenate(params))
    assert_same_bits(*found)


@pytest.mark.parametrize("rule", ["pytorch", "heavy_ball", "aggmo"])
def test_trace_in_python_is_that_of_the_numpy_backend(rule):
    grads, traces = gradients(70, 3, np.float32), []
    for backend in BACKENDS:
        opt = fm.Momentum(np.ones(70, np.float32), rule=rule, lr=0.1, backend=backend)
        traces.append(opt.trace())
        for grad in grads:
            opt.step(grad)
    for name in ("velocity", "gradient", "cosine", "step"):
        assert_same_bits(getattr(traces[0], name), getattr(traces[1], name))
    assert traces[0].step.all()
