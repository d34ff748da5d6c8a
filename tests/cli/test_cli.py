"""The command ``fastmomentum``: its output, its exit status, and errors of users in one line."""

import json
import os
import re
import signal
import subprocess
import sys
import tomllib
import types

import numpy as np
import pytest

import fastmomentum as fm
from fastmomentum import cli, theory
from fastmomentum.cli import commands, demo, info, parser, probes, problem, tune
from fastmomentum.cli.problem import Problem
from fastmomentum.cli.terminal import Failure
from fastmomentum.cli.validation import formulas, report
from tests.helpers.paths import ROOT


@pytest.fixture
def tuned(command):
    """Return a function that runs ``tune`` and returns its JSON, and the tunings by rule and kind."""

    def run(*arguments):
        status, out, err = command("tune", *arguments, "--json")
        assert (status, err) == (0, "")
        told = json.loads(out)
        rows = {(row["rule"], row["tuning"]): row for row in told["tunings"]}
        assert len(rows) == len(told["tunings"])
        return told, rows

    return run


@pytest.fixture
def least_squares(tmp_path):
    """Write a least-squares problem to files, and return it."""
    rng = np.random.default_rng(7)
    a, b = rng.standard_normal((40, 6)) * np.geomspace(1.0, 4.0, 6), rng.standard_normal(40)
    np.savez(tmp_path / "data.npz", A=a, b=b)
    table = np.column_stack([a, b])
    np.savetxt(tmp_path / "data.csv", table, delimiter=",", fmt="%.17g", header="p,q,r,s,t,u,b", comments="")
    np.savetxt(tmp_path / "plain.csv", table, delimiter=",", fmt="%.17g")
    return a, b


def steps_taken(hessian, pull, row):
    """Return how many steps of pytorch's formula from 0 bring the error to 1e-8 of its start."""
    solution, x, v, steps = np.linalg.solve(hessian, pull), np.zeros_like(pull), np.zeros_like(pull), 0
    while np.linalg.norm(x - solution) > 1e-8 * np.linalg.norm(solution):
        v = (row["momentum"] or 0.0) * v + (hessian @ x - pull)
        x, steps = x - row["lr"] * v, steps + 1
    return steps


def refused(command, *arguments):
    """Check that the command refuses its arguments in one line, and return the line."""
    status, out, err = command(*arguments)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    return err


def test_tune_gives_the_printed_formulas_for_a_condition_number(tuned):
    told, rows = tuned("--kappa", 100, "--tol", 1e-6)
    assert (told["m"], told["L"], told["kappa"], told["source"]) == (1.0, 100.0, 100.0, "kappa")
    polyak = {"lr": (2 / 11) ** 2, "momentum": (9 / 11) ** 2, "rate": 9 / 11}
    root = np.sqrt(301)
    expected = {
        ("sgd", "optimal"): {"lr": 2 / 101, "rate": 99 / 101},
        ("sgd", "standard"): {"lr": 0.01, "rate": 0.99},
        ("heavy_ball", "optimal"): polyak,
        ("pytorch", "optimal"): polyak,
        ("ema", "optimal"): polyak | {"lr": (2 / 11) ** 2 / (1 - (9 / 11) ** 2)},
        ("pytorch_nesterov", "optimal"): {"lr": 4 / 301, "momentum": (root - 2) / (root + 2), "rate": 1 - 2 / root},
        ("pytorch_nesterov", "standard"): {"lr": 0.01, "momentum": 9 / 11, "rate": 0.9},
    }
    for key, values in expected.items():
        for name, value in values.items():
            assert rows[key][name] == pytest.approx(value, rel=1e-12), (key, name)
    assert rows["sgd", "optimal"]["momentum"] is None
    # theory.iterations' own example: 95 steps for every spectrum in [1, 100]
    assert rows["heavy_ball", "optimal"]["bound"] == 95
    assert rows["sgd", "optimal"]["bound"] == int(np.ceil(np.log(1e-6) / np.log(99 / 101)))
    assert all(row["steps"] is None for row in rows.values())
    assert ("heavy_ball", "standard") not in rows  # it is the same
    assert {"quasi_hyperbolic", "aggmo"} <= {rule for rule, _ in rows}
    assert not {"lion", "signum", "ema_corrected"} & {rule for rule, _ in rows}


