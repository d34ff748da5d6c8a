"""Ctrl-C at every line of every entry point that changes an optimiser: it leaves whole steps and an exact count."""

import signal
import threading
from functools import partial
from itertools import count

import numpy as np
import pytest

import fastmomentum as fm
from fastmomentum.backends.interrupts import uninterrupted
from tests.helpers.arrays import gradients
from tests.helpers.functions import falling
from tests.helpers.interrupts import is_interrupted, places

GRADS = gradients((3, 4), 8)


def stepped_three_times(**settings):
    """Return an optimiser of three arrays in two groups, which needs two kernels, after three steps."""
    params = [np.ones(4) for _ in range(3)]
    groups = [{"params": params[:2]}, {"params": params[2:], "weight_decay": 0.1}]
    opt = fm.Momentum(groups, **settings)
    for grads in GRADS[:3]:
        opt.step(list(grads))
    if opt.restart == "function":
        opt.report(1.0)
    return opt


def new(**settings):
    """Return an optimiser of three arrays before its first step."""
    return fm.Momentum([np.ones(4) for _ in range(3)], **settings)


def contents(opt):
    """Return all numbers and all bytes of an optimiser."""
    saved = opt.state_dict()
    numbers = [saved[name] for name in ("steps", "skipped", "resets", "value", "updates")] + [opt.lr, opt.momentum]
    arrays = [*opt.params, *opt.point, *(slot for state in saved["state"] for slot in state)]
    return numbers, b"".join(array.tobytes() for array in arrays)


def saved_run(**settings):
    """Return the state of another run, which needs other kernels."""
    params = [np.ones(4) for _ in range(3)]
    opt = fm.Momentum([{"params": params[:2], "clip_value": 0.3}, {"params": params[2:]}], **settings)
    for grads in GRADS[3:7]:
        opt.step(list(grads))
    return opt.state_dict()


def step(opt, grads=tuple(GRADS[4])):
    opt.step(list(grads))


def step_uphill(opt):
    opt.step([-0.1 * v for v in opt.velocity])


def set_in_group(opt, name, value):
    opt.groups[1][name] = value


CORRECT = {"rule": "classical", "lr": 0.1, "correct": True}
PERIODS = fm.schedules.WarmRestarts(0.1, 0.01, period=4)
SAVED = saved_run(rule="classical", lr=0.02, momentum=0.5, max_norm=1.0, restart=9)
ENTRY_POINTS = {
    "step, nothing new": (partial(stepped_three_times, lr=0.1), step),
    "step, the first": (partial(new, lr=0.1, dampening=0.5), step),
    "step, another gradient missing": (
        partial(stepped_three_times, lr=0.1),
        partial(step, grads=(None, *GRADS[4][1:])),
    ),
    "step, a schedule": (partial(stepped_three_times, lr=falling), step),
    "step, arrays without gradient follow lr": (
        partial(stepped_three_times, **CORRECT | {"lookahead": True, "lr": falling}),
        partial(step, grads=(None, GRADS[4][1], None)),
    ),
    "step, the norm is clipped": (partial(stepped_three_times, lr=0.1, max_norm=0.1), step),
    "step, skipped": (
        partial(stepped_three_times, lr=0.1, skip_nonfinite=True),
        partial(step, grads=(GRADS[4][0], GRADS[4][1], GRADS[4][2] * np.nan)),
    ),
    "step, restart every 4": (partial(stepped_three_times, lr=0.1, restart=4), step),
    "step, restart by schedule": (partial(stepped_three_times, lr=PERIODS, restart="schedule"), step),
    "step, restart by gradient": (partial(stepped_three_times, lr=0.1, restart="gradient"), step_uphill),
    "step, NumPy backend": (partial(stepped_three_times, lr=0.1, backend="numpy"), step),
    "report": (partial(stepped_three_times, lr=0.1, restart="function"), lambda opt: opt.report(2.0)),
    "lr": (partial(stepped_three_times, **CORRECT), lambda opt: setattr(opt, "lr", 0.05)),
    "lr, look-ahead": (partial(stepped_three_times, lr=0.1, lookahead=True), lambda opt: setattr(opt, "lr", 0.05)),
    "momentum": (partial(stepped_three_times, lr=0.1), lambda opt: setattr(opt, "momentum", 0.5)),
    "momentum of each group": (partial(stepped_three_times, lr=0.1), lambda opt: setattr(opt, "momentum", [0.5, 0.25])),
    "weight_decay, on": (partial(stepped_three_times, lr=0.1), lambda opt: setattr(opt, "weight_decay", 0.5)),
    "a setting of a group": (partial(stepped_three_times, lr=falling), lambda opt: set_in_group(opt, "momentum", 0.5)),
    "steps": (partial(stepped_three_times, lr=falling), lambda opt: setattr(opt, "steps", 9)),
    "replace": (partial(stepped_three_times, lr=0.1), lambda opt: opt.replace(0, np.full(4, 2.0))),
    "step, options go on and off": (
        partial(stepped_three_times, lr=0.1, weight_decay=lambda t: 0.5 * (t == 3), momentum=lambda t: 0.5 * (t != 3)),
        step,
    ),
    "reset": (partial(stepped_three_times, **CORRECT | {"lookahead": True}), lambda opt: opt.reset("a test")),
    "reset of rows": (partial(stepped_three_times, lr=0.1), lambda opt: opt.reset("a test", array=1, rows=(1, 3))),
    "load_state_dict": (partial(stepped_three_times, **CORRECT), lambda opt: opt.load_state_dict(SAVED)),
}


