"""User code that raises in the middle of a call: nothing has been written, and the optimiser goes on as before.

Each call is repeated with the k-th call of user code in it raising, for every k. User code is never called after the
first write, so that it may look at the arrays and counts at each call.
"""

import copy
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest

import fastmomentum as fm
from tests.helpers.arrays import gradients

GRADS = gradients((3, 4), 6)


class Raised(BaseException):
    """An exception that no ``except Exception`` stops."""


class Alarm:
    """Count the calls of user code, check that nothing has been written, and raise at one of them."""

    def __init__(self):
        self.at, self.calls, self.opt = None, 0, None

    def arm(self, opt, at, error):
        self.opt, self.before, self.at, self.calls, self.error = opt, contents(opt), at, 0, error
        self.is_late = False

    def disarm(self):
        self.at = None

    def __call__(self):
        if self.at is None:
            return
        self.is_late |= contents(self.opt) != self.before
        self.calls += 1
        if self.calls > self.at:
            raise self.error("on purpose")


ALARM = Alarm()


def contents(opt):
    """Return all counts and all bytes of an optimiser, without a call of user code."""
    arrays = [*opt.params, *opt.point, *[slot for slots in opt._engine.state.slots for slot in slots]]
    numbers = opt.steps, opt.skipped, opt.resets, opt._engine.state.value, list(opt._engine.state.updates)
    return numbers, b"".join(array.tobytes() for array in arrays), len(opt.groups)


@dataclass(frozen=True)
class Ringing(fm.schedules.Schedule):
    """A schedule of the user's own, whose every method may raise."""

    start: float

    def _value(self, t):
        ALARM()
        return self.start / (1 + t % 3)

    def _formula(self, t):
        ALARM()
        return f"{self.start}/(1 + {t} mod 3)"

    def begins(self, step):
        ALARM()
        return step % 3 == 0

    @property
    def keeps_velocity(self):
        ALARM()
        return False

    def __eq__(self, other):
        ALARM()
        return isinstance(other, Ringing) and self.start == other.start

    __hash__ = None


class Number:
    """A number of another library, whose conversion may raise."""

    def __init__(self, value):
        self.value = value

    def __float__(self):
        ALARM()
        return self.value


def falling(step):
    ALARM()
    return 0.1 / (1 + step)


def as_number(step):
    return Number(0.1 / (1 + step))


def on_and_off(step):
    ALARM()
    return 0.5 if step % 2 else 0.0


def limit(step):
    ALARM()
    return None if step % 2 else 1.0


def halved(lr):
    ALARM()
    return lr / 2


def by_step(lr, step):
    ALARM()
    return lr / step


class Grads(list):
    """Gradients in a sequence of the user's own."""

    def __iter__(self):
        for grad in super().__iter__():
            ALARM()
            yield grad


