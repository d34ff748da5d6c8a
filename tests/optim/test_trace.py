"""fm.Trace: its numbers against a loop by hand, its bits on every backend, and no cost without it."""

import copy
import math
import signal

import numpy as np
import pytest

import fastmomentum as fm
from tests.helpers.arrays import arrays_of, gradients, gradients_of, random_arrays
from tests.helpers.copies import every_copy, pickled
from tests.helpers.interrupts import is_interrupted
from tests.helpers.memory import assert_allocates_nothing
from tests.helpers.reference import BACKENDS, assert_same_bits, ordered_sum, rest, update

NUMBERS = ("velocity", "gradient", "cosine", "step", "slope", "left", "size")
SIZES = (0, 1, 31, 33, 1009, 70_000)


def norm(x):
    return math.sqrt(math.fsum(float(a) ** 2 for a in x))


def dot(x, y):
    return math.fsum(float(a) * float(b) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize("rule", ["pytorch", "classical_nesterov", "ema", "heavy_ball", "nesterov_positions"])
def test_a_trace_has_the_numbers_of_a_loop_by_hand(rule):
    (p,) = random_arrays(50, 1, seed=1)
    q, s = p.copy(), np.copy(rest(rule, p))
    opt = fm.Momentum(p, rule=rule, lr=0.1, momentum=0.5)
    trace = opt.trace()
    for i, g in enumerate(gradients(50, 6)):
        opt.step(g)
        v = s - q if rule in ("heavy_ball", "nesterov_positions") else s
        after, s = update(rule, q, s, g, np.float64, lr=0.1, momentum=0.5)
        moved = after - q
        # sums of 50 products, each rounded a few times
        assert trace.velocity[i] == pytest.approx(norm(v), rel=1e-13)
        assert trace.gradient[i] == pytest.approx(norm(g), rel=1e-13)
        assert trace.step[i] == pytest.approx(norm(moved), rel=1e-13)
        assert trace.slope[i] == pytest.approx(dot(g, moved), rel=1e-11)
        assert trace.size[i] == pytest.approx(norm(q), rel=1e-13)
        if i:
            assert trace.cosine[i] == pytest.approx(dot(v, g) / norm(v) / norm(g), abs=1e-13)
        q = after
    assert np.isnan(trace.cosine[0])
    assert_same_bits(trace.left[:-1], trace.velocity[1:])
    np.testing.assert_array_equal(trace.steps, np.arange(6))
    np.testing.assert_array_equal(trace.lr, 0.1)
    np.testing.assert_array_equal(trace.momentum, 0.5)


def recorded(backend, threads, dtype, rule, **settings):
    params = arrays_of(SIZES, dtype, seed=1)
    half = [{"params": params[:3]}, {"params": params[3:], "lr": 0.05}]
    opt = fm.Momentum(half, rule=rule, lr=0.1, backend=backend, threads=threads, **settings)
    trace = opt.trace()
    for grads in gradients_of(SIZES, 4, dtype, absent=lambda step, i: step % 2 and i in (1, 4)):
        opt.step(grads)
    return trace


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("rule", "settings", "dtype", "threads"),
    [
        ("pytorch", {"dampening": 0.5, "max_norm": 1.0, "weight_decay": 0.1}, np.float64, (1, 2)),
        ("classical", {"lookahead": True, "skip_nonfinite": True}, np.float32, (1,)),
        ("heavy_ball", {}, np.float32, (1, 2)),
        ("aggmo", {"maximize": True}, np.float64, (1,)),
    ],
    ids=["pytorch", "lookahead", "heavy_ball", "aggmo"],
)
def test_a_trace_has_the_same_bits_on_every_backend_at_any_number_of_threads(rule, settings, dtype, threads):
    cpu = [("cpu", number) for number in threads]
    traces = [recorded(*how, dtype, rule, **settings) for how in (("numpy", 1), *cpu)]
    for other in traces[1:]:
        for name in NUMBERS:
            assert_same_bits(getattr(other, name), getattr(traces[0], name))
            for mine, theirs in zip(other.groups, traces[0].groups, strict=True):
                assert_same_bits(getattr(mine, name), getattr(theirs, name))
    assert all(trace.written == [] for trace in traces)