@pytest.mark.parametrize("entry", ENTRY_POINTS)
def test_interrupted_call_is_done_whole_or_not_at_all(entry):
    make, action = ENTRY_POINTS[entry]
    ends = []
    for done in (True, False):
        opt = make()
        if done:
            action(opt)
        now = contents(opt)
        opt.step(list(GRADS[5]))
        ends.append((now, contents(opt)))
    assert ends[0][1] != ends[1][1] or entry == "step, skipped"
    whole = 0
    for at in places(entry):
        opt = make()
        if not is_interrupted(partial(action, opt), at):
            break
        if opt._engine.lock.locked():
            continue  # Python serves no signal between the last line of a `with` and its end
        now = contents(opt)
        opt.step(list(GRADS[5]))
        assert (now, contents(opt)) in ends, at
        whole += now == ends[0][0]
    assert 0 <= whole < at
    assert at > 5


TABLE = gradients((6, 2), 1)[0]
TOUCHES = [(rows, GRADS[i][:2, :2].copy()) for i, rows in enumerate(([0, 2], [2, 5], [1, 2]))]
ROWS_SAVED = fm.SparseRows(TABLE.copy(), lr=0.3).state_dict() | {"steps": 7, "seen": np.full(6, 5)}
ROWS_ENTRY_POINTS = {
    "step": lambda opt: opt.step(*TOUCHES[2]),
    "read": lambda opt: opt.read([0, 1, 4]),
    "flush": lambda opt: opt.flush(),
    "change": lambda opt: opt.change(lr=0.01),
    "load_state_dict": lambda opt: opt.load_state_dict(ROWS_SAVED),
}


def touched_rows():
    opt = fm.SparseRows(TABLE.copy(), lr=0.05)
    for touch in TOUCHES[:2]:
        opt.step(*touch)
    return opt


def continued(opt):
    """Return where the rows go on to, and whether one more step has been done."""
    steps = opt.steps
    opt.step([3], GRADS[3][:1, :2].copy())
    opt.flush()
    return steps, opt.param.tobytes(), opt.state[0].tobytes()


