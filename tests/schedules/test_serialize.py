"""Schedules in saved states, as plain JSON."""

import json
import pickle
from dataclasses import dataclass, fields

import numpy as np
import pytest

import fastmomentum as fm
from fastmomentum import schedules
from tests.helpers.arrays import gradients_of, random_arrays
from tests.helpers.functions import falling
from tests.helpers.ids import label
from tests.helpers.reference import assert_all_same_bits

EVERY = {
    "chebyshev lr": schedules.Chebyshev(0.1, 7.0, rule="classical").lr,
    "chebyshev momentum": schedules.Chebyshev(0.1, 7.0, rule="pytorch").momentum,
    "constant": schedules.Constant(0.1),
    "cosine": schedules.Cosine(1 / 3, 1e-300, steps=40),
    "cycle": schedules.Cycle(0.1, 1.0, 0.0, steps=7, rise=3 / 7),
    "exponential": schedules.Exponential(0.1, 0.97),
    "linear": schedules.Linear(0.5, 0.9, steps=2**62),
    "nesterov": schedules.Nesterov(),
    "simple": schedules.NesterovSimple(),
    "step": schedules.Step(0.1, 0.5, every=3),
    "sutskever": schedules.Sutskever(0.995, every=4),
    "restarts": schedules.WarmRestarts(0.1, 0.01, period=5, growth=2),
    "one cycle": schedules.one_cycle(0.3, steps=50).momentum,
    "then": schedules.Cosine(0.2, 0.1, steps=9)
    .warmup(5)
    .then(schedules.Chebyshev(1.0, 9.0).lr.then(schedules.Constant(-0.0), after=3), after=20),
}


@dataclass(frozen=True)
class Mine(schedules.Schedule):
    """A schedule of a user, which the package does not know."""

    def _value(self, t):
        return 0.1

    def _formula(self, t):
        return "0.1"


def plain(values):
    """Return whether the values are numbers, strings and dicts of these, which a reader without the package knows."""
    return all(type(key) is str for key in values) and all(
        plain(value) if isinstance(value, dict) else type(value) in (int, float, str) for value in values.values()
    )


@pytest.mark.parametrize("name", EVERY)
def test_a_schedule_comes_back_from_json_equal_and_with_the_same_values(name):
    packed = schedules.pack(EVERY[name])
    assert plain(packed)
    assert packed["schedule"] == type(EVERY[name]).__name__
    back = schedules.unpack(json.loads(json.dumps(packed)))
    assert back == EVERY[name]
    assert str(back) == str(EVERY[name])
    assert [back(t) for t in range(60)] == [EVERY[name](t) for t in range(60)]


def test_every_class_of_the_package_is_packed_here():
    classes = {
        value for value in vars(schedules).values() if isinstance(value, type) and issubclass(value, schedules.Schedule)
    }
    assert classes - {schedules.Schedule} == {type(schedule) for schedule in EVERY.values()}
    assert schedules.unpack(schedules.pack(schedules.Chebyshev(1.0, 9.0))) == schedules.Chebyshev(1.0, 9.0)
    assert not any(field.name == "schedule" for kind in classes for field in fields(kind))


def test_pack_accepts_long_sequences():
    long = schedules.Constant(0.5)
    for _ in range(300):
        long = schedules.Constant(0.25).then(long, after=1)
    assert schedules.unpack(json.loads(json.dumps(schedules.pack(long)))) == long
    assert (long(299), long(300)) == (0.25, 0.5)


@pytest.mark.parametrize(
    "value", [Mine(), Mine().then(schedules.Constant(0.1), after=1), falling, 0.1, None], ids=label
)
def test_pack_refuses_schedules_of_other_packages(value):
    assert not schedules.is_packable(value)
    with pytest.raises(TypeError, match=r"schedule: expected one made of fastmomentum\.schedules alone"):
        schedules.pack(value)