def test_a_group_s_numbers_are_those_of_its_arrays_that_had_a_gradient():
    a, b, c = np.array([3.0]), np.array([4.0]), np.array([12.0])
    opt = fm.Momentum([{"params": [a, b]}, {"params": c, "lr": 0.5}], lr=0.25)
    trace = opt.trace()
    opt.step([a.copy(), b.copy(), c.copy()])
    opt.step([None, np.array([2.0]), None])
    first, second = trace.groups
    np.testing.assert_array_equal(first.gradient, [5.0, 2.0])
    np.testing.assert_array_equal(second.gradient, [12.0, np.nan])
    np.testing.assert_array_equal(trace.gradient, [13.0, 2.0])
    np.testing.assert_array_equal(second.lr, 0.5)
    assert np.isnan(trace.lr).all()
    assert first.step[0] == 0.25 * 5.0


def test_trace_records_the_clipped_step():
    p = np.zeros(2)
    opt = fm.Momentum(p, lr=1.0, max_norm=1.0)
    trace = opt.trace()
    opt.step(np.array([30.0, 40.0]))
    assert trace.gradient[0] == 50.0
    assert trace.step[0] == pytest.approx(1.0, abs=1e-7)
    assert trace.left[0] == norm(opt.velocity)


def test_trace_negates_the_gradient_when_maximising():
    opts = [fm.Momentum(np.ones(3), lr=0.1, maximize=up, backend="numpy") for up in (False, True)]
    traces = [opt.trace() for opt in opts]
    for opt, sign in zip(opts, (1.0, -1.0), strict=True):
        for g in ([1.0, 2.0, 3.0], [-1.0, 2.0, 1.0]):
            opt.step(sign * np.array(g))
    assert_same_bits(traces[0].cosine, traces[1].cosine)
    assert_same_bits(traces[0].slope, traces[1].slope)


@pytest.mark.parametrize("backend", BACKENDS)
def test_traced_run_has_the_bits_of_an_untraced_run(backend):
    g = gradients(100, 9)
    p, q = np.ones(100), np.ones(100)
    watched, plain = (fm.Momentum(x, lr=0.1, backend=backend) for x in (p, q))
    trace = None
    for i in range(9):
        if i == 3:
            trace = watched.trace(2)
        if i == 7:
            trace.stop()
        watched.step(g[i])
        plain.step(g[i])
    assert_same_bits(p, q)
    np.testing.assert_array_equal(trace.steps, [3, 5])
    one, other = watched._engine, plain._engine
    assert one.observer is None
    assert getattr(one._fast, "__qualname__", "") == getattr(other._fast, "__qualname__", "")
    trace.stop()


def test_steps_allocate_nothing_after_a_trace_was_stopped():
    p, g = np.ones(1000), np.zeros(1000)
    opt = fm.Momentum(p, lr=0.1)
    trace = opt.trace()
    opt.step(g)
    trace.stop()

    def run(times):
        for _ in range(times):
            opt.step(g)

    assert_allocates_nothing(run)
    assert len(trace) == 1


def test_a_second_trace_ends_the_first_and_a_copy_is_not_traced():
    p = np.ones(3)
    opt = fm.Momentum(p, lr=0.1)
    first = opt.trace()
    opt.step(p.copy())
    second = opt.trace()
    opt.step(p.copy())
    first.stop()
    opt.step(p.copy())
    assert (len(first), len(second)) == (1, 2)
    twin = copy.deepcopy(opt)
    twin.step(np.ones(3))
    assert len(second) == 2
    assert twin._engine.observer is None


def test_trace_does_not_record_skipped_and_refused_steps():
    p = np.ones(3)
    opt = fm.Momentum(p, lr=0.1, skip_nonfinite=True)
    trace = opt.trace()
    opt.step(np.ones(3))
    opt.step(np.full(3, np.nan))
    with pytest.raises(ValueError, match="shape"):
        opt.step(np.ones(4))
    opt.step(np.ones(3))
    np.testing.assert_array_equal(trace.steps, [0, 1])
    assert trace.written == []


