"""Momentum.convert: the run continues on its path under another rule, with the same bits for dyadic numbers."""

from itertools import permutations

import numpy as np
import pytest

import fastmomentum as fm
from tests.helpers.arrays import gradients
from tests.helpers.functions import falling, halving
from tests.helpers.reference import LOOKAHEADS, assert_all_same_bits, assert_same_bits

BALL = ({"rule": "pytorch"}, {"rule": "classical"}, {"rule": "ema"}, {"rule": "heavy_ball"})
NESTEROV = (
    *({"rule": rule, "nesterov": True} for rule in ("pytorch", "classical", "ema")),
    {"rule": "nesterov_positions"},
)
AHEAD = tuple({"rule": rule, "lookahead": True} for rule in LOOKAHEADS)
PAIRS = [pair for forms in (BALL, NESTEROV, AHEAD) for pair in permutations(forms, 2)]
STEPS = 10
GRADS = gradients((1, 4), STEPS, kind="dyadic")


def named(settings):
    return "_".join(str(value) if name == "rule" else name for name, value in settings.items())


def made(params, **settings):
    return fm.Momentum(params, **{"lr": 0.5, "momentum": 0.5, **settings})


def start(count=1):
    """Return `count` arrays of four numbers."""
    return [np.arange(4.0) + i for i in range(count)]


def walked(params, grads, convert_at=None, target=None, **settings):
    opt, path = made(params, **settings), []
    for step, grad in enumerate(grads):
        if step == convert_at:
            opt = opt.convert(**target)
        opt.step(list(grad))
        path.append(np.array([params, opt.point]))
    return np.array(path), opt


@pytest.mark.parametrize(("source", "target"), PAIRS, ids=named)
def test_convert_continues_the_path(source, target):
    other = {"nesterov": False, **target}  # positions have no form with nesterov=True
    for at in (0, 1, 4):
        found, opt = walked(start(), GRADS, at, other, **source)
        expected, whole = walked(start(), GRADS, **source)
        assert_same_bits(found, expected)
        assert (opt.steps, opt.state is None) == (whole.steps, False)


def test_convert_to_sgd_is_refused_when_there_is_momentum():
    expected, _ = walked(start(), GRADS, rule="sgd")
    found, opt = walked(start(), GRADS, 3, {"rule": "pytorch"}, rule="sgd")
    assert_same_bits(found, expected)
    assert opt.momentum == 0.0
    assert_same_bits(walked(start(), GRADS, 3, {"rule": "sgd"}, momentum=0.0)[0], expected)
    with pytest.raises(ValueError, match="momentum"):
        made(start()).convert("sgd")


@pytest.mark.parametrize("count", [1, 3])
def test_convert_keeps_counters_resets_and_settings(count):
    arrays = start(count)
    opt = made(arrays, skip_nonfinite=True, max_norm=2.0, clip_value=1.5, weight_decay=0.25, restart=100)
    for grad in gradients((count, 4), STEPS, kind="dyadic")[:4]:
        opt.step(list(grad))
    opt.step([np.full(4, np.nan)] * count)
    opt.reset("a test", array=0)
    new = opt.convert("ema")
    assert (new.steps, new.skipped, new.resets, new.restart) == (4, 1, opt.resets, 100)
    assert (new.lr, new.momentum, new.params is opt.params) == (1.0, 0.5, False)
    assert all(mine is theirs for mine, theirs in zip(new.params, arrays, strict=True))
    old, now = opt.state_dict(), new.state_dict()
    same = ("dampening", "nesterov", "weight_decay", "maximize", "clip_value", "max_norm", "lookahead", "restart")
    for before, after in zip(old["groups"], now["groups"], strict=True):
        assert {name: before[name] for name in same} == {name: after[name] for name in same}
    assert now["updates"] == old["updates"]


def test_convert_leaves_the_optimiser_unchanged():
    (p,) = start()
    opt = made(p)
    opt.step(GRADS[0][0])
    before = opt.velocity.copy(), p.copy()
    new = opt.convert("classical")
    assert_same_bits(np.array([opt.velocity, p]), np.array(before))
    assert not np.shares_memory(new.velocity, opt.velocity)
    assert (opt.lr, new.params is p) == (0.5, True)


def test_convert_scales_the_lr_of_each_group():
    arrays = start(3)
    groups = [{"params": arrays[:2]}, {"params": arrays[2:], "lr": 0.5, "momentum": 0.75}]
    opt = fm.Momentum(groups, lr=0.5, momentum=0.5)
    grads = gradients((3, 4), STEPS, kind="dyadic")
    for grad in grads[:3]:
        opt.step(list(grad))
    velocities = [v.copy() for v in opt.velocity]
    new = opt.convert("ema")
    assert new.lr == [1.0, 2.0]
    for v, old, share in zip(new.velocity, velocities, (0.5, 0.5, 0.25), strict=True):
        assert_same_bits(v, old * share)