def test_tune_says_what_theory_says_for_the_ends_of_a_spectrum(tuned):
    told, rows = tuned("--m", 0.5, "--L", 200, "--rule", "ema_nesterov", "--rule", "sgd", "--margin", 0.1)
    ends = (0.5 * (1.0 - 0.1), 200 * (1.0 + 0.1))
    assert (told["tuned_for"], told["margin"], told["source"]) == (list(ends), 0.1, "ends")
    assert list(rows) == [(rule, tuning) for rule in ("sgd", "ema_nesterov") for tuning in ("optimal", "standard")]
    for (rule, tuning), row in rows.items():
        found = {"optimal": theory.optimal, "standard": theory.standard}[tuning](*ends, rule=rule)
        assert (row["lr"], row["rate"]) == (found.lr, found.rate)
        assert row["bound"] == theory.iterations(found.lr, found.momentum, ends, 1e-8, rule=rule)


@pytest.mark.parametrize("name", ["data.npz", "data.csv", "plain.csv"])
@pytest.mark.parametrize("ridge", [0.0, 2.5])
def test_tune_counts_the_steps_of_a_least_squares_problem(tuned, least_squares, tmp_path, name, ridge):
    a, b = least_squares
    told, rows = tuned(tmp_path / name, "--ridge", ridge, "--rule", "pytorch", "--rule", "sgd")
    hessian = a.T @ a + ridge * np.eye(6)
    h = np.linalg.eigvalsh(hessian)
    assert told["m"] == pytest.approx(h[0], rel=1e-12)
    assert told["L"] == pytest.approx(h[-1], rel=1e-12)
    assert told["kappa"] == pytest.approx(np.linalg.cond(hessian), rel=1e-10)
    assert told["ridge"] == ridge
    assert (told["rows"], told["columns"]) == (40, 6)
    for rule in ("pytorch", "sgd"):
        row = rows[rule, "optimal"]
        assert row["steps"] == steps_taken(hessian, a.T @ b, row)
        assert row["steps"] <= row["bound"]


def test_tune_estimates_the_ends_of_a_large_problem_and_keeps_a_margin(
    tuned, command, least_squares, tmp_path, monkeypatch
):
    a, _ = least_squares
    monkeypatch.setattr(problem, "MAX_DENSE", 5)
    told, rows = tuned(tmp_path / "data.npz", "--rule", "pytorch")
    h = np.linalg.eigvalsh(a.T @ a)
    assert abs(told["m"] - h[0]) <= 2 * told["m_error"] + 1e-9
    assert abs(told["L"] - h[-1]) <= 2 * told["L_error"] + 1e-9
    same = theory.tune(theory.Spectrum(told["m"], told["L"], told["m_error"], told["L_error"]), 1e-8, rule="pytorch")
    row = rows["pytorch", "optimal"]
    assert (row["lr"], row["momentum"], row["rate"], row["bound"]) == (
        same.lr,
        same.momentum,
        same.rate,
        same.iterations,
    )
    assert (told["estimated"], told["margin"]) == (True, 0.02)
    assert row["steps"] == steps_taken(a.T @ a, a.T @ least_squares[1], row)
    monkeypatch.setattr(problem, "MAX_LSMR_STEPS", 1)
    assert tuned(tmp_path / "data.npz", "--rule", "pytorch")[1]["pytorch", "optimal"]["steps"] is None
    assert "estimated" in command("tune", tmp_path / "data.npz", "--rule", "sgd")[1]


def test_the_table_has_the_same_numbers_and_fits_into_80_columns(command, tuned, least_squares, tmp_path):
    for arguments in (("--kappa", 1e13), (tmp_path / "data.npz",)):
        status, out, err = command("tune", *arguments)
        assert (status, err) == (0, "")
        assert max(map(len, out.splitlines())) <= 80 + len(str(tmp_path)) * (len(arguments) == 1)
        assert "…" not in out
    _, rows = tuned(tmp_path / "data.npz")
    shown = {tuple(line.split()[:2]): line.split()[2:] for line in out.splitlines() if "optimal" in line}
    row = rows["pytorch", "optimal"]
    figures = [f"{row['lr']:.5g}", f"{row['momentum']:.6g}", f"{row['rate']:.6g}", str(row["steps"]), str(row["bound"])]
    assert shown["pytorch", "optimal"] == figures
    for words in (
        "½‖Ax − b‖²",
        "A of 40 × 6",
        "m = ",
        "κ = L/m",
        "from x = 0",
        "no rate is known for ema_corrected, signum, lion",
    ):
        assert words in out


def test_extreme_numbers_are_printed(tuned, command):
    _, rows = tuned("--kappa", 1, "--rule", "sgd", "--rule", "ema")
    assert {row["bound"] for row in rows.values()} == {1}
    _, rows = tuned("--kappa", 1e17, "--rule", "sgd")
    assert rows["sgd", "optimal"]["bound"] is None
    assert "never" in command("tune", "--kappa", 1e17, "--rule", "sgd")[1]
    assert "?" in command("tune", "--kappa", 1e13, "--rule", "aggmo")[1]  # counting the steps would take minutes


