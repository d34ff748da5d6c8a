"""KeyboardInterrupt at each line of a call that changes an optimiser: the call is done whole or not at all."""

from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import pytest

import fastmomentum as fm
from tests.helpers.arrays import gradients
from tests.helpers.functions import falling
from tests.helpers.interrupts import interrupt_call, is_interrupted
from tests.helpers.reference import assert_same_bits

WATCHED = {"engine", "keeping", "wholeness", "holdings", "compiled", "calls", "progress", "restarts", "checkpoint"}


def is_watched(frame):
    """Return whether the function belongs to a module that changes optimisers."""
    path = Path(frame.f_code.co_filename)
    return path.parent.name == "fastmomentum" and path.stem in WATCHED


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


def contents(opt):
    """Return all numbers and all arrays of an optimiser."""
    saved = opt.state_dict()
    numbers = [saved[name] for name in ("steps", "skipped", "resets", "value", "started")] + [opt.lr, opt.momentum]
    return numbers, np.array([*opt.params, *opt.point, *(slot for state in saved["state"] for slot in state)])


def is_same(one, saved_run):
    return one[0] == saved_run[0] and one[1].tobytes() == saved_run[1].tobytes()


def uphill(opt):
    opt.step([-0.1 * v for v in opt.velocity])


def saved_run(**settings):
    """Return the state of another run, which needs other kernels."""
    params = [np.ones(4) for _ in range(3)]
    opt = fm.Momentum([{"params": params[:2], "clip_value": 0.3}, {"params": params[2:]}], **settings)
    for grads in GRADS[3:7]:
        opt.step(list(grads))
    return opt.state_dict()


CORRECT = {"rule": "classical", "lr": 0.1, "correct": True}
PERIODS = fm.schedules.WarmRestarts(0.1, 0.01, period=4)
SAVED = saved_run(rule="classical", lr=0.02, momentum=0.5, max_norm=1.0, restart=9)
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
def test_interrupted_call_is_done_whole_or_not_at_all(case):
    settings, action = CASES[case]
    ends = []
    for done in (True, False):
        opt = stepped_three_times(**settings)
        if done:
            action(opt)
        now = contents(opt)
        opt.step(list(GRADS[5]))
        ends.append((now, contents(opt)))
    assert not is_same(ends[0][1], ends[1][1])
    wholes = 0
    for at in count():
        opt = stepped_three_times(**settings)
        if not is_interrupted(partial(action, opt), at, is_watched):
            break
        if opt._engine.lock.locked():
            continue  # Python serves no signal between the last line of a `with` and its end
        now = contents(opt)
        opt.step(list(GRADS[5]))
        found = [is_same(now, before) and is_same(contents(opt), after) for before, after in ends]
        assert any(found), at
        wholes += found[0]
    assert 0 < wholes < at


@pytest.mark.parametrize("name", ["lr", "momentum"])
def test_interrupted_step_is_finished_before_a_setting_is_changed(name, monkeypatch):
    from fastmomentum.backends import host_arrays

    runs = []
    for torn in (False, True):
        opt = stepped_three_times(**CORRECT | {"lr": falling})
        grads = [None, *GRADS[4][1:]]
        with monkeypatch.context() as patch:
            if torn:
                patch.setattr(host_arrays, "copy", interrupt_call(host_arrays.copy, 0))
                with pytest.raises(KeyboardInterrupt):
                    opt.step(grads)
            else:
                opt.step(grads)
        setattr(opt, name, 0.5)
        opt.step(list(GRADS[5]))
        runs.append(contents(opt)[1])
    assert_same_bits(runs[1], runs[0])


def test_load_state_dict_is_refused_during_a_step_of_another_thread(monkeypatch):
    opt = stepped_three_times(**CORRECT)
    saved = opt.state_dict()
    monkeypatch.setattr(opt._engine, "finish", lambda: pytest.fail("finished another's step"))
    with opt._engine.lock, pytest.raises(RuntimeError, match="one caller at a time"):
        opt.load_state_dict(saved)