@pytest.mark.parametrize("dampening", [0.5, 0.75])
def test_convert_expresses_dampening_in_the_lr(dampening):
    source = {"rule": "pytorch", "dampening": dampening}
    expected, _ = walked(start(), GRADS, **source)
    for target in ({"rule": "classical"}, {"rule": "ema"}):
        assert_same_bits(walked(start(), GRADS, 3, target, **source)[0], expected)
    there = made(start(), **source)
    there.step(list(GRADS[0]))
    back = there.convert("classical").convert("pytorch", dampening=dampening)
    assert back.lr == 0.5
    assert_same_bits(back.velocity[0], there.velocity[0])


DECAYED = fm.chain(fm.stages.weight_decay(0.125), "pytorch")


@pytest.mark.parametrize(
    ("source", "target"), [("pytorch", "classical"), ("pytorch", "heavy_ball"), ("classical", "pytorch")]
)
def test_convert_follows_a_schedule_of_lr(source, target):
    settings = {"lr": halving, "rule": source, "correct": source == "classical"}
    expected, _ = walked(start(), GRADS, **settings)
    found, opt = walked(start(), GRADS, 4, {"rule": target}, **settings)
    assert_same_bits(found, expected)
    opt = made(start(), rule=source, correct=source == "classical").convert(target)
    assert opt.state_dict()["groups"][0]["correct"] == (target != "pytorch")


def test_convert_accepts_a_schedule_in_the_scale_of_the_other_rule():
    expected, _ = walked(start(), GRADS, lr=halving)
    target = {"rule": "ema", "lr": lambda step: 2.0 * halving(step)}
    found, _ = walked(start(), GRADS, 4, target, lr=halving)
    assert_same_bits(found, expected)


def test_convert_keeps_the_lookahead_point():
    opt = made(start(), lookahead=True)
    opt.step(list(GRADS[0]))
    assert_same_bits(opt.convert("classical").point[0], opt.point[0])


@pytest.mark.parametrize(
    ("settings", "target", "message"),
    [
        ({}, {"rule": "nesterov_positions"}, "target: expected a rule of Polyak's method"),
        ({}, {"rule": "lion"}, "target: expected one of"),
        ({"lr": halving, "rule": "classical"}, {"rule": "pytorch"}, "lr: expected a number, or correct=True"),
        ({"lr": halving}, {"rule": "ema"}, "lr: expected a value of 2.0 now, as the trajectory needs; got 1.0"),
        ({}, {"rule": "classical", "lr": 0.25}, "lr: expected a value of 0.5 now"),
        ({}, {"rule": "classical", "lr": 0.5 + 1e-9}, "lr: expected a value of 0.5 now"),
        (
            {"momentum": falling},
            {"rule": "ema"},
            "momentum: expected a number, as the conversion from 'pytorch' to 'ema'",
        ),
        (
            {"momentum": falling, "nesterov": True},
            {"rule": "nesterov_positions", "nesterov": False},
            "momentum: expected a number, as the conversion from 'pytorch_nesterov'",
        ),
        ({"dampening": 0.5}, {"rule": "classical"}, "still to have its first, undampened step"),
        ({"lr": 0.0}, {"rule": "classical"}, "lr: expected a finite number > 0"),
        ({"lr": 0.0, "rule": "classical"}, {"rule": "pytorch"}, "lr: expected > 0"),
        ({"decoupled_weight_decay": 0.1}, {"rule": "classical"}, "source: expected at most gradient stages"),
        ({"rule": DECAYED}, {"rule": "classical"}, "rule: expected 'classical' in a chain of the same stages"),
        (
            {"lookahead": True},
            {"rule": "pytorch", "lookahead": False, "nesterov": True},
            "lookahead: expected as it was",
        ),
        ({"nesterov": True}, {"rule": "classical", "lookahead": True, "nesterov": False}, "lookahead: expected as it"),
        (
            {"lookahead": True},
            {"rule": "nesterov_positions", "lookahead": False},
            "lookahead: expected as it was, as the parameters of 'pytorch_lookahead'",
        ),
    ],
    ids=lambda value: named(value) if isinstance(value, dict) else "",
)
def test_convert_refuses_what_would_leave_the_path(settings, target, message):
    opt = made(start(), **settings)
    with pytest.raises(ValueError, match=message):
        opt.convert(**target)


def test_convert_accepts_a_chain_of_the_same_stages():
    expected, _ = walked(start(), GRADS, rule=DECAYED)
    found, _ = walked(
        start(),
        GRADS,
        3,
        {"rule": fm.chain(fm.stages.weight_decay(0.125), "classical")},
        rule=DECAYED,
    )
    assert_same_bits(found, expected)


