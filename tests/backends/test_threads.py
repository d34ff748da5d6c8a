"""Threads change no bits, and neither crash nor hang after forks, signals and exits."""

import ctypes
import ctypes.util
import itertools
import os
import platform
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import fastmomentum as fm
from fastmomentum.backends.cpu import executor, kernels, threads
from tests.helpers.arrays import arrays_of, gradients_of
from tests.helpers.processes import run_python
from tests.helpers.reference import assert_all_same_bits

SIZES = [1, 70_000, 0, 3, 200_001, 65_536, 131_072, 17, 5_000]

PRELUDE = """
import os, signal, sys, threading, time
import numpy as np
import fastmomentum as fm
from fastmomentum.backends.cpu import threads as guards

N = 200_000

def one(threads, steps=5, **settings):
    rng = np.random.default_rng(0)
    p = rng.standard_normal(N).astype(np.float32)
    opt = fm.Momentum(p, lr=0.1, threads=threads, **settings)
    for _ in range(steps):
        opt.step(rng.standard_normal(N).astype(np.float32))
    return p.tobytes() + opt.velocity.tobytes()

def check(threads=2, **settings):
    assert one(threads, **settings) == one(1, **settings)

def wait_for(child):
    assert os.waitpid(child, 0)[1] == 0
"""


def run(code, limit=100, **environment):
    """Run `code` after the prelude in a process of its own, which has to end without an error within the limit."""
    return run_python(
        PRELUDE + textwrap.dedent(code), "-W", "error", timeout=limit, **{"NUMBA_NUM_THREADS": "4"} | environment
    )


@pytest.fixture
def any_number(monkeypatch):
    """Give every number of threads that is asked for, even on a machine with fewer cores and for few elements."""
    monkeypatch.setattr(threads, "available", lambda: 7)
    monkeypatch.setattr(threads, "ELEMENTS", 16)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("rule", "dtype"),
    [
        ("sgd", np.float32),
        ("pytorch", np.float32),
        ("pytorch", np.float64),
        ("ema_nesterov", np.float32),
        ("heavy_ball", np.float64),
        ("nesterov_positions", np.float32),
    ],
)
def test_threads_do_not_change_the_bits(rule, dtype, any_number):
    sizes = [0, 1, 33, 1000, 5, 4097]
    runs = {}
    grads = gradients_of(sizes, 3, dtype)
    start = arrays_of(sizes, dtype, seed=1)
    for number in (1, 2, 3, 7):
        params = [p.copy() for p in start]
        settings = {"rule": rule, "lr": 0.1, "weight_decay": 0.1, "max_norm": 1.0}
        opt = fm.Momentum([{"params": params[:3]}, {"params": params[3:], "lr": 0.2}], threads=number, **settings)
        for g in grads:
            opt.step(g)
        state = None if rule == "sgd" else np.zeros_like(params[-1])
        fm.step(params[-1], state, grads[0][-1], rule=rule, lr=0.1, threads=number)
        runs[number] = params
    for number in (2, 3, 7):
        assert_all_same_bits(runs[1], runs[number])


def test_threads_do_not_change_the_bits_of_large_arrays():
    runs = {}
    for number in (1, 2, -1):
        params = arrays_of(SIZES, np.float32, seed=1)
        opt = fm.Momentum(params, lr=0.1, max_norm=0.3, threads=number)
        for grads in gradients_of(SIZES, 3, np.float32):
            opt.step(grads)
        assert opt.steps == 3
        runs[number] = params
    for number in (2, -1):
        assert_all_same_bits(runs[1], runs[number])


def test_every_element_is_updated_once_for_any_number_of_threads(any_number):
    for size in (*range(30, 70), 112, 113, 127, 1024):
        p, v = np.zeros(size), np.zeros(size)
        for count in range(1, 8):
            fm.step(p, v, np.ones(size), lr=1.0, momentum=0.0, threads=count)
            np.testing.assert_array_equal(p, -count)


