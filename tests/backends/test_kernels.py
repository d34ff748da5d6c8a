"""Properties of the kernels: one compilation, strict arithmetic, no allocation, and use from several threads."""

import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numba.core import event

import fastmomentum as fm
from fastmomentum.backends.cpu import kernels
from tests.helpers.arrays import random_arrays
from tests.helpers.memory import assert_allocates_nothing
from tests.helpers.reference import DTYPES, RULES, assert_all_same_bits, assert_same_bits

F4 = np.dtype(np.float32)


@pytest.fixture
def compilations():
    class Recorder(event.Listener):
        count = 0

        def on_start(self, event):
            self.count += 1

        def on_end(self, event):
            pass

    recorder = Recorder()
    with event.install_listener("numba:compile", recorder):
        yield recorder


def use(rule, n):
    p, g = np.ones(n, F4), np.ones(n, F4)
    opt = fm.Momentum(p, rule=rule, lr=0.1, weight_decay=0.1)
    for _ in range(3):
        opt.step(g)
        opt.step(g.copy())
    opt.lr = 0.2
    opt.step(g)
    q = np.ones((n, 2), F4)
    state = None if rule == "sgd" else np.ones((n, 2), F4)
    fm.step(q, state, np.ones((n, 2), F4), rule=rule, lr=0.1, weight_decay=0.1)


@pytest.mark.parametrize("rule", RULES)
def test_second_call_compiles_nothing(rule, compilations):
    use(rule, 5)
    first = compilations.count
    use(rule, 6)
    state = None if rule == "sgd" else np.ones(3, F4)
    fm.step(np.ones(3, F4), state, np.ones(3, F4), rule=rule, lr=0.3, weight_decay=0.3)
    assert compilations.count == first


def test_first_call_compiles(compilations, compiled_here):
    """Check that the recorder of the test above sees compilations."""
    use(fm.Rule(lambda p, v, g, lr, mu: (p - lr * g, v + mu)), 5)
    assert compilations.count > 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("many", [False, True])
def test_kernels_are_vectorised_and_hold_no_contraction(many, dtype, compiled_here):
    make = kernels.many_kernel if many else kernels.kernel
    dispatcher = make(fm.rules.pytorch, np.dtype(dtype))
    (assembly,) = dispatcher.inspect_asm().values()
    assert not re.search(r"\bvf[n]?m(add|sub)", assembly)
    suffix = "ps" if dtype == np.float32 else "pd"
    assert re.search(rf"\bv?mul{suffix}\b", assembly)


def test_compile_options_release_the_gil_and_are_strict():
    options = kernels.kernel(fm.rules.pytorch, F4).targetoptions
    assert options["nogil"]
    assert options["error_model"] == "numpy"
    assert not {"fastmath", "parallel", "cache"} & {name for name, value in options.items() if value}


def test_division_by_zero_gives_infinity_in_kernels():
    def divide(p, v, g, lr, mu):
        return p / g, v

    p = np.array([1.0, 2.0, 3.0, 4.0])
    fm.step(p, np.zeros(4), np.array([1.0, 0.0, -0.0, 2.0]), rule=fm.Rule(divide), lr=0.1)
    np.testing.assert_array_equal(p, [1.0, np.inf, -np.inf, 2.0])


@pytest.mark.parametrize("new", [False, True], ids=["same gradients", "new gradients"])
def test_steps_allocate_nothing(new):
    params = [np.ones(1000), np.ones((30, 40)), np.ones(())]
    grads = [[np.ones_like(p) for p in params] for _ in range(2)]
    alone = np.ones(1000)
    opt, one, g = fm.Momentum(params, lr=1e-3), fm.Momentum(alone, lr=1e-3), np.ones(1000)
    v = np.zeros(1000)

    def run(times):
        for i in range(times):
            opt.step(grads[i % 2 if new else 0])
            one.step(grads[i % 2][0] if new else g)
            fm.step(alone, v, g, lr=1e-3)

    assert_allocates_nothing(run)