def test_convert_accepts_other_settings_of_the_optimiser():
    new = made(start()).convert("classical", backend="numpy", skip_nonfinite=True, threads=2, restart=5)
    new.step([np.full(4, np.nan)])
    assert (new.skipped, new.steps, new.restart) == (1, 0, 5)
    assert (new._engine.backend, new._engine.threads) == ("numpy", 2)


@pytest.mark.parametrize("name", ["params", "momentum"])
def test_convert_refuses_params_and_momentum(name):
    with pytest.raises(TypeError, match=f"{name}: expected none, as it stays as it is; got 0.25"):
        made(start()).convert("classical", **{name: 0.25})


def test_load_of_another_rule_advises_to_convert(tmp_path):
    (p,) = start()
    opt = made(p)
    opt.step(GRADS[0][0])
    opt.save(tmp_path / "run.npz")
    with pytest.raises(
        ValueError, match=r"to go on with a run of 'pytorch' as one of 'ema', load it .* opt = opt.convert\('ema'\)"
    ):
        made(p, rule="ema").load_state_dict(opt.state_dict())
    with pytest.raises(ValueError, match=r"opt = opt.convert\('ema'\)"):
        fm.Momentum.load(tmp_path / "run.npz", p, rule="ema")
    again = fm.Momentum.load(tmp_path / "run.npz", p).convert("ema")
    assert_same_bits(again.velocity, opt.convert("ema").velocity)


# A history with everything that changes a velocity: schedules in sequence, groups, look-ahead, resets of all kinds, a
# learning rate set by hand, restarts, arrays without gradient, and changes of the rule.

LIFE = 50


def living(arrays):
    s = fm.schedules
    groups = [
        {"params": arrays[:2], "momentum": s.Linear(0.5, 0.9, steps=20)},
        {"params": arrays[2:], "lr": s.WarmRestarts(0.05, 0.01, period=9).warmup(5, start=0.01), "momentum": 0.75},
    ]
    lr = s.Cosine(0.1, 0.01, steps=30).warmup(8, start=0.01)
    return fm.Momentum(groups, lr=lr, rule="classical", correct=True, lookahead=True, restart="schedule", max_norm=4.0)


def live(opt, step):
    """Do what the history has at this step, and return the optimiser that continues."""
    if step == 12:
        opt.reset("a new layer", group=1)
    if step == 18:
        opt.reset("new rows", array=0, rows=(1, 3))
    if step == 25:
        opt = opt.convert("pytorch")
    if step == 33:
        opt.lr = [fm.schedules.Exponential(0.05, 0.99), 0.02]
    if step == 40:
        opt.lr = 0.02
        opt = opt.convert("classical")
    rng = np.random.default_rng(step)
    grads = [point - 1.0 + 0.1 * rng.standard_normal(point.shape) for point in opt.point]
    opt.step([grads[0], None if step % 7 == 3 else grads[1], grads[2]])
    return opt


def test_whole_history_has_the_same_bits_when_resumed_at_every_step(tmp_path):
    shapes = [(4, 3), (5,), (2, 2)]
    straight, stopped = [np.zeros(shape) for shape in shapes], [np.zeros(shape) for shape in shapes]
    whole, parts, path = living(straight), living(stopped), []
    for step in range(LIFE):
        whole = live(whole, step)
        parts.save(tmp_path / "run.npz")
        parts = live(fm.Momentum.load(tmp_path / "run.npz", stopped), step)
        for ours, theirs in ((straight, stopped), (whole.velocity, parts.velocity), (whole.point, parts.point)):
            assert_all_same_bits(theirs, ours)
        path.append(whole.resets)
        assert parts.resets == whole.resets
        assert (parts.steps, parts.lr, parts.momentum) == (step + 1, whole.lr, whole.momentum)
    assert [reset.scope for reset in whole.resets] == ["group 1", "all", "array 0, rows 1:3", "all", "all"]
    assert np.abs(straight[0] - 1.0).max() < 0.2  # the run made progress


# Averages of the parameters go along, start or end in a conversion, and leave the trajectory as it is.

MEAN, AVERAGE = fm.averaged("pytorch"), fm.averaged("pytorch", 0.75)
LATE = fm.averaged("classical", 0.5, start="first update")


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("pytorch", AVERAGE),
        ("pytorch", MEAN),
        ("pytorch", LATE),
        (AVERAGE, "classical"),
        (MEAN, "heavy_ball"),
        (AVERAGE, LATE),
        (MEAN, AVERAGE),
        (AVERAGE, MEAN),
        (fm.averaged("classical_nesterov", 0.5), fm.averaged("nesterov_positions", 0.5)),
        (fm.averaged(DECAYED, 0.5), DECAYED),
    ],
    ids=lambda rule: str(rule).replace(" ", "_"),
)
def test_convert_to_and_from_an_average_continues_the_path(source, target):
    for at in (0, 1, 4):
        found, _ = walked(start(), GRADS, at, {"rule": target}, rule=source)
        expected, _ = walked(start(), GRADS, rule=source)
        assert_same_bits(found, expected)