@pytest.fixture
def plots(monkeypatch):
    """Replace the module that draws by one that keeps its arguments."""
    made = types.ModuleType("fastmomentum.plots")
    made.given, made.axes = [], []

    def errors(found, ax=None, bound=None):
        made.given.append(found)
        made.axes.append(ax)
        for label, values in found.items():
            ax.semilogy(values, label=label)
        return ax

    made.errors = errors
    monkeypatch.setitem(sys.modules, "fastmomentum.plots", made)
    return made


def test_the_picture_s_curves_are_those_of_the_runs(command, plots, least_squares, tmp_path):
    status, out, _ = command("tune", tmp_path / "data.npz", "--plot", tmp_path / "curves.png", "--rule", "heavy_ball")
    assert status == 0
    assert "curves.png" in out
    assert (tmp_path / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    ((label, curve),) = plots.given[0].items()
    assert label == "heavy ball, optimal"
    a, b = least_squares
    h = np.linalg.eigvalsh(a.T @ a)
    found = theory.optimal(h[0], h[-1], rule="heavy_ball")
    solution = np.linalg.solve(a.T @ a, a.T @ b)
    before = x = np.zeros(6)
    for size in curve:
        assert size == pytest.approx(np.linalg.norm(x - solution) / np.linalg.norm(solution), rel=1e-5)
        before, x = x, x - found.lr * (a.T @ (a @ x - b)) + found.momentum * (x - before)
    assert curve[-1] <= 1e-8 < curve[-2]


def test_each_curve_ends_where_it_reaches_the_tolerance_and_the_picture_a_tenth_below(
    command, plots, least_squares, tmp_path
):
    rules = ("--rule", "heavy_ball", "--rule", "sgd")
    assert command("tune", tmp_path / "data.npz", "--plot", tmp_path / "c.png", *rules, "--tol", 1e-4)[0] == 0
    drawn = plots.given[0]
    assert len(drawn["heavy ball, optimal"]) < len(drawn["gradient descent, optimal"])
    for label in ("heavy ball, optimal", "gradient descent, optimal"):
        assert drawn[label][-1] <= 1e-4 < drawn[label][-2]
    assert plots.axes[0].get_ylim()[0] == pytest.approx(1e-5)


def test_the_worst_curve_ends_at_the_bound(plots, command, tmp_path):
    assert command("tune", "--kappa", 100, "--plot", tmp_path / "c.svg")[0] == 0
    found = plots.given[0]
    assert list(found)[:3] == ["gradient descent, optimal", "gradient descent, standard", "heavy ball, optimal"]
    ball = found["heavy ball, optimal"]
    # 119 is the bound of the test above's kind, on the envelope; the worst of 256 curvatures comes to just below it
    assert ball[0] == 1.0
    assert 0.97 * 119 <= np.flatnonzero(ball > 1e-8)[-1] + 1 <= 119
    assert max(map(len, found.values())) == tune.MAX_STEPS_RATIO * 119 + 1


def test_file_names_are_printed_unchanged(command, least_squares, tmp_path):
    name = "[bold] :smile:.npz"
    (tmp_path / "data.npz").rename(tmp_path / name)
    assert command("tune", tmp_path / name, "--rule", "sgd")[1].startswith(f"{tmp_path / name}: f(x)")


def test_tune_warns_when_a_heavy_ball_has_no_margin(command):
    edge = "The optimal heavy ball is at the edge of stability"
    assert edge in command("tune", "--kappa", 9, "--rule", "pytorch")[1]
    assert edge not in command("tune", "--kappa", 9, "--rule", "pytorch", "--margin", 0.02)[1]
    assert edge not in command("tune", "--kappa", 9, "--rule", "sgd")[1]


def test_a_start_at_the_solution_has_a_picture_too(plots, command, tmp_path):
    np.savez(tmp_path / "zero.npz", A=np.diag([1.0, 2.0, 3.0]), b=np.zeros(3))
    assert command("tune", tmp_path / "zero.npz", "--plot", tmp_path / "c.png", "--rule", "sgd")[0] == 0
    assert plots.given


def test_broken_files_are_refused_in_one_line(command, tmp_path):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((8, 3)), rng.standard_normal(8)
    bad, twins = a.copy(), a.copy()
    bad[5, 2], twins[:, 1] = np.nan, twins[:, 0]
    saved = {
        "names": {"X": a, "y": b},
        "nan": {"A": bad, "b": b},
        "inf": {"A": a, "b": np.full(8, np.inf)},
        "rank": {"A": twins, "b": b},
        "wide": {"A": a.T, "b": b[:3]},
        "shapes": {"A": a, "b": b[:4]},
        "flat": {"A": b, "b": b},
        "empty": {"A": a[:, :0], "b": b},
        "complex": {"A": a + 1j, "b": b},
        "zero": {"A": 0 * a, "b": b},
        "huge": {"A": 1e200 * a, "b": b},
        "objects": {"A": np.array([None, a], dtype=object), "b": b},
    }
    for name, arrays in saved.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "short.npz").write_bytes((tmp_path / "nan.npz").read_bytes()[:300])
    with (tmp_path / "single.npz").open("wb") as file:
        np.save(file, a)
    (tmp_path / "folder.npz").mkdir()
    texts = {"word": "1,2,3\n4,x,6\n", "ragged": "1,2,3\n4,5\n", "empty": "", "one": "1\n2\n", "nan": "nan,1\n2,3\n"}
    for name, text in texts.items():
        (tmp_path / f"{name}.csv").write_text(text)
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x01")
    for name, words in {
        "names.npz": "expected arrays A and b; got X, y",
        "nan.npz": "expected finite numbers; A[5, 2] is nan",
        "inf.npz": "b[0] is inf",
        "rank.npz": "expected full rank; the least singular value",
        "wide.npz": "A has 3 rows for 8 columns, so m = 0. With --ridge R, m is at least R.",
        "shapes.npz": "got shapes (8, 3) and (4,)",
        "flat.npz": "expected A of n rows",
        "empty.npz": "got shape (8, 0)",
        "complex.npz": "expected real numbers in A; got complex128",
        "zero.npz": "A has the norm 0",
        "huge.npz": "beyond double precision",
        "objects.npz": "cannot be read",
        "text.npz": "cannot be read",
        "short.npz": "cannot be read",
        "single.npz": "got a single array",
        "folder.npz": "Is a directory",
        "missing.npz": "No such file or directory",
        "missing.csv": "No such file or directory",
        "word.csv": "'x'",
        "ragged.csv": "line 2 has 2 numbers; the lines before have 3",
        "empty.csv": "expected lines of numbers; got none",
        "one.csv": "at least two columns",
        "nan.csv": "A[0, 0] is nan",
        "binary.csv": "expected commas between numbers",
        "data.txt": "ends in .npz or .csv",
    }.items():
        line = refused(command, "tune", tmp_path / name)
        assert line.startswith(f"fastmomentum tune: error: {tmp_path / name}: ")
        assert words in line, line
    assert command("tune", tmp_path / "wide.npz", "--ridge", 1, "--rule", "sgd")[0] == 0