def test_a_trace_by_hand_has_the_numbers_of_the_optimiser_s():
    p, q, v = np.ones(7), np.ones(7), np.zeros(7)
    opt = fm.Momentum(p, lr=0.1, momentum=0.5)
    trace, by_hand = opt.trace(), fm.Trace()
    for step in range(5):
        g = np.linspace(-1, 1, 7) + step
        opt.step(g)
        by_hand.record(q, v, g, lr=0.1, momentum=0.5)
        fm.step(q, v, g, lr=0.1, momentum=0.5)
    for name in NUMBERS:
        assert_same_bits(getattr(trace, name), getattr(by_hand, name))
    assert by_hand.written == []
    by_hand.reset("a new start")
    by_hand.record(q, 0 * v, g, lr=0.1)
    assert by_hand.written == []
    assert [reset.reason for reset in by_hand.resets] == ["a new start"]


def test_a_trace_is_read_only_and_says_what_it_holds():
    p = np.ones(3)
    opt = fm.Momentum(p, lr=0.1)
    trace = opt.trace()
    assert "no step yet" in repr(trace)
    opt.step(np.ones(3))
    opt.reset("because")
    assert "1 steps, 0 to 0, 1 resets" in repr(trace) or "0 resets" in repr(trace)
    with pytest.raises(ValueError, match="read-only"):
        trace.velocity[0] = 1
    with pytest.raises(AttributeError, match="loss"):
        trace.loss  # noqa: B018
    for every in (0, 1.5, True):
        with pytest.raises((TypeError, ValueError), match="every"):
            opt.trace(every)


@every_copy
def test_copy_of_a_trace_keeps_what_was_recorded(make_copy):
    p = np.ones(3)
    opt = fm.Momentum(p, lr=0.1)
    trace = opt.trace()
    opt.step(p.copy())
    opt.reset("because")
    twin = make_copy(trace)
    twin.stop()
    opt.step(p.copy())
    opt.reset("after the copy")
    assert (len(trace), len(twin)) == (2, 1)
    assert [reset.reason for reset in twin.resets] == ["because"]
    assert_same_bits(twin.velocity, trace.velocity[:1])


def raise_interrupt(number, frame):
    raise KeyboardInterrupt


def slowly(step):
    return 0.1 / (1 + step)


GRADS = gradients((2, 5), 8)
RUNS = {
    "cpu": {"lr": 0.1},
    "numpy": {"lr": 0.1, "backend": "numpy"},
    "a schedule": {"lr": slowly},
    "limits": {"lr": slowly, "max_norm": 1.0, "skip_nonfinite": True, "backend": "numpy"},
    "a restart": {"lr": slowly, "restart": "gradient"},
    "positions": {"lr": 0.1, "rule": "heavy_ball", "backend": "numpy"},
}


def new_run(**settings):
    """Return an optimiser of two arrays after two traced steps, and its trace."""
    opt = fm.Momentum([np.ones(5), np.ones(5)], **settings)
    trace = opt.trace()
    for grads in GRADS[:2]:
        opt.step(list(grads))
    return opt, trace


@pytest.fixture
def raising_signal():
    before = signal.signal(signal.SIGUSR1, raise_interrupt)
    yield signal.SIGUSR1
    signal.signal(signal.SIGUSR1, before)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a block that the signal ended may hold it