@pytest.mark.parametrize("target", [AVERAGE, LATE], ids=["initial", "first update"])
def test_convert_starts_an_average_at_the_present_parameters(target):
    (p,) = start()
    opt = made(p)
    opt.step(GRADS[0][0])
    velocity, now = opt.velocity.copy(), p.copy()
    new = opt.convert(target)
    assert_all_same_bits((new.average, new.velocity), (now, velocity if target is AVERAGE else 0.5 * velocity))
    new.step(GRADS[1][0])
    d = new.average_decay
    assert_same_bits(new.average, d * now + (1 - d) * p)  # dyadic numbers, so that both formulas are exact
    back = new.convert("pytorch")
    assert_all_same_bits((back.state,), (back.velocity,))
    with pytest.raises(AttributeError, match="keeps no average"):
        back.average  # noqa: B018


def test_convert_starts_a_mean_with_the_next_parameters():
    (p,) = start()
    opt = made(p)
    opt.step(GRADS[0][0])
    new = opt.convert(MEAN)
    new.step(GRADS[1][0])
    first = p.copy()
    new.step(GRADS[2][0])
    assert_same_bits(new.average, first + (p - first) / 2)


def test_convert_takes_an_average_along():
    arrays = start(2)
    opt = made(arrays, rule=MEAN)
    for grads in GRADS[:3]:
        opt.step([grads[0], grads[0]])
    means = [average.copy() for average in opt.average]
    same = opt.convert(fm.averaged("ema"))
    assert_all_same_bits(same.average, means)
    assert [state[-1][0] for state in same.state] == [3.0, 3.0]
    exponential = same.convert(AVERAGE)
    assert_all_same_bits(exponential.average, means)
    restarted = exponential.convert(MEAN)
    assert not np.any(restarted.average)
    assert_all_same_bits(exponential.average, means)


def test_convert_drops_the_settings_of_an_average_that_ends():
    (p,) = start()
    opt = made(p, rule=AVERAGE, average_decay=falling)
    assert "average_decay" not in opt.convert("pytorch").groups[0]
    assert opt.convert(fm.averaged("ema", 0.25)).average_decay == falling(0)
    assert opt.convert(fm.averaged("ema", 0.25), average_decay=0.125).average_decay == 0.125


def test_a_state_stage_of_the_user_is_converted_as_an_average_is():
    largest = fm.Stage(
        lambda p, most: np.maximum(p, most),
        kind="state",
        reads=("p", "most"),
        writes=("most",),
        state=(("most", "param"),),
    )
    (p,) = start()
    opt = made(p, rule=fm.chain("pytorch", largest))
    opt.step(np.ones(4))
    opt.step(-np.ones(4))
    most = opt.state[1].copy()
    assert_same_bits(opt.convert(fm.chain("classical", largest)).state[1], most)
    assert_same_bits(opt.convert("classical").velocity, 0.5 * opt.velocity)
    moves = fm.stages.decoupled_weight_decay(0.1)
    with pytest.raises(ValueError, match="expected at most gradient stages around the rule"):
        made(p, rule=fm.chain("pytorch", moves)).convert("classical")


def test_fm_convert_refuses_an_average_with_the_right_advice():
    for sides in ({"source": AVERAGE, "target": "classical"}, {"source": "classical", "target": MEAN}):
        with pytest.raises(ValueError, match=r"expected a rule without an average.*opt.convert"):
            fm.convert(np.ones(2), lr=0.5, momentum=0.5, **sides)


def test_converted_run_keeps_names_and_the_bound_of_its_resets():
    opt = fm.Momentum({"q": np.ones(2), "k": np.zeros(2)}, lr=0.1, keep_resets=2)
    opt.step({"q": np.ones(2), "k": -np.ones(2)})
    found = opt.convert("classical")
    assert [*found.params] == ["q", "k"]
    other = fm.Momentum({"k": np.zeros(2), "q": np.ones(2)}, rule="classical", lr=0.1)
    other.load_state_dict(found.state_dict())
    assert other.velocity["q"].tolist() == [0.1, 0.1]
    for number in range(4):
        found.reset(f"reset {number}")
    assert [reset.reason for reset in found.resets] == ["reset 2", "reset 3"]
    found.add_group({"params": {"v": np.ones(1)}})
    groups = fm.Momentum([{"params": {"a": np.ones(1)}}, {"params": {"b": np.ones(2)}, "lr": 0.5}], lr=0.1)
    assert [*groups.convert("classical").params] == ["a", "b"]