LINEAR = {"schedule": "Linear", "start": 0.5, "end": 0.9, "steps": 100}
MALFORMED = {
    "unknown class": ({"schedule": "eval", "of": "1"}, "one of Chebyshev, .*WarmRestarts"),
    "abstract class": ({"schedule": "Schedule"}, "one of Chebyshev"),
    "no class": ({"start": 0.5}, "one of Chebyshev"),
    "class that is no name": (LINEAR | {"schedule": ["Linear"]}, "one of Chebyshev"),
    "unknown field": (LINEAR | {"more": 1}, r"Linear: expected the fields \(start, end, steps\); got .*more"),
    "field of the class": (LINEAR | {"ranges": {}}, "expected the fields"),
    "missing field": ({"schedule": "Linear", "start": 0.5, "end": 0.9}, r"got \(start, end\)"),
    "missing default": ({"schedule": "Sutskever", "limit": 0.9}, r"expected the fields \(limit, every\)"),
    "text": (LINEAR | {"start": "0.5"}, "Linear: start: expected a finite number; got '0.5'"),
    "truth": (LINEAR | {"steps": True}, "steps: expected a whole number from 1"),
    "infinite": (LINEAR | {"end": float("inf")}, "end: expected a finite number"),
    "out of range": (LINEAR | {"steps": 0}, "steps: expected a whole number from 1"),
    "number for a schedule": (
        {"schedule": "Then", "first": 0.1, "second": LINEAR, "after": 1},
        "first: expected a Sch",
    ),
    "nested": ({"schedule": "Then", "first": LINEAR, "second": LINEAR | {"end": None}, "after": 1}, "end: expected"),
    "schedule for a number": (LINEAR | {"start": LINEAR}, "start: expected a finite number"),
    "schedule for a Chebyshev": ({"schedule": "ChebyshevLR", "of": LINEAR}, "of: expected a Chebyshev"),
    "spectrum": (
        {"schedule": "ChebyshevLR", "of": {"schedule": "Chebyshev", "m": 9.0, "L": 1.0, "rule": "classical"}},
        "m <= L",
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_unpack_refuses_a_malformed_dict_with_the_reason(case):
    packed, reason = MALFORMED[case]
    with pytest.raises(ValueError, match=reason):
        schedules.unpack(packed)


@pytest.mark.parametrize("packed", [LINEAR["schedule"], ["Linear"], None])
def test_unpack_refuses_what_is_no_dict(packed):
    with pytest.raises(ValueError, match="schedule: expected a dict whose 'schedule'"):
        schedules.unpack(packed)


@pytest.mark.parametrize("name", ["lr", "momentum"])
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        *MALFORMED.values(),
        (schedules.pack(schedules.Chebyshev(1.0, 9.0)), "expected a schedule of one number; got Chebyshev"),
        ("0.1", "expected a number, None or a schedule's dict; got '0.1'"),
        (True, "expected a number, None or a schedule's dict; got True"),
        ([0.1], "got a list of 1"),
    ],
)
def test_a_malformed_setting_is_refused_before_anything_is_changed(name, value, reason, tmp_path):
    opt = fm.Momentum(np.zeros(3), lr=schedules.Constant(0.1))
    opt.step(np.ones(3))
    before = pickle.dumps(opt.state_dict())
    saved = fm.Momentum(np.zeros(3), lr=0.5).state_dict()
    saved["groups"][0][name] = value
    with pytest.raises(ValueError, match=rf"groups\[0\]: {name}: .*{reason}"):
        opt.load_state_dict(saved)
    assert pickle.dumps(opt.state_dict()) == before


@pytest.mark.parametrize(
    "settings",
    [
        {"lookahead": True, "dampening": 0.25},
        {"rule": "classical", "nesterov": True, "weight_decay": 0.05},
        {"rule": "nesterov_positions"},
    ],
    ids=["look-ahead", "folded", "positions"],
)
def test_a_run_with_schedules_resumed_at_every_step_has_the_same_bits_with_nothing_passed_again(settings, tmp_path):
    def make():
        params = random_arrays(4, 3, np.float32, seed=1)
        groups = [
            {"params": params[:2], "lr": schedules.Cosine(0.1, 0.001, steps=30).warmup(10, start=0.01)},
            {"params": params[2:], "momentum": schedules.Sutskever(0.95, every=8)},
        ]
        shared = {
            "lr": schedules.WarmRestarts(0.05, 0.01, period=7),
            "momentum": schedules.one_cycle(0.1, steps=40).momentum,
        }
        return fm.Momentum(groups, **shared, **settings)

    straight, resumed = make(), make()
    rates = set()
    for t, grads in enumerate(gradients_of([4] * 3, 50, np.float32, absent=lambda step, i: i == 1 and step < 7)):
        if t in (11, 30):
            for opt in (straight, resumed):
                opt.reset(f"at {t}")
        resumed.save(tmp_path / "run.npz")
        resumed = fm.Momentum.load(tmp_path / "run.npz", [p.copy() for p in resumed.params])
        assert (resumed.lr, resumed.momentum) == (straight.lr, straight.momentum)
        rates.add((*straight.lr, *straight.momentum))
        straight.step(grads)
        resumed.step(grads)
        assert_all_same_bits(resumed.params + resumed.point, straight.params + straight.point)
    assert len(rates) > 45  # so that a step taken with another's lr or momentum would show
    assert (resumed.steps, resumed.resets) == (50, straight.resets)