@pytest.mark.parametrize("then", ["step", "reset", "load"])
@pytest.mark.parametrize("run", RUNS)
def test_step_that_a_signal_kept_from_the_record_is_a_gap_and_no_write(run, then, raising_signal):
    gaps = 0
    for at in range(0, 10_000, 3 if (run, then) == ("cpu", "step") else 7):
        opt, trace = new_run(**RUNS[run])
        if not is_interrupted(lambda opt=opt: opt.step(list(GRADS[2])), at, number=raising_signal):
            break
        if opt._engine.lock.locked():
            continue  # Python serves no signal between the last line of a `with` and its end
        lost = [2] if opt.steps == 3 and len(trace) == 2 else []
        assert trace.gaps == lost
        assert ("1 more not recorded" in repr(trace)) == bool(lost)
        if then == "reset":
            opt.reset("a test")
        if then == "load":
            opt.load_state_dict(opt.state_dict())
            lost = []  # the load begins the record anew
        for grads in GRADS[3:5]:
            opt.step(list(grads))
        assert trace.written == []
        assert fm.diagnose(trace).kinds == ["gap"] * len(lost)
        assert trace.gaps == lost
        assert len({*trace.steps.tolist()}) == len(trace)
        starts = [start.step for start in trace.starts]
        assert starts == [0, *[3 for _ in lost]] if then != "load" else len(starts) == 2
        opt.state[0][:] = 7.0
        opt.step(list(GRADS[5]))
        assert len(trace.written) == 1
        gaps += len(lost)
    assert at > 20
    assert gaps > 0 or then == "load"


@pytest.mark.parametrize("every", [1, 2, 3])
def test_gap_is_told_of_recorded_steps_alone_and_outlives_the_run(every, monkeypatch):
    opt = fm.Momentum(np.ones(5), lr=0.1)
    trace = opt.trace(every)
    opt.step(np.ones(5))
    with monkeypatch.context() as patch:
        patch.setattr(fm.Trace, "_add", lambda *_: raise_interrupt(0, None))
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                opt.step(np.ones(5))
    expected = [*range(every, 4, every)]
    assert trace.gaps == pickled(trace).gaps == copy.deepcopy(trace).gaps == expected
    finding, *others = fm.diagnose(trace)
    assert (finding.kind, finding.steps, others) == ("gap", (expected[0], expected[-1]), [])
    opt.step(np.ones(5))
    assert trace.steps.tolist() == [0, 4]
    trace.stop()
    del opt
    assert trace.gaps == expected


def test_trace_of_a_loop_by_hand_can_be_recorded_again_after_a_signal(raising_signal):
    for at in range(0, 10_000, 5):
        trace, p, v = fm.Trace(), np.ones(5), np.zeros(5)
        for g in GRADS[:3, 0]:
            if is_interrupted(lambda g=g, trace=trace: trace.record(p, v, g, lr=0.1), at, number=raising_signal):  # noqa: B023
                trace.record(p, v, g, lr=0.1)
            else:
                at = -1
            fm.step(p, v, g, lr=0.1)
        assert trace.written == []
        np.testing.assert_array_equal(trace.steps, range(3))
        if at < 0:
            break
    assert at < 0


@pytest.mark.parametrize("fails_at", range(1, 5))
def test_function_that_raises_leaves_no_gap_and_no_step_without_a_record(fails_at):
    calls, trace, refused = [], None, 0

    def lr(step):
        calls.append(step)
        if trace is not None and len(calls) == fails_at:
            raise ZeroDivisionError
        return 0.1

    opt = fm.Momentum(np.ones(3), lr=lr)
    opt.step(np.ones(3))
    trace = opt.trace()
    calls.clear()
    for _ in range(4):
        try:
            opt.step(np.ones(3))
        except ZeroDivisionError:
            refused += 1
    assert refused == (fails_at != 2)  # the second call asks for the lr of the step before, and may fail
    assert len(trace) == opt.steps - 1 == 4 - refused
    assert trace.gaps == trace.written == []


@pytest.mark.parametrize("rule", ["lamb", "fire", "schedule_free_adamw"])
def test_trace_of_a_rule_with_sums_records_the_steps_that_are_done(rule):
    grads, traces = [*gradients_of(((40,),), 4, np.float32)], []
    for backend in BACKENDS:
        p = np.ones(40, np.float32)
        opt = fm.Optimizer(p, rule, lr=0.1, backend=backend)
        traces.append(opt.trace())
        for (grad,) in grads:
            before = p.copy()
            opt.step(grad)
            moved = ordered_sum((p - before).astype(np.float64) ** 2)
            assert traces[-1].step[-1] == math.sqrt(moved)
    assert traces[0].written == traces[1].written == []
    np.testing.assert_array_equal(traces[0].step, traces[1].step)