def test_a_refused_step_of_several_threaded_calls_changes_nothing(any_number):
    """Check that no kernel runs after the first one, which checks all arrays, has refused one."""
    params = [np.zeros(1000, np.float32), np.zeros(1000)]
    opt = fm.Momentum(params, lr=1.0, threads=2)
    opt.step([np.ones_like(p) for p in params])
    before = [p.copy() for p in (*params, *opt.state)]
    for wrong in ([np.ones(1000, np.float32), np.ones(1000, np.float32)], [np.ones(999, np.float32), np.ones(1000)]):
        with pytest.raises((TypeError, ValueError), match=r"grads\[[01]\]"):
            opt.step(wrong)
        assert_all_same_bits((*params, *opt.state), before)
        assert opt.steps == 1


def used(monkeypatch):
    """Return a list that gets an item for each parallel region that is entered."""
    entered = []
    right = threads.region

    def counting():
        entered.extend([1] if right() else [])
        return right()

    monkeypatch.setattr(threads, "region", counting)
    return entered


def test_threads_are_used_when_asked_for(monkeypatch):
    entered = used(monkeypatch)
    monkeypatch.setattr(threads, "available", lambda: 2)
    p, g = np.zeros(100_000), np.ones(100_000)
    opt = fm.Momentum(p, lr=0.1, threads=2)
    opt.step(g)
    fm.step(p, opt.velocity, g, lr=0.1, threads=2)
    assert len(entered) == 2
    fm.Momentum(p, lr=0.1).step(g)
    fm.step(p, opt.velocity, g, lr=0.1)
    fm.step(p, opt.velocity, g, lr=0.1, threads=2, backend="numpy")
    assert len(entered) == 2


def test_set_threads_is_the_default(monkeypatch):
    entered = used(monkeypatch)
    monkeypatch.setattr(threads, "available", lambda: 2)
    p, g = np.zeros(100_000), np.ones(100_000)
    try:
        fm.set_threads(-1)
        made = fm.Momentum(p, lr=0.1)
        made.step(g)
        fm.step(p, np.zeros_like(p), g, lr=0.1)
        assert len(entered) == 2
        fm.Momentum(p, lr=0.1, threads=1).step(g)
        fm.step(p, np.zeros_like(p), g, lr=0.1, threads=1)
        assert len(entered) == 2
    finally:
        fm.set_threads(1)
    fm.step(p, np.zeros_like(p), g, lr=0.1)
    assert len(entered) == 2
    made.step(g)  # an optimiser keeps the number of threads that it was made with
    assert len(entered) == 3


def test_small_arrays_use_one_thread(monkeypatch):
    entered = used(monkeypatch)
    monkeypatch.setattr(threads, "available", lambda: 2)
    p, g = np.zeros(2 * threads.ELEMENTS - 1), np.ones(2 * threads.ELEMENTS - 1)
    fm.Momentum(p, lr=0.1, threads=2).step(g)
    fm.step(p, np.zeros_like(p), g, lr=0.1, threads=-1)
    assert not entered


@pytest.mark.parametrize(
    "wrong", [0, -2, 2**31, 1.5, True, "2", np.timedelta64(2), pytest.param(-(10**5000), id="huge")]
)
def test_numbers_of_threads_are_checked(wrong):
    for call in (
        lambda: fm.set_threads(wrong),
        lambda: fm.Momentum(np.zeros(3), lr=0.1, threads=wrong),
        lambda: fm.step(np.zeros(3), np.zeros(3), np.zeros(3), lr=0.1, threads=wrong),
    ):
        with pytest.raises(
            (TypeError, ValueError), match="threads: expected a whole number from 1 to 2..31 - 1, or -1 for all"
        ):
            call()
    with pytest.raises(TypeError, match="threads: expected a whole number"):
        fm.set_threads(None)


def test_second_caller_of_step_gets_the_serial_kernel(any_number, monkeypatch):
    calls, make = [], kernels.kernel

    def counting(*args, parallel=False):
        kernel = make(*args, parallel=parallel)
        return lambda *given: calls.append(parallel) or kernel(*given)

    monkeypatch.setattr(kernels, "kernel", counting)
    p, g = np.zeros(1000), np.ones(1000)
    fm.step(p, np.zeros_like(p), g, lr=0.75, threads=2)
    with threads.region():
        assert threads.region() is None
        fm.step(p, np.zeros_like(p), g, lr=0.75, threads=2)
    assert threads.region() is not None
    assert calls == [True, False]
    np.testing.assert_array_equal(p, -1.5)