def test_saved_file_can_be_read_with_numpy_and_json_alone(tmp_path):
    fm.Momentum(np.zeros(3), lr=schedules.Step(0.1, 0.5, every=30), momentum=schedules.Linear(0.5, 0.9, steps=10)).save(
        tmp_path / "a.npz"
    )
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        meta = json.loads(arrays["meta"].tobytes())
    assert meta["schema"] == 4
    assert meta["groups"][0]["lr"] == {"schedule": "Step", "start": 0.1, "factor": 0.5, "every": 30}
    assert meta["groups"][0]["momentum"] == {"schedule": "Linear", "start": 0.5, "end": 0.9, "steps": 10}
    assert meta["functions"] == {"lr": [None], "momentum": [None]}


def test_a_schedule_passed_again_replaces_the_saved_one(tmp_path):
    path, p, lr = tmp_path / "run.npz", np.zeros(3), schedules.Step(0.1, 0.5, every=30)
    fm.Momentum(p, lr=lr).save(path)
    for again in (None, schedules.Step(0.1, 0.5, every=30)):
        assert fm.Momentum.load(path, p, lr=again).groups[0]["lr"] in (0.1, lr)
    assert fm.Momentum.load(path, p, lr=schedules.Step(0.7, 0.5, every=31)).lr == 0.7
    assert fm.Momentum.load(path, p, lr=falling).lr == falling(0)
    assert fm.Momentum.load(path, p, momentum=schedules.Constant(0.5)).momentum == 0.5


def test_load_gives_functions_to_the_groups_that_need_them(tmp_path):
    path, params, lr = tmp_path / "run.npz", [np.zeros(2) for _ in range(4)], schedules.Constant(0.2)
    values = (lr, falling, 0.3, falling)
    fm.Momentum([{"params": p, "lr": value} for p, value in zip(params, values, strict=True)], lr=0.5).save(path)
    for again in (falling, [None, falling, None, falling], [lr, falling, None, falling]):
        assert fm.Momentum.load(path, params, lr=again).lr == [0.2, 0.1, 0.3, 0.1]
    for wrong in (None, [None, falling, None, None]):
        with pytest.raises(TypeError, match="lr: expected"):
            fm.Momentum.load(path, params, lr=wrong)
    fm.Momentum([{"params": p, "lr": value} for p, value in zip(params[:2], (lr, 0.3), strict=True)], lr=0.5).save(path)
    for again in (None, [lr, None], [None, None]):
        assert fm.Momentum.load(path, params[:2], lr=again).lr == [0.2, 0.3]
    assert fm.Momentum.load(path, params[:2], lr=lr).lr == [0.2, 0.2]


def test_load_needs_a_users_schedule_again(tmp_path):
    path, p = tmp_path / "run.npz", np.zeros(3)
    fm.Momentum(p, lr=Mine().then(schedules.Constant(0.2), after=4)).save(path)
    with pytest.raises(
        TypeError,
        match="lr: expected the function of the step that the saved run had in group 0, or another value; got None",
    ):
        fm.Momentum.load(path, p)
    assert fm.Momentum.load(path, p, lr=Mine()).lr == 0.1


def test_a_file_of_schema_1_is_read_where_its_schedule_is_passed_again():
    def make(lr):
        return fm.Momentum(np.zeros(3), lr=lr)

    lr = schedules.Exponential(0.4, 0.5)
    saved = make(lr).state_dict()
    saved |= {"schema": 1, "steps": 2, "functions": {"lr": [0], "momentum": [None]}}
    saved["groups"][0]["lr"] = None
    opt = make(lr)
    opt.load_state_dict(saved)
    assert (opt.lr, opt.steps) == (0.1, 2)
    with pytest.raises(ValueError, match="lr was a function of the step"):
        make(0.25).load_state_dict(saved)


def test_load_state_dict_replaces_a_schedule():
    saved = fm.Momentum(np.zeros(3), lr=schedules.Exponential(0.4, 0.5)).state_dict()
    for other in (0.7, falling, schedules.Constant(3.0)):
        opt = fm.Momentum(np.zeros(3), lr=other)
        opt.load_state_dict(saved)
        opt.step(np.ones(3))
        assert opt.lr == 0.2
