"""No object of the package is in a reference cycle: arrays are freed at once, without Python's garbage collector."""

import contextlib
import copy
import gc
import pickle
import weakref

import numpy as np
import pytest

import fastmomentum as fm

SIZE = 5


def slowly(step):
    return 0.1 / (1 + step)


def fails_at_two(step):
    if step == 2:
        raise ZeroDivisionError
    return 0.1


SETTINGS = {
    "constants": {},
    "a schedule": {"lr": slowly},
    "max_norm": {"max_norm": 1.0},
    "clip_norm, a schedule": {"clip_norm": 1.0, "lr": slowly},
    "skip_nonfinite": {"skip_nonfinite": True},
    "lookahead": {"lookahead": True, "lr": slowly},
    "correct": {"correct": True, "rule": "classical", "lr": slowly},
    "restart by gradient": {"restart": "gradient"},
    "restart by schedule": {"restart": "schedule", "lr": fm.schedules.WarmRestarts(0.1, 0.01, period=2)},
    "restart every 2": {"restart": 2},
    "a mask": {"mask": [np.ones(SIZE, bool), None, None]},
    "a function that fails": {"lr": fails_at_two},
}


def step(opt, times=3, missing=None):
    for _ in range(times):
        with contextlib.suppress(ZeroDivisionError):
            opt.step([None if i == missing else np.ones(SIZE) for i in range(len(opt.params))])


def trace_and_stop(opt):
    trace = opt.trace()
    step(opt)
    trace.stop()
    step(opt)
    return trace


def trace_and_keep(opt):
    trace = opt.trace()
    step(opt)
    return trace, repr(trace), fm.diagnose(trace)


def refuse(opt):
    for grads in ([np.ones(SIZE + 1)] * 3, [np.ones(SIZE)], 3, [np.ones(SIZE, np.float32)] * 3):
        with contextlib.suppress(TypeError, ValueError):
            opt.step(grads)
    for name, value in (("lr", -1.0), ("momentum", "a"), ("rule", "sgd"), ("weight_decay", lambda step: 1 / 0)):
        with contextlib.suppress(TypeError, ValueError, AttributeError, ZeroDivisionError):
            setattr(opt, name, value)
    with contextlib.suppress(ValueError):
        opt.load_state_dict(opt.state_dict() | {"steps": -1})
    with contextlib.suppress(TypeError, ValueError):
        opt.add_group({"params": np.ones(3), "lr": -1.0})
    step(opt)


def assign(opt):
    with contextlib.suppress(ValueError):  # if restarts follow the schedule
        opt.lr = 0.05
    step(opt)
    opt.momentum = slowly
    step(opt)
    opt.groups[0]["weight_decay"] = 0.1
    step(opt)
    views = opt.groups
    return views[0]["lr"]


def grow(opt):
    opt.add_group({"params": np.ones(SIZE)})
    opt.replace(0, np.ones(SIZE))
    step(opt)


ACTIONS = {
    "steps": step,
    "gradients missing": lambda opt: (step(opt, missing=1), step(opt, missing=0), step(opt, 2)),
    "no gradient": lambda opt: opt.step([None] * 3),
    "settings": assign,
    "a trace": trace_and_keep,
    "a stopped trace": trace_and_stop,
    "refusals": refuse,
    "load": lambda opt: (step(opt), opt.load_state_dict(opt.state_dict()), step(opt)),
    "new arrays": grow,
    "reset": lambda opt: (step(opt), opt.reset("a test"), step(opt)),
    "copies": lambda opt: [step(each) for each in (copy.copy(opt), copy.deepcopy(opt))],
}


ON_CPU = ["constants", "a schedule", "a function that fails"]
"""Settings that need one kernel, as a compilation takes long; the NumPy backend is run with all settings."""


def references_of(opt):
    """Return weak references to the optimiser and to all its arrays."""
    engine = opt._engine
    slots = [slot for state in engine.state.slots for slot in state]
    return [weakref.ref(thing) for thing in (opt, engine, engine._executor, *engine.state.params, *slots)]


@contextlib.contextmanager
def no_collector():
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def assert_all_freed(references):
    kept = [thing for thing in (reference() for reference in references) if thing is not None]
    assert not kept, [type(thing).__name__ for thing in kept]


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize(
    ("settings", "backend"), [*((name, "numpy") for name in SETTINGS), *((name, "cpu") for name in ON_CPU)]
)
def test_optimiser_and_its_arrays_are_freed_without_the_collector(settings, action, backend):
    with no_collector():
        opt = fm.Momentum([np.ones(SIZE) for _ in range(3)], **{"lr": 0.1, "backend": backend} | SETTINGS[settings])
        kept = []
        kept.append(ACTIONS[action](opt))
        references = references_of(opt)
        del opt
        assert_all_freed(references)


def touch_rows():
    table = np.ones((6, 2))
    opt = fm.SparseRows(table, lr=slowly)
    for _ in range(3):
        opt.step([0, 2], np.ones((2, 2)))
    with contextlib.suppress(ValueError, IndexError):
        opt.step([99], np.ones((1, 2)))
    opt.flush()
    return [opt, table, *opt.state]


def minimise_in_python():
    class Function:
        def __call__(self, x):
            return float(x @ x), 2.0 * x

    fun = Function()
    found = fm.minimize(fun, np.ones(3), jac=True, maxiter=5)
    return [fun, found, found.x]


def minimise_with_failure():
    class Function:
        def __call__(self, x):
            raise ZeroDivisionError

    fun, start = Function(), np.ones(3)
    with contextlib.suppress(ZeroDivisionError):
        fm.minimize(fun, start, jac=True)
    return [fun, start]


def record_by_hand():
    trace, p, v = fm.Trace(), np.ones(3), np.zeros(3)
    for _ in range(3):
        trace.record(p, v, np.ones(3), lr=0.1)
    trace.reset("a test")
    return [trace, p, v, fm.diagnose(trace)]


def copied_by_pickle():
    opt = fm.Momentum(np.ones(3), lr=0.1, max_norm=1.0, backend="numpy")
    opt.step(np.ones(3))
    twin = pickle.loads(pickle.dumps(opt))
    twin.step(np.ones(3))
    return [*references_of(opt), *references_of(twin)]


def schedules():
    found = [fm.schedules.Linear(0.1, 0.0, 5), fm.schedules.WarmRestarts(0.1, 0.01, period=2)]
    for each in found:
        each(1)
    return found


@pytest.mark.parametrize(
    "make", [touch_rows, minimise_in_python, minimise_with_failure, record_by_hand, copied_by_pickle, schedules]
)
def test_other_objects_are_freed_without_the_collector(make):
    make()  # imports modules, and fills caches
    with no_collector():
        things = make()
        references = [thing if isinstance(thing, weakref.ref) else weakref.ref(thing) for thing in things]
        del things
        assert_all_freed(references)


def test_first_step_of_a_rule_leaves_no_frame_that_keeps_the_optimiser():
    def unusual(p, v, g, lr, mu):
        v = mu * (v + g) + g
        return p - lr * (v + lr * g), v

    with no_collector():
        opt = fm.Momentum(np.ones(3), rule=fm.Rule(unusual), lr=0.1, backend="cpu")
        opt.step(np.ones(3))  # compiles the kernel
        references = references_of(opt)
        del opt
        assert_all_freed(references)
