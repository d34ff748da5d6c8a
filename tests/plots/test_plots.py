"""Pictures show the numbers given or those of the theory, can be read, and leave nothing in pyplot."""

import io
import json
import re
from itertools import combinations
from statistics import median

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import QuadMesh
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure
from matplotlib.image import imread

import fastmomentum as fm
from tests.helpers.paths import ROOT
from tests.helpers.processes import run_python
from tests.helpers.reference import RULES
from tests.helpers.runs import descend

H = np.array([2.0, 20.0])  # of x² + 10y²
STARTS = ((10.0, 1.0), (-10.0, -1.0))
RECORD = json.loads((ROOT / "benchmarks" / "results" / "cpu.json").read_text())


def descent(rule, start):
    lr = 1 / 8 if rule.startswith("ema") else 1 / 16
    opt = fm.Momentum(np.array(start), rule=rule, lr=lr, momentum=0.5, backend="numpy")
    return np.vstack([start, descend(opt, 15, H)])


PATHS = {rule: np.array([descent(rule, start) for start in STARTS]) for rule in RULES}
LOSSES = {rule: (path[0] ** 2 * H / 2).sum(axis=1) for rule, path in PATHS.items()}


def predicted(lr, steps):
    return np.abs(fm.theory.response(lr, 0.81, 1.0, np.arange(steps + 1), rule="heavy_ball"))


def measured(lr, steps):
    opt = fm.Momentum(np.ones(1), rule="heavy_ball", lr=lr, momentum=0.81, backend="numpy")
    return np.append(1.0, np.abs(descend(opt, steps, 1.0)))


def traced(resets=(30, 55)):
    p = np.array(STARTS[0])
    opt = fm.Momentum(p, lr=0.01, backend="numpy")
    trace = opt.trace()
    for step in range(80):
        if step in resets:
            opt.reset("the data changed")
        opt.step(H * p)
    return trace


MEASURED = {"critical damping": measured(0.01, 120), "lr twice as large": measured(0.02, 120)}
PREDICTED = {"critical damping": predicted(0.01, 120), "lr twice as large": predicted(0.02, 120)}
TIMES = {rule: 1e-3 * (1 + i) * np.arange(16) for i, rule in enumerate(RULES)}

PICTURES = {
    "trajectories": lambda ax: fm.plots.trajectories((2, 20), PATHS, ax),
    "losses": lambda ax: fm.plots.losses(LOSSES, ax),
    "losses over time": lambda ax: fm.plots.losses(LOSSES, ax, times=TIMES),
    "errors": lambda ax: fm.plots.errors(MEASURED, ax, bound=0.9),
    "against theory": lambda ax: fm.plots.against_theory(MEASURED, PREDICTED, ax, rate=0.9),
    "rates, pytorch": lambda ax: fm.plots.rates("pytorch", ax, kappa=10.0),
    "rates, Nesterov": lambda ax: fm.plots.rates("nesterov_positions", ax, kappa=10.0),
    "rates, ema": lambda ax: fm.plots.rates("ema", ax),
    "throughput": lambda ax: fm.plots.throughput(RECORD, ax),
    "throughput, elements": lambda ax: fm.plots.throughput(RECORD, ax, unit="elements/s", threads=2),
    "motion": lambda ax: fm.plots.motion(traced(), ax),
}
LABELS = {
    "trajectories": ("first parameter", "second parameter"),
    "losses": ("step t", "loss"),
    "losses over time": ("time [s]", "loss"),
    "errors": ("step t", "‖e_t‖ / ‖e_0‖"),
    "against theory": ("step t", "‖e_t‖ / ‖e_0‖"),
    "rates, pytorch": ("learning rate times curvature, αh", "momentum β"),
    "rates, Nesterov": ("learning rate times curvature, αh", "momentum β"),
    "rates, ema": ("learning rate times curvature, αh", "momentum β"),
    "throughput": ("size [float32 elements], 1 thread", "throughput [GB/s]"),
    "throughput, elements": ("size [float32 elements], 2 threads", "throughput [elements/s]"),
    "motion": ("step t", "norm, in the run's own units"),
}
SIZES = ((8.0, 4.8), (5.0, 3.6))


def lines(axis):
    return {line.get_label(): line for line in axis.lines}


def entries(axis):
    return [text.get_text() for text in axis.get_legend().get_texts()]