class Tensor:
    """An array of another library, which says where its memory is by a method that may raise."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        ALARM()
        return self.values

    def __dlpack__(self, **settings):
        ALARM()
        return self.values.__dlpack__(**settings)

    def __dlpack_device__(self):
        ALARM()
        return self.values.__dlpack_device__()


class Saved(dict):
    """A saved state whose entries may raise when they are read."""

    def __getitem__(self, name):
        ALARM()
        return super().__getitem__(name)

    def get(self, name, default=None):
        ALARM()
        return super().get(name, default)


def custom(p, v, g, half, mu):
    v = mu * v + g
    return p - half * v, v


OWN = fm.Rule(custom, hyper=("half", "momentum"), derived={"half": halved})
COUNTED = fm.Rule(custom, hyper=("half", "momentum"), derived={"half": by_step})


def ringing(p, v, g, lr, mu):
    ALARM()
    v = mu * v + g
    return p - lr * v, v


RINGING = fm.Rule(ringing)

OPTIMISERS = {
    "a schedule": {"lr": falling},
    "an own schedule": {"lr": Ringing(0.1)},
    "a number of another library": {"lr": as_number},
    "look-ahead": {"rule": "classical", "lr": falling, "lookahead": True},
    "state that follows lr": {"rule": "classical", "lr": Ringing(0.1), "correct": True},
    "restart by schedule": {"lr": Ringing(0.1), "momentum": fm.schedules.Constant(0.5), "restart": "schedule"},
    "restart, look-ahead": {"rule": "ema", "lr": falling, "restart": 2, "lookahead": True},
    "restart by gradient": {"lr": falling, "restart": "gradient"},
    "restart by function": {"lr": falling, "restart": "function"},
    "options that go on and off": {"lr": falling, "decoupled_weight_decay": on_and_off, "max_norm": limit},
    "momentum that goes on and off": {"lr": 0.1, "momentum": on_and_off},
    "a derived number": {"rule": OWN, "lr": falling, "clip_norm": 1.0},
    "a derived number of the step": {"rule": COUNTED, "lr": 0.1, "max_norm": 1.0},
    "an average": {"rule": fm.averaged("pytorch", 0.5), "average_decay": on_and_off, "lr": 0.1},
    "a scaled chain": {"rule": fm.chain(fm.stages.scale(0.5), OWN), "lr": falling, "max_norm": limit},
    "a rule's own function": {"rule": RINGING, "lr": falling},
    "compiled": {"lr": falling, "backend": "cpu", "max_norm": limit},
}


def new(**settings):
    """Return an optimiser of three arrays in two groups."""
    params = [np.ones(4) for _ in range(3)]
    return fm.Momentum([{"params": params[:2]}, {"params": params[2:]}], **{"backend": "numpy"} | settings)


def started(**settings):
    opt = new(**settings)
    for grads in GRADS[:2]:
        opt.step(list(grads))
    return opt


def step(opt, grads=tuple(GRADS[3])):
    opt.step(list(grads))


def assign_in_group(opt, name, value):
    opt.groups[1][name] = value


def assign(opt, name, value):
    setattr(opt, name, value)


def copied(opt):
    twin = copy.deepcopy(opt)
    twin.step(list(GRADS[3]))


def saved_run(settings):
    opt = new(**settings)
    opt.step(list(GRADS[4]))
    return opt.state_dict()


CALLS = {
    "step": step,
    "step, gradients missing": partial(step, grads=(None, GRADS[3][1], None)),
    "step, the other gradients missing": partial(step, grads=(GRADS[3][0], None, GRADS[3][2])),
    "step, a sequence of the user's own": lambda opt: opt.step(Grads(GRADS[3])),
    "step, arrays of another library": lambda opt: opt.step([Tensor(grad) for grad in GRADS[3]]),
    "step, uphill": lambda opt: opt.step([-grad for grad in GRADS[1]]),
    "assign a function": partial(assign, name="lr", value=falling),
    "assign an own schedule": partial(assign, name="lr", value=Ringing(0.5)),
    "assign a number": partial(assign, name="lr", value=0.25),
    "assign a number of another library": partial(assign, name="lr", value=Number(0.25)),
    "assign to one group": partial(assign_in_group, name="weight_decay", value=on_and_off),
    "assign an own number to each": partial(assign, name="lr", value=[Number(0.25), falling]),
    "assign max_norm": partial(assign, name="max_norm", value=limit),
    "assign restart": partial(assign, name="restart", value=3),
    "add_group": lambda opt: opt.add_group({"params": np.ones(2), "lr": falling}),
    "replace": lambda opt: opt.replace(1, np.ones(4)),
    "reset": lambda opt: opt.reset("a test"),
    "reset of an array": lambda opt: opt.reset("a test", array=1),
    "reset of rows": lambda opt: opt.reset("a test", array=1, rows=2),
    "report": lambda opt: opt.report(1.0) if opt.restart == "function" else None,
    "report of a rise": lambda opt: (opt.report(1.0), opt.report(2.0)) if opt.restart == "function" else None,
    "steps": partial(assign, name="steps", value=7),
    "convert": lambda opt: opt.convert(OTHER[rule]) if (rule := opt.groups[0]["rule"]) in OTHER else None,
    "state_dict": lambda opt: opt.state_dict(),
    "copy": copied,
    "repr": repr,
    "read": lambda opt: [dict(group) for group in opt.groups],
    "trace": lambda opt: opt.trace().stop(),
}

OTHER = {"pytorch": "classical", "classical": "pytorch"}
READING = ("convert", "state_dict", "copy", "repr", "read", "trace")
"""The calls that change nothing."""


NO_CONVERSION = ("look-ahead", "options that go on and off")
"""The optimisers whose run has no exact conversion."""

CASES = [
    (name, call, error)
    for name in OPTIMISERS
    for call in CALLS
    for error in ((ValueError, Raised) if call in ("step", "state_dict", "read") else (Raised,))
    if call != "convert" or name not in NO_CONVERSION
]


def raise_at_each_call(opt, action, error):
    """Repeat an action, the k-th call of user code raising, until it is done; return whether it got over an error."""
    at = -1
    while True:
        at += 1
        before = contents(opt)
        ALARM.arm(opt, at, error)
        try:
            action(opt)
        except (Raised, ValueError, TypeError):
            assert ALARM.calls > at, "refused without an error in user code"
            is_changed = contents(opt) != before
            assert not is_changed
        else:
            return ALARM.calls > at
        finally:
            ALARM.disarm()
            assert not ALARM.is_late, "user code is called after the first write"


@pytest.mark.parametrize(("name", "call", "error"), CASES)
def test_calls_change_nothing_when_user_code_raises(name, call, error):
    opt, twin = started(**OPTIMISERS[name]), started(**OPTIMISERS[name])
    if raise_at_each_call(opt, CALLS[call], error):  # the call can do without the value that it asked for
        return
    if call not in READING:
        CALLS[call](twin)
    is_same = contents(opt) == contents(twin)
    assert is_same
    more = [np.ones(2)] if call == "add_group" else []
    for one in (opt, twin):
        one.step([*GRADS[5], *more])
    is_same = contents(opt) == contents(twin)
    assert is_same


def started_rows(**settings):
    opt = fm.SparseRows(np.ones((6, 2)), backend="numpy", **settings)
    for touched in ([1], [2, 3]):
        opt.step(touched, np.ones((len(touched), 2)))
    return opt


def row_contents(opt):
    arrays = [opt.param, *opt.state, opt._seen]
    return opt.steps, b"".join(array.tobytes() for array in arrays)


ROWS = {
    "a function": {"lr": falling},
    "an own schedule": {"lr": Ringing(0.1), "momentum": Ringing(0.5)},
    "a number of another library": {"lr": as_number},
    "a derived number": {"rule": OWN, "lr": falling},
}
ROW_CALLS = {
    "step": lambda opt: opt.step([1, 4], np.ones((2, 2))),
    "read": lambda opt: opt.read([0, 5]),
    "flush": lambda opt: opt.flush(),
    "change": lambda opt: opt.change(lr=falling, momentum=Ringing(0.5)),
    "assign": lambda opt: setattr(opt, "lr", Number(0.5)),
    "state_dict": lambda opt: opt.state_dict(),
    "load_state_dict": lambda opt: opt.load_state_dict(opt.state_dict()),
    "repr": repr,
}


@pytest.mark.parametrize("call", ROW_CALLS)
@pytest.mark.parametrize("name", ROWS)
def test_rows_change_nothing_when_user_code_raises(name, call, monkeypatch):
    opt, twin = (started_rows(**ROWS[name]) for _ in range(2))
    monkeypatch.setattr(f"{__name__}.contents", row_contents)
    raise_at_each_call(opt, ROW_CALLS[call], Raised)
    ROW_CALLS[call](twin)
    for one in (opt, twin):
        one.step([0, 4], np.full((2, 2), 0.5))
        one.flush()
    is_same = contents(opt) == contents(twin)
    assert is_same


class Entries(list):
    """Entries of a saved state whose reading may raise."""

    def __iter__(self):
        for entry in super().__iter__():
            ALARM()
            yield entry


@pytest.mark.parametrize("key", ["resets", "updates", "torch_groups"])
def test_load_reads_the_entries_of_a_state_before_it_writes(key):
    opt = started(lr=0.1)
    opt.reset("a test", array=0)
    saved = opt.state_dict() | {"torch_groups": [{"a": 1}], "steps": 50}
    saved[key] = Entries(saved[key])
    for at in range(100):
        before = contents(opt)
        ALARM.arm(opt, at, Raised)
        try:
            opt.load_state_dict(saved)
        except Raised:
            is_changed = contents(opt) != before
            assert not is_changed
        else:
            break
        finally:
            ALARM.disarm()
    assert 0 < at < 99
    assert opt.steps == 50