@pytest.mark.parametrize("ridge", [0.0, 3.0])
def test_tune_groups_the_curvatures_of_a_start(monkeypatch, ridge):
    monkeypatch.setattr(problem, "MAX_LANCZOS_STEPS", 120)
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((600, 300)) * np.geomspace(1.0, 2.0, 300), rng.standard_normal(600)
    h, basis = np.linalg.eigh(a.T @ a + ridge * np.eye(300))
    error = -basis.T @ np.linalg.solve(a.T @ a + ridge * np.eye(300), a.T @ b)
    nodes, few = problem.quadrature_from_zero(a, b, ridge)
    assert nodes.size == 120
    assert np.linalg.norm(few) == pytest.approx(np.linalg.norm(error), rel=1e-9)
    for rule in ("sgd", "heavy_ball", "nesterov_positions"):
        found = theory.tune((h[0], h[-1]), rule=rule)
        counts = [
            theory.iterations(found.lr, found.momentum, spectrum, 1e-8, rule=rule, error=each)
            for spectrum, each in ((h, error), (nodes, few))
        ]
        assert abs(counts[1] - counts[0]) <= max(1, 0.01 * counts[0])
    monkeypatch.setattr(problem, "MAX_LANCZOS_STEPS", 5)  # too few to see the end of the spectrum
    assert problem.quadrature_from_zero(a, b, ridge) is None