def png(figure):
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def boxes(figure, renderer):
    """Return the boxes of every axis label, title and legend."""
    found = {}
    for i, axis in enumerate(figure.axes):
        found[f"title {i}"] = axis.title.get_window_extent(renderer)
        for name in ("xaxis", "yaxis"):
            side = getattr(axis, name)
            found[f"{name} label {i}"] = side.label.get_window_extent(renderer)
        if axis.get_legend() is not None:
            found["legend"] = axis.get_legend().get_window_extent(renderer)
    return {name: box for name, box in found.items() if box.width and box.height}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PICTURES)
def test_every_picture_can_be_read(name, size):
    figure = Figure(figsize=size, layout="constrained")
    axis = PICTURES[name](figure.add_subplot())
    axis.set_title("What it is of")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    found = boxes(figure, canvas.get_renderer())
    for (one, box), (other, another) in combinations(found.items(), 2):
        assert not box.overlaps(another), (one, other)
    for each in figure.axes:  # the legend covers no data
        assert not found["legend"].overlaps(each.get_window_extent())
        for label in (*each.get_xticklabels(), *each.get_yticklabels()):
            assert not label.get_text() or not found["legend"].overlaps(label.get_window_extent())
    drawn = figure.get_tightbbox(canvas.get_renderer())  # in inches, of all that is drawn
    assert drawn.x0 >= 0
    assert drawn.y0 >= 0
    assert drawn.x1 <= size[0]
    assert drawn.y1 <= size[1]
    width, height = canvas.get_width_height()
    assert axis.get_window_extent().width > 0.3 * width
    assert axis.get_window_extent().height > 0.3 * height


@pytest.mark.parametrize("name", PICTURES)
def test_every_picture_has_its_labels_and_is_drawn_the_same_again(name):
    first, second = PICTURES[name](None), PICTURES[name](None)
    assert (first.get_xlabel(), first.get_ylabel()) == LABELS[name]
    assert len(entries(first)) == len(set(entries(first))) > 0
    image = png(first.figure)
    assert image == png(second.figure)
    pixels = imread(io.BytesIO(image))[..., :3]
    assert pixels.shape[:2] == (480, 800)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20
    assert isinstance(first.figure, Figure)