@pytest.mark.parametrize("entry", ROWS_ENTRY_POINTS)
def test_interrupted_call_of_sparse_rows_is_done_whole_or_not_at_all(entry):
    action, ends = ROWS_ENTRY_POINTS[entry], []
    for done in (True, False):
        opt = touched_rows()
        if done:
            action(opt)
        ends.append(continued(opt))
    found = set()
    for at in count():
        opt = touched_rows()
        if not is_interrupted(partial(action, opt), at):
            break
        if not opt._lock.locked():
            found.add(continued(opt))
    assert found <= set(ends)
    assert ends[1] in found
    assert ends[0] in found or entry == "change"  # its last line makes the change
    assert at > 5


@pytest.mark.parametrize("entry", ["step", "flush"])
def test_interrupted_call_of_sparse_rows_is_whole_between_instructions(entry):
    action, ends = ROWS_ENTRY_POINTS[entry], []
    for done in (True, False):
        opt = touched_rows()
        if done:
            action(opt)
        ends.append(continued(opt))
    for at in range(0, 4000, 7):
        opt = touched_rows()
        if not is_interrupted(partial(action, opt), at, "opcode"):
            break
        if not opt._lock.locked():
            assert continued(opt) in ends, at
    assert at > 100


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # after a signal between open() and `with`
def test_save_leaves_the_old_file_or_the_new_one(tmp_path):
    path = tmp_path / "run.npz"
    for at in places("save"):
        old, opt = stepped_three_times(lr=0.1), stepped_three_times(lr=0.2)
        old.save(path)
        if not is_interrupted(partial(opt.save, path), at):
            break
        assert fm.Momentum.load(path, opt.params).lr in ([0.1, 0.1], [0.2, 0.2])
        assert [each.name for each in tmp_path.iterdir()] == ["run.npz"]
    assert at > 20


def test_uninterrupted_delivers_a_held_signal_after_the_block():
    done = []

    def interrupted():
        with uninterrupted():
            with uninterrupted():
                signal.raise_signal(signal.SIGINT)
                done.append("inner")
            done.append("outer")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert done == ["inner", "outer"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_uninterrupted_leaves_handlers_alone_in_other_threads_and_where_none_is_python_code():
    seen = []

    def look():
        with uninterrupted():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        look()
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [signal.default_int_handler, signal.SIG_IGN]


def test_block_that_the_handler_of_another_signal_ends_anywhere_does_not_keep_ctrl_c():
    def fail(number, frame):
        raise KeyboardInterrupt

    def blocks():
        with uninterrupted(), uninterrupted():
            pass

    before, left = signal.signal(signal.SIGUSR1, fail), []
    try:
        for at in range(10_000):
            if not is_interrupted(blocks, at, "opcode", signal.SIGUSR1):
                break
            left.append(signal.getsignal(signal.SIGINT) is not signal.default_int_handler)
            for _ in range(2):
                with pytest.raises(KeyboardInterrupt):
                    signal.raise_signal(signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGUSR1, before)
        signal.signal(signal.SIGINT, signal.default_int_handler)
    assert any(left)
    assert not all(left)


def test_load_state_dict_is_refused_during_a_step_of_another_thread():
    opt = stepped_three_times(**CORRECT)
    saved, before = opt.state_dict(), contents(opt)
    with opt._engine.lock, pytest.raises(RuntimeError, match="one caller at a time"):
        opt.load_state_dict(saved)
    assert contents(opt) == before


def test_step_of_several_kernels_is_whole_and_counted_under_a_barrage_of_signals():
    """A timer sends SIGALRM all the time; its handler raises where Python lets it, which is not between two kernels."""
    params = [np.zeros(64, np.float32), np.zeros(64)]
    opt = fm.Momentum(params, lr=1.0, momentum=0.0)
    grads = [np.ones_like(p) for p in params]
    opt.step(grads)
    hits, may_raise = 0, False

    def interrupt(signum, frame):
        nonlocal may_raise
        if may_raise:
            may_raise = False
            raise InterruptedError

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 1e-4, 1e-4)
        while hits < 300:
            try:
                may_raise = True
                for _ in range(1000):
                    opt.step(grads)
                may_raise = False
            except InterruptedError:
                hits += 1
            assert params[0][0] == params[1][0] == -opt.steps
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not opt._engine.lock.locked()