def test_a_large_problem_without_full_rank_is_refused(command, tmp_path, monkeypatch):
    monkeypatch.setattr(problem, "MAX_DENSE", 3)
    a = np.random.default_rng(0).standard_normal((8, 4))
    a[:, 1] = a[:, 0]
    np.savez(tmp_path / "rank.npz", A=a, b=np.ones(8))
    assert "may be 0. With --ridge R, m is at least R." in refused(command, "tune", tmp_path / "rank.npz")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "expected one of --kappa K, --m M with --L L, or a file"),
        (["--m", 1], "expected one of --kappa K"),
        (["--kappa", 3, "--m", 1, "--L", 2], "expected one of --kappa K"),
        (["data.npz", "--kappa", 3], "expected one of --kappa K"),
        (["--kappa", 0.5], "--kappa: expected a finite number >= 1; got '0.5'"),
        (["--kappa", "nan"], "--kappa: expected a finite number >= 1; got 'nan'"),
        (["--kappa", "inf"], "--kappa: expected"),
        (["--kappa", "x"], "--kappa: expected a finite number >= 1; got 'x'"),
        (["--m", 0, "--L", 1], "--m: expected a finite number > 0"),
        (["--m", 2, "--L", 1], "expected m <= L; got m = 2, L = 1"),
        (["--kappa", 3, "--tol", 1], "--tol: expected a number in (0, 1)"),
        (["--kappa", 3, "--margin", 1], "--margin: expected a number in [0, 1)"),
        (["--kappa", 3, "--ridge", 1], "--ridge: expected with a file only"),
        (["--kappa", 3, "--rule", "adamm"], "--rule: expected one of sgd, pytorch"),
        (["--kappa", 3, "--rule", "adam"], "--rule adam: expected one that is linear"),
        (["--kappa", 3, "--rule", "lion"], "--rule lion: expected one that is linear"),
        (
            ["--kappa", 3, "--nonsense"],
            "tune: error: unrecognized arguments: --nonsense (see fastmomentum tune --help)",
        ),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(command, arguments, words):
    assert words in refused(command, "tune", *arguments)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none/c.png", "expected a file in a folder that exists"),
        ("", "expected a file in a folder that exists"),
        ("c.nonsense", "expected a name that ends in .png, .pdf, .svg"),
        ("c", "expected a name that ends in .png, .pdf, .svg"),
    ],
)
def test_a_picture_that_cannot_be_written_is_refused_before_any_work(command, tmp_path, monkeypatch, name, words):
    def works(*given):
        raise AssertionError

    monkeypatch.setattr(tune, "_make_problem", works)
    monkeypatch.setattr(demo, "run", works)
    assert words in refused(command, "tune", "--kappa", 3, "--rule", "sgd", "--plot", tmp_path / name)
    assert words in refused(command, "demo", "--picture", tmp_path / name)


def test_a_picture_that_the_system_does_not_write_is_refused(command, tmp_path, monkeypatch):
    def full(*given, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    assert "No space left" in refused(command, "tune", "--kappa", 3, "--rule", "sgd", "--plot", tmp_path / "c.png")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b,y\n1,2,3\n\n1,red,4\n", "line 4, column 2 has 'red'"),
        ("a,b,y\n1,2,3\n1,,4\n", "line 3, column 2 has ''"),
        ("# of 2026\n1,2,3\n1,2\n", "line 3 has 2 numbers; the lines before have 3"),
        ("a;b\n1;2\n", "line 2, column 1 has '1;2'"),
        ("1_0,2,3\n", "could not convert string '1_0'"),  # a number for Python, none for NumPy
        ("a,b,y\n", "expected lines of numbers; got none"),
    ],
)
def test_faults_in_a_table_are_reported_with_their_line_number(command, tmp_path, text, words):
    (tmp_path / "data.csv").write_text(text)
    assert words in refused(command, "tune", tmp_path / "data.csv")