@pytest.mark.parametrize("name", PICTURES)
def test_every_picture_goes_on_the_axis_it_is_given(name):
    figure = Figure(figsize=(14.0, 5.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    assert PICTURES[name](right) is right
    assert not left.has_data()
    assert right.has_data()
    figure = Figure(figsize=(8.0, 5.0))  # nobody makes room: the legend stays within
    axis = PICTURES[name](figure.add_subplot())
    FigureCanvasAgg(figure).draw()
    box = axis.get_legend().get_window_extent()
    assert axis.get_window_extent().containsx(box.x0)
    assert axis.get_window_extent().containsy(box.y0)


def test_nothing_is_left_with_pyplot_and_importing_needs_no_matplotlib():
    code = """
import sys, fastmomentum as fm
assert "matplotlib" not in sys.modules and "plots" not in fm.__all__ and "plots" in dir(fm)
axis = fm.plots.losses({"a": [1.0, 0.5]})
assert "matplotlib.pyplot" not in sys.modules
axis.figure.canvas.draw()
assert "matplotlib.pyplot" not in sys.modules
"""
    run_python(code, "-W", "error")


def test_without_matplotlib_the_error_says_what_to_install():
    code = """
import sys
sys.modules["matplotlib"] = None
from fastmomentum import *
import fastmomentum as fm
try:
    fm.plots
except ImportError as error:
    assert 'pip install "fastmomentum[cli]"' in str(error), error
    assert error.name == "matplotlib", error.name
else:
    raise AssertionError("imported")
"""
    run_python(code, "-W", "error")


def test_styles_differ_in_colour_and_dashes():
    axis = fm.plots.losses({f"run {i}": [1.0, 0.5 / (1 + i)] for i in range(35)})
    looks = {(line.get_color(), str(line._dash_pattern)) for line in axis.lines}
    assert len(looks) == 35
    for one, other in zip(axis.lines, axis.lines[1:], strict=False):
        assert one.get_color() != other.get_color()
        assert one.get_linestyle() != other.get_linestyle()


def test_trajectories_are_the_paths_upon_the_function_s_contours():
    axis = fm.plots.trajectories((2, 20), PATHS)
    by_label = {}
    for line in axis.lines:
        by_label.setdefault(line.get_label(), []).append(line.get_xydata())
    for rule in RULES:
        np.testing.assert_array_equal(by_label[rule], PATHS[rule])
    np.testing.assert_array_equal(by_label["start"][0], np.array(STARTS * len(RULES)))
    np.testing.assert_array_equal(by_label["minimum"][0], [[0.0, 0.0]])
    assert entries(axis) == [*RULES, "start", "minimum"]
    (contours,) = [each for each in axis.collections if isinstance(each, QuadContourSet)]
    assert len(contours.levels) == 11
    seen = 0
    for level, path in zip(contours.levels, contours.get_paths(), strict=True):
        x, y = path.vertices.T
        seen += len(x)
        # linear between points of the grid: off by at most h·(spacing)²/8 along either axis
        spacing = np.diff([axis.get_xlim(), axis.get_ylim()], axis=1)[:, 0] / 200
        np.testing.assert_allclose(x**2 + 10 * y**2, level, rtol=0, atol=(H * spacing**2 / 8).sum())
    assert seen > 1000
    for limits, points in zip((axis.get_xlim(), axis.get_ylim()), PATHS["sgd"].reshape(-1, 2).T, strict=True):
        assert limits[0] < points.min()
        assert limits[1] > points.max()


def test_trajectories_take_any_function_and_leave_gaps_where_a_run_left_the_numbers():
    path = np.array([[1.0, 2.0], [np.inf, 1.0], [np.nan, 0.0], [0.5, 0.5]])
    axis = fm.plots.trajectories(lambda x, y: np.log(x) + y**4, {"gone": path}, minimum=(0.1, 0.0))
    np.testing.assert_array_equal(lines(axis)["gone"].get_xydata(), path)
    np.testing.assert_array_equal(lines(axis)["minimum"].get_xydata(), [[0.1, 0.0]])
    png(axis.figure)
    path[1] = 1e308, -1e308
    png(fm.plots.trajectories((2, 20), {"gone": path}).figure)
    flat = fm.plots.trajectories(lambda x, y: 0 * x, {"still": [[0.0, 0.0]]})
    assert "minimum" not in lines(flat)
    assert not any(isinstance(each, QuadContourSet) for each in flat.collections)
    png(flat.figure)


def test_losses_are_the_numbers_given_over_steps_or_seconds():
    for times in (None, TIMES):
        axis = fm.plots.losses(LOSSES, times=times)
        assert axis.get_yscale() == "log"
        assert entries(axis) == list(LOSSES)
        for label, values in LOSSES.items():
            x, y = lines(axis)[label].get_data()
            np.testing.assert_array_equal(y, values)
            np.testing.assert_array_equal(x, np.arange(16) if times is None else TIMES[label])


def test_losses_leave_gaps_and_may_differ_in_length():
    curves = {"diverged": [1.0, np.inf, np.nan], "arrived": [1.0, 1e-8, 0.0, 0.0, 0.0], "begun": [1]}
    axis = fm.plots.losses(curves)
    for label, values in curves.items():
        np.testing.assert_array_equal(lines(axis)[label].get_ydata(), values)
    png(axis.figure)
    low, high = axis.get_ylim()
    assert 1e-10 < low < 1e-8
    assert 1.0 < high < 1e2


def test_errors_have_their_bounds_beside_them():
    axis = fm.plots.errors(MEASURED, bound=0.9)
    assert entries(axis) == [*MEASURED, "ρ^t, ρ = 0.9"]
    np.testing.assert_allclose(lines(axis)["ρ^t, ρ = 0.9"].get_ydata(), 0.9 ** np.arange(121), rtol=1e-13)
    for label, values in MEASURED.items():
        np.testing.assert_array_equal(lines(axis)[label].get_ydata(), values)
    assert entries(fm.plots.errors(MEASURED)) == list(MEASURED)
    bound = [2.0, 1.0, 0.5]
    np.testing.assert_array_equal(lines(fm.plots.errors(MEASURED, bound=bound))["bound"].get_ydata(), bound)
    axis = fm.plots.errors(MEASURED, bound={"certificate": bound, "ours": [1.0]})
    assert entries(axis) == [*MEASURED, "certificate", "ours"]


def test_measured_dots_lie_on_predicted_lines_and_above_the_powers_of_the_rate():
    axis = fm.plots.against_theory(MEASURED, PREDICTED, rate=0.9)
    found = {label: line.get_ydata() for label, line in lines(axis).items()}
    # 120 steps, each a few roundings of errors up to 1
    np.testing.assert_allclose(
        found["critical damping, measured"], found["critical damping, predicted"], rtol=0, atol=120 * 4 * 2.3e-16
    )
    np.testing.assert_array_equal(found["lr twice as large, measured"], MEASURED["lr twice as large"])
    assert found["critical damping, measured"][-1] > 12 * found["ρ^t, ρ = 0.9"][-1]  # the factor of t
    assert len(entries(axis)) == 5


@pytest.mark.parametrize("rule", ["pytorch", "ema", "nesterov_positions", "quasi_hyperbolic"])
def test_the_contour_of_radius_one_is_where_learning_rates_stop_being_stable(rule):
    hyper = {"nu": 0.7} if rule == "quasi_hyperbolic" else {}
    axis = fm.plots.rates(rule, **hyper)
    (contour,) = [each for each in axis.collections if isinstance(each, QuadContourSet)]
    np.testing.assert_array_equal(contour.levels, [1.0])
    (path,) = contour.get_paths()
    ah, beta = path.vertices.T
    edge = axis.get_xlim()[1]
    stable = fm.theory.max_stable_lr(beta, 1.0, rule=rule, **hyper)
    assert len(ah) > 100
    assert np.ptp(beta) > 0.5
    inside = beta < 0.995  # where ρ is 1 to within what is drawn, its contour lies anywhere in a cell
    np.testing.assert_allclose(ah[inside], stable[inside], rtol=0, atol=2 * edge / 401)


def test_the_shades_are_the_spectral_radius():
    axis = fm.plots.rates("pytorch", widest=4.4)
    (mesh,) = [each for each in axis.collections if isinstance(each, QuadMesh)]
    ah, beta = np.asarray(mesh.get_coordinates()).transpose(2, 0, 1)
    wanted = fm.theory.spectral_radius(ah, beta, 1.0, rule="pytorch")
    np.testing.assert_array_equal(mesh.get_array(), wanted)
    assert axis.get_xlim() == (0.0, 4.4)
    assert [each.get_ylabel() for each in axis.figure.axes] == ["momentum β", "spectral radius ρ"]


@pytest.mark.parametrize("rule", ["pytorch", "classical", "heavy_ball", "ema", "nesterov_positions"])
def test_the_curve_of_critical_damping_is_critical_and_the_tuned_line_ends_on_it(rule):
    axis = fm.plots.rates(rule, kappa=16.0)
    (line,) = [line for label, line in lines(axis).items() if label.startswith("critical")]
    ah, beta = line.get_data()
    if rule in ("pytorch", "classical", "heavy_ball"):
        np.testing.assert_allclose(beta, (1 - np.sqrt(ah)) ** 2, atol=1e-14)
        assert line.get_label() == "critical damping, β = (1 − √(αh))²"
        assert ah.max() > 3.99
    inside = (beta > 0.01) & (beta < 0.99)
    regimes = fm.theory.regime(ah[inside], beta[inside], 1.0, rule=rule)
    assert (regimes == "critical").mean() > 0.95  # the rest by rounding
    tuning = fm.theory.optimal(1.0, 16.0, rule=rule)
    x, y = lines(axis)["optimal tuning for κ = 16, αm to αL"].get_data()
    np.testing.assert_array_equal(x, [tuning.lr, 16.0 * tuning.lr])
    np.testing.assert_array_equal(y, tuning.momentum)
    assert axis.get_xlim()[1] > x[1]
    assert np.hypot(ah - x[0], beta - y[0]).min() < 0.01


def test_a_rule_with_no_method_behind_it_has_its_plane_without_a_critical_curve():
    assert entries(fm.plots.rates("quasi_hyperbolic", nu=0.7)) == ["ρ = 1: limit of stability"]
    assert entries(fm.plots.rates("pytorch", widest=0.5)) == ["critical damping, β = (1 − √(αh))²"]


@pytest.mark.parametrize(("threads", "unit", "dtype"), [(1, "GB/s", "float32"), (2, "elements/s", "float64")])
def test_throughput_has_the_record_s_numbers(threads, unit, dtype):
    axis = fm.plots.throughput(RECORD, threads=threads, unit=unit, dtype=dtype)
    assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
    cases = [
        case for case in RECORD["cases"] if case["case"].startswith(f"{dtype}, n = ") and case["threads"] == threads
    ]
    assert len(cases) >= 3
    for name in ("fastmomentum", "torch fused", "optax, jitted"):
        x, y = lines(axis)[name].get_data()
        np.testing.assert_array_equal(x, [case["elements"] for case in cases])
        amount = [case["moved"] / 1e9 if unit == "GB/s" else case["elements"] for case in cases]
        np.testing.assert_allclose(y, [a / median(c["runs"][name]) for a, c in zip(amount, cases, strict=True)])
    assert entries(axis)[0] == "fastmomentum"
    assert entries(axis)[-1] == "ceiling: fastest stream"
    assert ("NumPy in place" in entries(axis)) == (threads == 1)


def test_throughput_takes_a_device_s_record_and_some_of_the_sides():
    case = {"case": "n = 1,000,000", "moved": 20_000_000, "seconds": {"fastmomentum": 1e-5, "a copy": 8e-6}}
    overhead = {"case": "launch overhead", "moved": 0, "seconds": {"fastmomentum": 1e-5}}
    axis = fm.plots.throughput({"cases": [overhead, case]})
    np.testing.assert_allclose(lines(axis)["fastmomentum"].get_data(), [[1_000_000], [2000.0]])
    assert axis.get_xlabel() == "size [float32 elements]"
    assert entries(fm.plots.throughput({"cases": [case]}, sides=["a copy"])) == ["a copy"]


def test_motion_shows_what_the_trace_has():
    trace = traced()
    axis = fm.plots.motion(trace)
    found = lines(axis)
    np.testing.assert_array_equal(found["velocity ‖v‖"].get_data(), [trace.steps, trace.velocity])
    np.testing.assert_array_equal(found["gradient ‖g‖"].get_data(), [trace.steps, trace.gradient])
    (beside,) = [each for each in axis.figure.axes if each is not axis]
    np.testing.assert_array_equal(beside.lines[0].get_ydata(), trace.cosine)
    assert beside.get_ylabel() == "cos∠(v, g), from −1 to 1"
    resets = [line.get_xdata()[0] for line in axis.lines if line.get_label() == "reset"]
    assert resets == [reset.step for reset in trace.resets] == [30, 55]
    assert entries(axis)[-1] == "reset"
    assert "reset" not in entries(fm.plots.motion(trace.groups[0]))
    assert "reset" not in entries(fm.plots.motion(traced(resets=())))


def test_motion_of_a_run_that_stands_still_has_a_plain_axis():
    opt = fm.Momentum(np.zeros(2), lr=0.1, backend="numpy")
    trace = opt.trace()
    opt.step(np.zeros(2))
    axis = fm.plots.motion(trace)
    assert axis.get_yscale() == "linear"
    png(axis.figure)


ONE = {"a": [1.0, 0.5]}
CASES = {"cases": [{"case": "float32, n = 10", "threads": 1, "moved": 200, "runs": {"fastmomentum": [1e-6]}}]}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda p: p.losses(ONE, "axis"),
            TypeError,
            "ax: expected a matplotlib axis, or None .*; got 'axis'",
        ),
        (lambda p: p.losses([1.0]), TypeError, "curves: expected a mapping from labels to arrays; got a list of 1"),
        (lambda p: p.losses({}), ValueError, "curves: expected one entry at least; got an empty mapping"),
        (lambda p: p.losses({1: [1.0]}), TypeError, "curves: expected labels that are strings; got 1"),
        (lambda p: p.losses({"_a": [1.0]}), ValueError, "curves: expected labels .*; got '_a'"),
        (lambda p: p.losses({"a": ["1"]}), TypeError, r"curves\['a'\]: expected an array of numbers; got a list of 1"),
        (lambda p: p.losses({"a": [[1], [2, 3]]}), TypeError, r"curves\['a'\]: expected an array of numbers"),
        (lambda p: p.losses({"a": []}), ValueError, r"curves\['a'\]: expected one number or more .*; got shape \(0,\)"),
        (lambda p: p.losses({"a": [1.0, -2.0]}), ValueError, r"curves\['a'\]: expected numbers >= 0, .*; got -2.0"),
        (lambda p: p.losses({"a": [0.0, np.inf]}), ValueError, r"curves\['a'\]: expected a finite number > 0"),
        (lambda p: p.losses(ONE, times={"b": [0, 1]}), ValueError, r"times: expected the labels of curves, \['a'\]"),
        (lambda p: p.losses(ONE, times={"a": [0]}), ValueError, r"times\['a'\]: expected 2 numbers .*; got shape \(1,"),
        (lambda p: p.errors(ONE, bound=-1.0), ValueError, "bound: expected a finite number > 0; got -1.0"),
        (lambda p: p.errors(ONE, bound="no"), TypeError, "bound: expected a finite number > 0; got 'no'"),
        (lambda p: p.errors(ONE, bound=[-1.0]), ValueError, "bound: expected numbers >= 0"),
        (lambda p: p.against_theory(ONE, {"b": [1.0]}), ValueError, r"predicted: expected the labels of measured"),
        (lambda p: p.against_theory(ONE, ONE, rate=0), ValueError, "rate: expected a finite number > 0; got 0"),
        (lambda p: p.trajectories("xy", {"a": [[1, 2]]}), TypeError, "function: expected a callable .*; got 'xy'"),
        (lambda p: p.trajectories((1, 0), {"a": [[1, 2]]}), ValueError, r"function\[1\]: expected a finite number > 0"),
        (lambda p: p.trajectories((1, 1), {"a": [1, 2]}), ValueError, r"paths\['a'\]: expected shape .*; got \(2,\)"),
        (lambda p: p.trajectories((1, 1), {"a": [[1, 2]]}, minimum=1), ValueError, "minimum: expected two finite"),
        (lambda p: p.trajectories(max, {"a": [[np.nan, 2]]}), ValueError, "paths: expected a finite point somewhere"),
        (lambda p: p.trajectories(lambda x, y: 1, {"a": [[1, 2]]}), ValueError, r"function: .*; got \(\)"),
        (lambda p: p.rates("no such"), ValueError, "rule must be one of"),
        (lambda p: p.rates("signum"), ValueError, "rule: expected one that is linear"),
        (lambda p: p.rates("pytorch", kappa=0.5), ValueError, "kappa: expected a finite number >= 1; got 0.5"),
        (lambda p: p.rates("pytorch", widest=0.0), ValueError, "widest: expected a finite number > 0; got 0.0"),
        (lambda p: p.throughput([]), TypeError, "record: expected a benchmark's"),
        (lambda p: p.throughput({"cases": []}), ValueError, "record: expected cases of one array of float32; got 0"),
        (lambda p: p.throughput({"cases": [{"case": "n = 10"}]}), ValueError, "record: .*: 'moved'"),
        (lambda p: p.throughput(CASES, unit="m/s"), ValueError, "unit: expected one of GB/s, elements/s; got 'm/s'"),
        (lambda p: p.throughput(CASES, threads=3), ValueError, r"threads: expected one of the record's, \[1\]; got 3"),
        (lambda p: p.throughput(CASES, sides="torch"), TypeError, "sides: expected a sequence of strings; got 'torch'"),
        (
            lambda p: p.throughput(CASES, sides=["torch"]),
            ValueError,
            "sides: expected some of fastm.*; got 'torch'",
        ),
        (lambda p: p.motion(3), TypeError, "trace: expected a Trace, or one of its groups; got 3"),
        (
            lambda p: p.motion(fm.Trace()),
            ValueError,
            "trace: expected a trace with one step at least; got a trace without",
        ),
    ],
)
def test_a_refused_argument_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call(fm.plots)


def test_a_refused_argument_leaves_the_axis_as_it_was():
    axis = Figure().add_subplot()
    for call in (
        lambda: fm.plots.losses({"a": [-1.0]}, axis),
        lambda: fm.plots.trajectories(lambda x, y: 1, {"a": [[1, 2]]}, axis),
        lambda: fm.plots.rates("signum", axis),
        lambda: fm.plots.throughput(CASES, axis, threads=2),
        lambda: fm.plots.motion(fm.Trace(), axis),
    ):
        with pytest.raises(ValueError, match=re.compile(".")):
            call()
    assert not axis.has_data()
    assert not axis.get_xlabel()