def test_optimisers_of_different_threads_have_the_same_bits():
    """Check the bits of kernels that run at the same time, as kernels release the GIL."""

    def train(seed):
        p, *grads = random_arrays(50_000, 21, F4, seed)
        opt = fm.Momentum(p, lr=0.01, weight_decay=0.1)
        v = np.zeros_like(p)
        q = p.copy()
        for g in grads:
            opt.step(g)
            fm.step(q, v, g, lr=0.01, weight_decay=0.1)
        assert_same_bits(p, q)
        return p

    expected = [train(seed) for seed in range(6)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(train, range(6)))
    assert_all_same_bits(found, expected)


def test_kernels_can_be_compiled_by_several_threads_at_once():
    rule = fm.Rule(lambda p, v, g, lr, mu: (p - lr * (g + v), mu * v))
    arrays = [np.ones(100, F4) for _ in range(4)]
    barrier = threading.Barrier(4)

    def run(p):
        barrier.wait()
        fm.step(p, np.ones(100, F4), np.ones(100, F4), rule=rule, lr=0.25)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, arrays))
    for p in arrays:
        np.testing.assert_array_equal(p, 0.5)


def test_threads_argument_changes_no_bits():
    found = []
    for threads in (1, 2, -1):
        p, v = np.ones(1000, F4), np.ones(1000, F4)
        fm.step(p, v, np.full(1000, 0.3, F4), lr=0.1, threads=threads)
        fm.Momentum(p, lr=0.1, threads=threads).step(v)
        found.append(p)
    for p in found[1:]:
        assert_same_bits(p, found[0])


class Lying(list):
    def __len__(self):
        return 2


class Once:
    """A sequence that can be iterated over once."""

    def __init__(self, items):
        self.items, self.rest = items, iter(items)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]

    def __iter__(self):
        return self.rest


def test_sequences_with_a_wrong_length_are_read_once_and_refused():
    params = [np.ones(4), np.ones(4)]
    g = [np.ones(4), np.ones(4)]
    for ready in (0, 2):
        opt = fm.Momentum(params, lr=0.1)
        for _ in range(ready):
            opt.step(g)
        for liar in (Lying(), Lying([g[0]]), Lying([*g, *g])):
            with pytest.raises(ValueError, match="grads: expected a sequence of 2"):
                opt.step(liar)
        Sequence.register(Once)
        opt.step(Once(g))
        assert opt.steps == ready + 1


def test_step_of_a_second_thread_is_refused_and_steps_stay_whole():
    params = [np.zeros(300_000) for _ in range(8)]
    opt = fm.Momentum(params, rule="sgd", lr=1.0)
    done, refused = [], []

    def run(_):
        for _ in range(40):
            grads = [np.ones(300_000) for _ in params]  # new memory in each step, which is freed after it
            try:
                opt.step(grads)
                done.append(1)
            except RuntimeError:
                refused.append(1)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(4)))
    assert len(done) + len(refused) == 160
    assert opt.steps == len(done)
    for p in params:
        np.testing.assert_array_equal(p, -len(done))


class Subclass(np.ndarray):
    pass


def test_parameters_of_an_ndarray_subclass_are_checked_at_every_step():
    p = np.ones(4).view(Subclass)
    opt = fm.Momentum(p, rule="sgd", lr=0.5)
    opt.step(np.ones(4))
    opt.step(np.ones(4))
    p.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        opt.step(np.ones(4))
    p.flags.writeable = True
    opt.step(np.ones(4))
    np.testing.assert_array_equal(np.asarray(p), -0.5)


def test_explicit_native_byte_order_is_accepted():
    import ctypes

    little = np.asarray((ctypes.c_double * 3)())
    swapped = np.ones(3).byteswap().view(np.dtype(float).newbyteorder(">"))
    for p, g in ((little, np.ones(3)), (np.zeros(3), np.asarray((ctypes.c_double * 3)(1, 1, 1)))):
        opt = fm.Momentum(p, lr=0.5)
        opt.step(g)
        opt.step(g)
        np.testing.assert_array_equal(p, -0.5 - 0.95)
        with pytest.raises(TypeError, match="byte order"):
            opt.step(swapped)
