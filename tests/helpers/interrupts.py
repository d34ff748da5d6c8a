"""KeyboardInterrupt at chosen places, as a signal's handler raises it."""

import sys

import pytest


def is_interrupted(action, at, is_watched, event="line"):
    """Run `action`, raise KeyboardInterrupt in it, and return whether the action came that far.

    `is_watched(frame)` selects the functions whose lines are counted (or whose instructions, if `event` is "opcode").
    The exception is raised before line number `at`, counted from 0.
    """
    before, left = sys.gettrace(), iter(range(at))

    def count(frame, kind, argument):
        if kind == event and next(left, None) is None:
            sys.settrace(before)
            raise KeyboardInterrupt
        return count

    def enter(frame, kind, argument):
        if not is_watched(frame):
            return None
        frame.f_trace_opcodes = event == "opcode"
        return count

    sys.settrace(enter)
    try:
        action()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def interrupt_call(function, at):
    """Return `function` with its call number `at`, counted from 0, replaced by a KeyboardInterrupt."""
    calls = []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == at + 1:
            raise KeyboardInterrupt
        return function(*arguments)

    return interrupted


def tear_step(opt, grads, monkeypatch):
    """Interrupt a step between its two kernels, and interrupt the repair, too, so that half of the step is done."""
    calls = opt._engine._launch._updates
    second = calls.serial[1]

    def torn(grads):
        raise KeyboardInterrupt

    calls.serial[1] = torn
    with monkeypatch.context() as patch:
        patch.setattr(type(calls), "finish", lambda self: None)
        with pytest.raises(KeyboardInterrupt):
            opt.step(grads)
    calls.serial[1] = second