@pytest.mark.parametrize("columns", [20, 40, 60])
def test_no_word_or_digit_is_cut_where_the_terminal_is_narrow(command, least_squares, tmp_path, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    out = command("tune", tmp_path / "data.npz", "--rule", "nesterov_positions")[1]
    monkeypatch.setenv("COLUMNS", "200")
    wide = command("tune", tmp_path / "data.npz", "--rule", "nesterov_positions")[1]
    assert [line.rstrip() for line in out.splitlines()] == [line.rstrip() for line in wide.splitlines()]


def test_tune_fails_when_no_spectrum_is_found(command, least_squares, tmp_path, monkeypatch):
    def fails(*given, **named):
        raise RuntimeError("spectrum: Lanczos did not converge")

    monkeypatch.setattr(problem, "MAX_DENSE", 5)
    monkeypatch.setattr(problem.theory, "spectrum", fails)
    status, out, err = command("tune", tmp_path / "data.npz")
    assert (status, out) == (1, "")
    assert err == f"fastmomentum tune: {tmp_path / 'data.npz'}: spectrum: Lanczos did not converge\n"


@pytest.mark.parametrize("name", ["demo", "bench", "validate", "tune", "info"])
def test_help_is_plain_text_of_80_columns(command, name):
    status, out, err = command(name, "--help")
    assert (status, err) == (0, "")
    assert out.startswith(f"usage: fastmomentum {name} ")
    assert "--json" in out
    assert max(map(len, out.splitlines())) <= 80
    assert out.isascii()


def test_help_has_examples(command):
    whole_help, tuning = command("--help")[1], command("tune", "--help")[1]
    for words in ("demo", "bench", "validate", "tune", "info", "exit status: 0 done, 1 failed, 2", "examples:"):
        assert words in whole_help
    for words in ("--kappa 100", "the columns:", "rate", "steps", "bound", "1/2 |Ax - b|^2", "b in the last column"):
        assert words in tuning
    for line in re.findall(r"^  fastmomentum (.*?)(?: \|.*)?$", whole_help + tuning, re.MULTILINE):
        assert parser.make_parser().parse_args(line.split()).command in ("tune", "info")


def test_no_command_and_a_wrong_one_are_refused(command):
    assert "required: COMMAND" in refused(command)
    assert "'tuna'" in refused(command, "tuna")
    assert command("--version") == (0, f"fastmomentum {fm.__version__}\n", "")


def test_info_tells_versions_machine_and_what_is_missing(command, monkeypatch):
    monkeypatch.setenv("NUMBA_NUM_THREADS", "1")
    status, out, err = command("info", "--json")
    assert (status, err) == (0, "")
    told = json.loads(out)
    assert told["fastmomentum"] == fm.__version__
    assert told["python"] == ".".join(map(str, sys.version_info[:3]))
    assert told["packages"]["numpy"] == np.__version__
    assert set(info.REQUIRED) <= {name for name, version in told["packages"].items() if version}
    assert told["processor"]["vector_bits"] in (128, 256, 512)
    assert told["threads"]["available"] == 1
    assert told["threads"]["layer"] in ("tbb", "omp", "workqueue")
    assert told["environment"]["NUMBA_NUM_THREADS"] == "1"
    assert told["cuda"]["available"] or told["cuda"]["why"]


def test_info_succeeds_when_nothing_is_installed(command, monkeypatch):
    def missing(name):
        raise info.PackageNotFoundError(name)

    silent = {name: {"error": "no answer in time"} for name in probes.PROBES}
    monkeypatch.setattr(info, "version", missing)
    monkeypatch.setattr(info.probes, "ask", lambda names: silent)
    status, out, _ = command("info")
    assert status == 0
    assert max(map(len, out.splitlines())) <= 80
    assert "unknown: no answer in time" in out
    text = " ".join(out.split())
    assert 'numba-cuda, for CUDA: pip install "fastmomentum[cuda]"' in text
    assert "missing numba, for everything: pip install numba" in text
    told = json.loads(command("info", "--json")[1])
    assert {each["what"] for each in told["missing"]} == set(info.REQUIRED) | set(info.OPTIONAL)


def test_info_tells_how_to_get_a_safe_threading_layer():
    packages = dict.fromkeys((*info.REQUIRED, *info.OPTIONAL), "1")
    for layer in ("workqueue", None):
        (found,) = info.missing(packages, {"threads": {"available": 2, "layer": layer}})
        assert found["what"] == "a threading layer that is safe"
        assert "fastmomentum[tbb]" in found["get"]
    assert not list(info.missing(packages, {"threads": {"available": 2, "layer": "omp"}}))


def test_probes_that_hang_crash_or_raise_are_reported(monkeypatch):
    codes = {
        "hangs": "import time; time.sleep(60)",
        "crashes": "import os; os.kill(os.getpid(), 11)",
        "raises": "raise ImportError('libLLVM is missing')",
        "talks": "print('a warning'); print('{\"fine\": 1}')",
    }
    start = subprocess.Popen

    def other(command, **how):
        return start([sys.executable, "-S", "-c", codes[command[-1]]], **how)

    monkeypatch.setattr(probes.subprocess, "Popen", other)
    found = probes.ask(codes, seconds=2.0)
    assert found == {
        "hangs": {"error": "no answer in time"},
        "crashes": {"error": "it ended with status -11"},
        "raises": {"error": "ImportError: libLLVM is missing"},
        "talks": {"fine": 1},
    }


class Driver:
    """A CUDA driver with one device, or one that finds none."""

    def __init__(self, status):
        self.cuInit = lambda flags: status

    def cuDeviceGetCount(self, count):
        count._obj.value = 1
        return 0

    def cuDeviceGet(self, device, number):
        return 0

    def cuDeviceGetName(self, name, size, device):
        name.value = b"A device"
        return 0

    def cuDeviceGetAttribute(self, value, attribute, device):
        value._obj.value = {75: 9, 76: 0}[attribute]
        return 0


def test_info_names_the_devices_of_the_driver(monkeypatch):
    monkeypatch.setattr(probes.ctypes, "CDLL", lambda name: Driver(100))
    assert probes.cuda()["why"] == "the CUDA driver finds no device (cuInit gives 100)"
    monkeypatch.setattr(probes.ctypes, "CDLL", lambda name: Driver(0))
    monkeypatch.setattr("fastmomentum.backends.cuda.require", lambda: None)
    device = {"name": "A device", "capability": "9.0"}
    assert probes.cuda() == {"available": True, "devices": [device]}

    def refuse():
        raise RuntimeError("no compiler\nand more")

    monkeypatch.setattr("fastmomentum.backends.cuda.require", refuse)
    assert probes.cuda() == {"available": False, "devices": [device], "why": "no compiler"}


def test_the_demo_s_json_has_its_runs(command, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "EPOCHS", 1)
    monkeypatch.setattr(demo, "RUNS", {name: demo.RUNS[name] for name in ("gradient descent", "classical")})
    status, out, err = command("demo", "--json", "--picture", tmp_path / "c.png")
    assert (status, err) == (0, "")
    told = json.loads(out)
    assert told["failed"] == []
    assert list(told["runs"]) == ["gradient descent", "classical"]
    assert told["runs"]["classical"]["same_bits"] is True
    assert len(told["runs"]["classical"]["losses"]) == 10
    assert "folder that exists" in refused(command, "demo", "--picture", tmp_path / "none" / "c.png")


def test_validate_prints_its_record_and_its_status(command, tmp_path, monkeypatch):
    missed = formulas.Row("a wrong prediction", 1.0, float("nan"), 1.0, 0.5, "group", "topic")
    monkeypatch.setattr(report, "parts", lambda sizes, planes: iter([("part", lambda: iter([missed]))]))
    monkeypatch.setattr(report, "draw", lambda planes, folder: [])
    status, out, err = command("validate", "--small", "--json", "--out", tmp_path / "new")
    assert (status, err) == (1, "")
    told = json.loads(out)
    kept = json.loads((tmp_path / "new" / "validation.json").read_text())
    assert told["rows"][0].pop("measured") is None  # JSON has no NaN
    assert np.isnan(kept["rows"][0].pop("measured"))
    assert told == kept
    assert [row["holds"] for row in told["rows"]] == [False]
    (tmp_path / "file").touch()
    assert "--out" in refused(command, "validate", "--out", tmp_path / "file")


def test_bench_runs_in_the_source_tree_and_says_where_that_is_elsewhere(command, tmp_path, monkeypatch):
    started = []
    module = types.ModuleType("benchmarks.__main__")
    module.run = lambda out, smoke, terminal: started.append((out, smoke, terminal.as_json)) or 0
    monkeypatch.setitem(sys.modules, "benchmarks.__main__", module)
    monkeypatch.setattr(sys, "path", sys.path[:])
    assert command("bench", "--smoke", "--json", "--out", tmp_path)[0] == 0
    assert started == [(tmp_path, True, True)]
    assert sys.path[0] == str(ROOT)
    monkeypatch.setattr(commands.fastmomentum, "__file__", str(tmp_path / "fastmomentum" / "__init__.py"))
    status, out, err = command("bench", "--out", tmp_path)
    assert (status, out) == (1, "")
    assert "./scripts/bench" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(("module", "extra"), [("rich", "cli"), ("matplotlib", "cli"), ("sklearn.datasets", "cli")])
def test_missing_packages_are_named_with_their_extra(command, tmp_path, monkeypatch, module, extra):
    def lacking(options, terminal):
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr(commands, "run", lacking)
    status, out, err = command("demo")
    assert (status, out) == (1, "")
    assert err == f'fastmomentum demo: {module.split(".")[0]} is not installed: pip install "fastmomentum[{extra}]"\n'


def test_missing_module_of_the_package_raises(monkeypatch):
    def broken(options, terminal):
        raise ModuleNotFoundError("No module named 'fastmomentum.nonsense'", name="fastmomentum.nonsense")

    monkeypatch.setattr(commands, "run", broken)
    with pytest.raises(ModuleNotFoundError, match="nonsense"):
        cli.main(["demo"])


def test_interruption_and_closed_pipe_have_the_statuses_of_the_shell(command, monkeypatch):
    def interrupted(options, terminal):
        raise KeyboardInterrupt

    def failed(options, terminal):
        raise Failure("the measurement failed")

    monkeypatch.setattr(commands, "run", interrupted)
    assert command("demo") == (130, "", "")
    monkeypatch.setattr(commands, "run", failed)
    assert command("demo") == (1, "", "fastmomentum demo: the measurement failed\n")


def started(code, *arguments, **how):
    """Start a Python process with this code, as a shell does."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | how
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, **how)


RUN = "import sys; from fastmomentum.cli import main; sys.exit(main())"


def test_processes_end_as_they_should(tmp_path):
    """Check a run without the extra, two into a closed pipe, an interrupted one, one as a module and one in ASCII.

    The processes run at the same time, as each takes seconds.
    """
    without = "import sys; sys.modules['rich'] = None; " + RUN
    sleeping = (
        "import sys, time, signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from fastmomentum.cli import main, commands\n"
        "commands.run = lambda options, terminal: print('here', flush=True) or time.sleep(60)\n"
        "sys.exit(main(['demo']))"
    )
    read, write = os.pipe()
    os.close(read)
    module = "import runpy; runpy.run_module('fastmomentum', run_name='__main__', alter_sys=True)"
    ascii_only = "import sys; sys.stdout.reconfigure(encoding='ascii'); " + RUN
    runs = {
        "extra": started(without, "info"),
        "closed": started(RUN, "tune", "--kappa", 100, "--rule", "sgd", stdout=write),
        "help closed": started(RUN, "--help", stdout=write),
        "interrupted": started(sleeping),
        "module": started(module, "tune", "--kappa", 100, "--rule", "sgd", "--json"),
        "ascii": started(ascii_only, "tune", "--kappa", 100, "--rule", "sgd"),
    }
    os.close(write)
    assert runs["interrupted"].stdout.readline() == "here\n"
    runs["interrupted"].send_signal(signal.SIGINT)
    ended = {name: (*run.communicate(timeout=60), run.returncode) for name, run in runs.items()}
    line = 'fastmomentum: rich is not installed: pip install "fastmomentum[cli]"\n'
    assert ended["extra"] == ("", line, 1)
    assert ended["closed"] == (None, "", 141)
    # argparse ignores a closed pipe when output is unbuffered
    assert ended["help closed"] in [(None, "", 0), (None, "", 141)]
    assert ended["interrupted"] == ("", "", 130)
    out, err, status = ended["module"]
    assert (err, status) == ("", 0)
    assert json.loads(out)["tunings"][0]["lr"] == pytest.approx(2 / 101, rel=1e-15)
    out, err, status = ended["ascii"]
    assert (err, status) == ("", 0)
    assert out.isascii()


def test_the_console_script_and_the_scripts_are_this_command():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"fastmomentum": "fastmomentum.cli:main"}
    for name in ("demo", "bench", "validate"):
        assert f'\n$bin/fastmomentum {name} "$@"' in (ROOT / "scripts" / name).read_text()
    for extra in cli.EXTRAS.values():
        assert extra in project["optional-dependencies"]


def test_numbers_near_one_are_printed_with_their_distance():
    assert Problem("ends", theory.Spectrum(2.0, 5.0)).kappa == 2.5
    assert tune.format_near_one(1.0) == "1"
    assert [tune.format_near_one(rate) for rate in (0.9999, 0.99995)] == ["0.9999", "1-5e-05"]
    assert [tune._format_count(count) for count in (9_999_999, 10_000_000)] == ["9,999,999", "1e+07"]
    assert tune.curve_length([]) == tune.MAX_STEPS


def test_tune_reads_compressed_arrays_up_to_a_limit(command, monkeypatch, tmp_path):
    """Check that a small file that unpacks to more than the limit is refused, and read in the advised form."""
    arrays = {"A": np.eye(300), "b": np.ones(300)}
    data = tmp_path / "data.npz"
    np.savez_compressed(data, **arrays, other=np.zeros(10**6))
    assert data.stat().st_size < 20_000
    assert command("tune", data, "--rule", "sgd")[0] == 0
    monkeypatch.setattr(problem, "MOST_UNPACKED", 300 * 300 * 8)
    assert "at most 720000 bytes; A and b unpack to 722656. Write larger ones with numpy.savez" in refused(
        command, "tune", data
    )
    np.savez(data, **arrays)
    assert command("tune", data, "--rule", "sgd")[0] == 0