def test_second_optimiser_gets_the_serial_kernels(any_number):
    opt = fm.Momentum(p := np.zeros(1000), lr=1.0, momentum=0.0, max_norm=1e9, threads=3)
    opt.step(np.ones(1000))
    executor, done = opt._engine._executor, []
    for calls in (executor.run.__self__, executor._sums[0, False][1]):
        for name in ("serial", "threaded"):
            (call,) = getattr(calls, name)
            setattr(calls, name, [lambda grads, call=call, name=name: done.append(name) or call(grads)])
    opt.step(np.ones(1000))
    with threads.region():
        opt.step(np.ones(1000))
    assert done == ["threaded", "threaded", "serial", "serial"]
    np.testing.assert_array_equal(p, -3)


def test_shared_memory_is_refused_by_the_threaded_kernel(any_number):
    values = np.zeros(1500)
    with pytest.raises(ValueError, match="memory that it shares"):
        fm.step(values[:1000], np.zeros(1000), values[500:], lr=1.0, threads=2)
    assert not values.any()


@pytest.mark.parametrize("how", [{"max_norm": 1.0}, {"skip_nonfinite": True}])
def test_interrupt_during_compilation_of_the_norm_keeps_the_option(how, monkeypatch):
    def interrupt(*args, **named):
        raise KeyboardInterrupt

    p = np.zeros(4)
    opt = fm.Momentum(p, lr=1.0, momentum=0.0, **how)
    with monkeypatch.context() as patched:
        patched.setattr(executor, "sums_kernel", interrupt)
        with pytest.raises(KeyboardInterrupt):
            opt.step(np.full(4, 100.0))
    opt.step(np.full(4, 100.0 if "max_norm" in how else np.nan))
    np.testing.assert_allclose(p, -0.5 if "max_norm" in how else 0.0, rtol=1e-6)


def test_norm_is_shared_among_threads_by_elements():
    sizes = np.array([10] * 2000 + [20_000_000])
    shares = executor._shares(sizes, 4)
    done = [
        sum(min(65_536, 20_000_000 - 65_536 * i) for i in range(max(a, 2000) - 2000, b - 2000))
        for a, b in itertools.pairwise(shares)
    ]
    assert (shares[0], shares[-1]) == (0, 2000 + 306)
    assert max(done) < 1.02 * sizes.sum() / 4


@pytest.mark.parametrize(("variable", "count"), [("1", 1), ("2", 2), ("2,4", 2), ("nonsense", None), ("", None)])
def test_omp_num_threads_is_respected(variable, count, monkeypatch):
    cores = threads.available()
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    assert threads.available() == min(cores, count or cores)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_affinity_is_respected():
    code = """
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        assert guards.available() == 1
        assert guards.worthwhile(10**7, 8) == 1
        check()
        """
    run(code)


@pytest.mark.parametrize(
    ("layer", "callers"), [("omp", 4), ("tbb", 4), ("workqueue", 2), ("default", 4), ("nonsense", 2)]
)
def test_python_threads_at_once_have_the_same_bits(layer, callers):
    code = f"""
        expected = one(1, steps=20)
        wrong = []
        def work():
            for _ in range(3):
                if one(2, steps=20) != expected:
                    wrong.append(1)
        workers = [threading.Thread(target=work) for _ in range({callers})]
        [w.start() for w in workers]; [w.join() for w in workers]
        assert not wrong
        print(guards.layer())
        """
    found = run(code, NUMBA_THREADING_LAYER=layer)
    expected = {"omp": "omp", "tbb": "tbb", "workqueue": "workqueue", "nonsense": "None"}
    assert found == expected.get(layer, found)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("layer", ["omp", "tbb"])
