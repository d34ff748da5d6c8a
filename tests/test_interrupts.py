"""An exception at each line of what changes an optimiser, as of a signal's handler: done whole, or not at all."""

import sys
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from oracles import assert_same_bits

import fastmomentum as fm

WATCHED = {"engine", "keeping", "wholeness", "holdings", "compiled", "calls", "progress", "restarts", "checkpoint"}
GRADS = np.random.default_rng(0).standard_normal((8, 3, 4))


def interrupted(action, at):
    """Raise KeyboardInterrupt at this line, counted through all that is run of the modules; whether there is one."""
    before, lines = sys.gettrace(), iter(range(at))

    def local(frame, event, argument):
        if event == "line" and next(lines, None) is None:
            sys.settrace(before)
            raise KeyboardInterrupt
        return local

    def begin(frame, event, argument):
        path = Path(frame.f_code.co_filename)
        return local if path.parent.name == "fastmomentum" and path.stem in WATCHED else None

    sys.settrace(begin)
    try:
        action()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def made(**settings):
    """Three arrays in two groups, whose updates are two calls of kernels, after three steps."""
    params = [np.ones(4) for _ in range(3)]
    groups = [{"params": params[:2]}, {"params": params[2:], "weight_decay": 0.1}]
    opt = fm.Momentum(groups, **settings)
    for grads in GRADS[:3]:
        opt.step(list(grads))
    if opt.restart == "function":
        opt.report(1.0)
    return opt


def shown(opt):
    """All that there is of it: numbers, and arrays."""
    saved = opt.state_dict()
    numbers = [saved[name] for name in ("steps", "skipped", "resets", "value", "started")] + [opt.lr, opt.momentum]
    return numbers, np.array([*opt.params, *opt.point, *(slot for state in saved["state"] for slot in state)])


def is_same(one, other):
    return one[0] == other[0] and one[1].tobytes() == other[1].tobytes()


def falling(step):
    return 0.1 * 0.5**step


def uphill(opt):
    opt.step([-0.1 * v for v in opt.velocity])


def other(**settings):
    """A saved run whose calls of kernels are others."""
    params = [np.ones(4) for _ in range(3)]
    opt = fm.Momentum([{"params": params[:2], "clip_value": 0.3}, {"params": params[2:]}], **settings)
    for grads in GRADS[3:7]:
        opt.step(list(grads))
    return opt.state_dict()


CORRECT = {"rule": "classical", "lr": 0.1, "correct": True}
PERIODS = fm.schedules.WarmRestarts(0.1, 0.01, period=4)
SAVED = other(rule="classical", lr=0.02, momentum=0.5, max_norm=1.0, restart=9)
CASES = {
    "lr": (CORRECT, lambda opt: setattr(opt, "lr", 0.05)),
    "reset": (CORRECT | {"lookahead": True}, lambda opt: opt.reset("a test")),
    "idle": (CORRECT | {"lookahead": True, "lr": falling}, lambda opt: opt.step([None, GRADS[4][1], None])),
    "every 4": ({"lr": 0.1, "restart": 4}, lambda opt: opt.step(list(GRADS[4]))),
    "schedule": ({"lr": PERIODS, "restart": "schedule"}, lambda opt: opt.step(list(GRADS[4]))),
    "gradient": ({"lr": 0.1, "restart": "gradient"}, uphill),
    "function": ({"lr": 0.1, "restart": "function"}, lambda opt: opt.report(2.0)),
    "load": (CORRECT, lambda opt: opt.load_state_dict(SAVED)),
}


@pytest.mark.parametrize("case", CASES)
def test_what_a_signal_interrupts_is_done_whole_or_not_at_all(case):
    settings, action = CASES[case]
    ends = []
    for done in (True, False):
        opt = made(**settings)
        if done:
            action(opt)
        now = shown(opt)
        opt.step(list(GRADS[5]))
        ends.append((now, shown(opt)))
    assert not is_same(ends[0][1], ends[1][1])
    wholes = 0
    for at in count():
        opt = made(**settings)
        if not interrupted(partial(action, opt), at):
            break
        if opt._engine.lock.locked():
            continue  # between the last line of a `with` and its end, where no signal is served
        now = shown(opt)
        opt.step(list(GRADS[5]))
        found = [is_same(now, before) and is_same(shown(opt), after) for before, after in ends]
        assert any(found), at
        wholes += found[0]
    assert 0 < wholes < at


@pytest.mark.parametrize("name", ["lr", "momentum"])
def test_what_is_owed_of_a_step_is_done_before_a_setting_is_changed(name, monkeypatch):
    from fastmomentum.backends import host_arrays

    runs = []
    for torn in (False, True):
        opt = made(**CORRECT | {"lr": falling})
        grads = [None, *GRADS[4][1:]]
        with monkeypatch.context() as patch:
            if torn:
                patch.setattr(host_arrays, "copy", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
                with pytest.raises(KeyboardInterrupt):
                    opt.step(grads)
            else:
                opt.step(grads)
        setattr(opt, name, 0.5)
        opt.step(list(GRADS[5]))
        runs.append(shown(opt)[1])
    assert_same_bits(runs[1], runs[0])


def test_a_load_is_refused_before_it_touches_a_step_of_another_thread(monkeypatch):
    opt = made(**CORRECT)
    saved = opt.state_dict()
    monkeypatch.setattr(opt._engine, "finish", lambda: pytest.fail("finished another's step"))
    with opt._engine.lock, pytest.raises(RuntimeError, match="one caller at a time"):
        opt.load_state_dict(saved)
