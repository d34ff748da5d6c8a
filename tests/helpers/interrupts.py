"""Ctrl-C at chosen places of a call: a real SIGINT, served by Python's own handler."""

import signal
import sys
from itertools import count
from pathlib import Path
from zlib import crc32

import fastmomentum
from tests.helpers.fuzz import is_long

PACKAGE = str(Path(fastmomentum.__file__).parent)


def places(name, step=3):
    """Return the numbers of the lines to interrupt a call at: every third one, or every line with --long.

    The first of them depends on the name of the call.
    """
    return count() if is_long() else count(crc32(name.encode()) % step, step)


def is_interrupted(action, at, event="line", number=signal.SIGINT):
    """Run `action`, send a signal before line `at` of the package's code, and return whether it came that far.

    The signal is SIGINT unless `number` is another, whose handler raises KeyboardInterrupt, too. Lines are counted from
    0 through all functions of the package that run (instructions, if `event` is "opcode"). The KeyboardInterrupt that
    the signal raises, there or later, ends here.
    """
    before, left = sys.gettrace(), iter(range(at))
    sent = False

    def count(frame, kind, argument):
        nonlocal sent
        if kind == event and next(left, None) is None:
            sys.settrace(before)
            sent = True
            signal.raise_signal(number)
        return count if not sent else None

    def enter(frame, kind, argument):
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes = event == "opcode"
        return count

    sys.settrace(enter)
    try:
        action()
    except KeyboardInterrupt:
        assert sent
    finally:
        sys.settrace(before)
    return sent