def test_children_of_forks_and_of_the_c_library_step_without_a_hang(layer):
    code = """
        check()                          # starts the threads of the parent
        if sys.platform == "linux":      # a fork that Python does not see
            import ctypes
            if not (child := ctypes.PyDLL(None).fork()):
                check()
                os._exit(0)
            wait_for(child)
        child = os.fork()
        check()
        if child == 0:
            assert guards.worthwhile(10**7, 2) == 1
            grandchild = os.fork()
            check()
            if grandchild == 0:
                os._exit(0)
            wait_for(grandchild)
            os._exit(0)
        wait_for(child)
        check()
        """
    run(code, NUMBA_THREADING_LAYER=layer)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_fork_before_the_import_disables_threads_in_the_child():
    code = """
        import os
        child = os.fork()
        if child == 0:
            import numpy as np
            from fastmomentum.backends.cpu import threads
            assert threads.worthwhile(10**7, 2) == 1
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        from fastmomentum.backends.cpu import threads
        threads.available = lambda: 2
        assert threads.worthwhile(10**7, 2) == 2
        """
    run_python(code)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_fork_after_a_parallel_operation_of_torch_does_not_hang():
    pytest.importorskip("torch")
    code = """
        import warnings
        warnings.simplefilter("ignore")
        import torch
        torch.set_num_threads(2)
        torch.ones(10**7).mul_(2).sum()
        child = os.fork()
        if child == 0:
            check()
            os._exit(0)
        wait_for(child)
        check()
        """
    run(code, NUMBA_THREADING_LAYER="omp")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_pools_have_the_same_bits(method, tmp_path):
    (tmp_path / "job.py").write_text(PRELUDE)
    code = f"""
        sys.path.insert(0, {str(tmp_path)!r})
        import multiprocessing, warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # which Python gives for a fork beside threads
        import job
        if __name__ == "__main__":
            check()
            with multiprocessing.get_context({method!r}).Pool(2) as pool:
                assert set(pool.map(job.one, [2, 1, 2, -1])) == {{one(1)}}
        """
    path = tmp_path / "main.py"
    path.write_text(PRELUDE + textwrap.dedent(code))
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("layer", ["omp", "tbb"])
def test_step_inside_a_users_prange_has_the_same_bits(layer):
    code = """
        import numba
        check()  # loads the threading layer, which a user's own prange does not find in a virtual environment
        expected = one(1)
        right = []
        def work(i):
            right.append(one(2) == expected)
        @numba.njit(parallel=True)
        def outer():
            for i in numba.prange(4):
                with numba.objmode():
                    work(i)
        outer()
        assert right == [True] * 4, right
        """
    run(code, NUMBA_THREADING_LAYER=layer)


@pytest.mark.parametrize("threads_asked", [1, 2])
def test_interrupt_during_a_step_leaves_whole_steps(threads_asked):
    code = f"""
        # Two dtypes and so two kernels a step: an interrupt between them must not leave half of the step.
        arrays = [np.zeros(1_000_000, np.float32), np.zeros(1_000_000), np.zeros(1_000_000, np.float32)]
        grads = [np.ones_like(p) for p in arrays]
        groups = [{{"params": arrays[:2]}}, {{"params": arrays[2:], "weight_decay": 1e-30}}]
        opt = fm.Momentum(groups, lr=1.0, momentum=0.0, threads={threads_asked})
        opt.step(grads)
        class Stop(Exception):
            pass
        def stop(*_):
            raise Stop
        interrupted = 0
        signal.signal(signal.SIGALRM, stop)
        rng = np.random.default_rng(0)
        for _ in range(60):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.002 + 0.01 * rng.random())
                while True:
                    opt.step(grads)
            except Stop:
                interrupted += 1
            for p in arrays:
                assert (p == -opt.steps).all(), (p[0], p[-1], opt.steps)
        assert interrupted == 60
        """
    run(code)


