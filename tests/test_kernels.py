"""How kernels behave: compiled once, strict arithmetic, no allocation, harmless beside threads and forks."""

import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from memory import assert_allocates_nothing
from numba.core import event
from oracles import RULES, assert_same_bits

import fastmomentum as fm
from fastmomentum import backends

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
def test_a_second_call_compiles_nothing(rule, compilations):
    use(rule, 5)
    first = compilations.count
    use(rule, 6)
    state = None if rule == "sgd" else np.ones(3, F4)
    fm.step(np.ones(3, F4), state, np.ones(3, F4), rule=rule, lr=0.3, weight_decay=0.3)
    assert compilations.count == first


def test_the_first_call_compiles(compilations):
    """Or the test above could not fail."""
    use(fm.Rule(lambda p, v, g, lr, mu: (p - lr * g, v + mu)), 5)
    assert compilations.count > 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("many", [False, True])
def test_kernels_are_vectorised_and_hold_no_contraction(many, dtype):
    make = backends.many_kernel if many else lambda *key: backends.kernel(*key, "cpu")
    dispatcher = make(fm.rules.pytorch, np.dtype(dtype))
    (assembly,) = dispatcher.inspect_asm().values()
    assert not re.search(r"\bvf[n]?m(add|sub)", assembly)
    suffix = "ps" if dtype == np.float32 else "pd"
    assert re.search(rf"\bv?mul{suffix}\b", assembly)


def test_the_compile_options_are_those_promised():
    options = backends.kernel(fm.rules.pytorch, F4, "cpu").targetoptions
    assert options["nogil"]
    assert options["error_model"] == "numpy"
    assert not {"fastmath", "parallel", "cache"} & {name for name, value in options.items() if value}


def test_a_division_by_zero_does_not_stop_a_kernel():
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


def test_steps_in_threads_of_optimisers_of_their_own_have_the_same_bits():
    """Kernels release the lock; several may run at once."""

    def train(seed):
        rng = np.random.default_rng(seed)
        p = rng.standard_normal(50_000).astype(F4)
        opt = fm.Momentum(p, lr=0.01, weight_decay=0.1)
        v = np.zeros_like(p)
        q = p.copy()
        for _ in range(20):
            g = rng.standard_normal(50_000).astype(F4)
            opt.step(g)
            fm.step(q, v, g, lr=0.01, weight_decay=0.1)
        assert_same_bits(p, q)
        return p

    expected = [train(seed) for seed in range(6)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(train, range(6)))
    for one, other in zip(found, expected, strict=True):
        assert_same_bits(one, other)


def test_kernels_may_be_compiled_by_two_threads_at_once():
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


def test_threads_are_taken_and_have_the_same_bits():
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
    """A sequence that can be read through once."""

    def __init__(self, items):
        self.items, self.rest = items, iter(items)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]

    def __iter__(self):
        return self.rest


def test_sequences_that_lie_are_read_once_and_refused():
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


def test_a_second_thread_in_a_step_is_refused_and_nothing_is_torn():
    params = [np.zeros(300_000) for _ in range(8)]
    opt = fm.Momentum(params, rule="sgd", lr=1.0)
    done, refused = [], []

    def run(_):
        for _ in range(40):
            grads = [np.ones(300_000) for _ in params]  # fresh memory, freed again
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


def test_parameters_of_a_subclass_are_checked_at_every_step():
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


def test_a_byte_order_written_out_is_native_too():
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