def test_kept_exception_holds_no_lock():
    code = """
        guards.ELEMENTS, guards.available = 16, lambda: 2
        class Stop(Exception):
            pass
        def stop(*_):
            raise Stop
        signal.signal(signal.SIGALRM, stop)
        p, g = np.zeros(64), np.ones(64)
        opt = fm.Momentum(p, lr=1.0, momentum=0.0, threads=2)
        opt.step(g)
        kept, rng = [], np.random.default_rng(0)
        while len(kept) < 2000:
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-5 + 2e-4 * rng.random())
                while True:
                    opt.step(g)
            except Stop as error:
                kept.append(error)
            assert not guards._region.locked()
            assert not opt._engine.lock.locked()
        assert (p == -opt.steps).all()
        """
    run(code)


def test_ctrl_c_during_a_threaded_step_leaves_whole_steps():
    code = """
        p, g = np.zeros(3_000_000), np.ones(3_000_000)
        opt = fm.Momentum(p, lr=1.0, momentum=0.0, threads=2)
        opt.step(g)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
        threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        try:
            while True:
                opt.step(g)
        except KeyboardInterrupt:
            pass
        assert (p == -opt.steps).all()
        opt.step(g)
        assert (p == -opt.steps).all()
        """
    run(code)


def test_process_can_end_during_a_threaded_step():
    code = """
        p, g = np.zeros(5_000_000), np.ones(5_000_000)
        def forever():
            opt = fm.Momentum(p, lr=1.0, threads=2)
            while True:
                opt.step(g)
        threading.Thread(target=forever, daemon=True).start()
        time.sleep(1.0)
        import atexit
        atexit.register(check)
        """
    run(code)


def test_tbb_library_in_the_virtual_environment_is_found():
    if not os.path.exists(os.path.join(sys.prefix, "lib", "libtbb.so.12")):
        pytest.skip("the extra tbb is not installed")
    assert run("print(guards.layer())") == "tbb"


def test_threads_change_no_settings_and_no_signal_handlers_of_the_process():
    code = """
        import numba
        before = dict(os.environ), numba.config.THREADING_LAYER, numba.get_num_threads()
        for handler in (signal.SIG_IGN, signal.default_int_handler, lambda *_: None):
            signal.signal(signal.SIGINT, handler)
            check()
            assert signal.getsignal(signal.SIGINT) is handler
        assert before == (dict(os.environ), numba.config.THREADING_LAYER, numba.get_num_threads())
        """
    run(code)


UPWARD = {"x86_64": 0x800, "AMD64": 0x800, "aarch64": 0x400000}
"""FE_UPWARD of <fenv.h> by machine."""

ROUNDING = f"""
import ctypes, ctypes.util
libm = ctypes.CDLL(ctypes.util.find_library("m"))
guards.available = lambda: 2

def in_mode(mode, threads, backend=None):
    p, g = np.full(N, 1.0, np.float32), np.full(N, 0.3, np.float32)
    opt = fm.Momentum(p, lr=0.1, threads=threads, backend=backend)
    opt.step(g)  # in the mode of the beginning: all is compiled, and the threads have started
    assert libm.fesetround(mode) == 0
    try:
        for _ in range(3):
            opt.step(g)
    finally:
        assert libm.fesetround(0) == 0
    return p, opt.velocity

def same(one, other):
    return all(a.tobytes() == b.tobytes() for a, b in zip(one, other))

UP = {UPWARD.get(platform.machine())}
"""


@pytest.mark.skipif(
    platform.machine() not in UPWARD or ctypes.util.find_library("m") is None, reason="no fesetround to call"
)
def test_rounding_mode_of_the_caller_holds_in_its_own_thread_alone():
    """Threads of OpenMP have the mode in which they started, so that bits depend on their number in another mode."""
    run(
        ROUNDING
        + """
nearest, up = in_mode(0, 1), in_mode(UP, 1)
assert not same(nearest, up)
assert same(in_mode(UP, 1, "numpy"), up)
assert same(in_mode(0, 2), nearest)
mixed = in_mode(UP, 2)
assert not same(mixed, up) and not same(mixed, nearest)
assert all(np.isin(both, [one[0], other[0]]).all() for both, one, other in zip(mixed, up, nearest))
assert same(in_mode(0, 2), nearest)
""",
        NUMBA_THREADING_LAYER="omp",
    )
