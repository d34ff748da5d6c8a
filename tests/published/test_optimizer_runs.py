"""Checks of optimizer_runs.json, which holds recorded runs of the optimizers of other libraries.

These tests check the file alone: its completeness, and that its gradients and forces follow the formulas it states.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest

FILE = json.loads(Path(__file__).with_name("optimizer_runs.json").read_text(encoding="utf-8"))
RUNS = FILE["runs"]
STEPS, FIRE_STEPS = 12, 60
SHAPES = [(5,), (2, 3)]
EPS = np.finfo(np.float64).eps
ARRAYS = {"parameters", "averages", "bases", "filtered_gradients"}  # for each step the values of both arrays
FIRE_SLOTS = {"x": (6,), "v": (6,), "dt": (), "a": (), "n": ()}

ALL = pytest.mark.parametrize("run", [pytest.param(run, id=run["key"]) for run in RUNS])
FIRE = pytest.mark.parametrize("run", [pytest.param(run, id=run["key"]) for run in RUNS if run["kind"] == "fire"])


def test_keys_are_unique_and_name_their_library():
    keys = [run["key"] for run in RUNS]
    assert len(set(keys)) == len(keys)
    assert all("/" in key for key in keys)


@ALL
def test_run_states_its_source(run):
    for name in ("library", "version", "function", "notes"):
        assert run[name].strip(), name
    assert any(char.isdigit() for char in run["version"])
    assert run["settings"]
    assert run["dtype"] in ("float64", "float32", "mixed")


@ALL
def test_run_has_finite_numbers_for_every_step(run):
    if run["kind"] == "fire":
        for name, shape in FIRE_SLOTS.items():
            assert np.shape(run[name]) == (FIRE_STEPS, *shape), name
            assert np.isfinite(run[name]).all(), name
        return
    assert run["start"] in FILE["starts"]
    missing = [[g is None for g in row] for row in FILE["gradients"][run["gradients"]]["steps"]]
    recorded = ARRAYS & run.keys()
    assert recorded & {"parameters", "filtered_gradients"}
    for name in recorded:
        assert len(run[name]) == STEPS, name
        for t, row in enumerate(run[name]):
            assert len(row) == len(SHAPES), name
            for array, shape, absent in zip(row, SHAPES, missing[t], strict=True):
                if name == "filtered_gradients" and absent:
                    assert array is None
                else:
                    assert np.shape(array) == shape, name
                    assert np.isfinite(array).all(), name


@ALL
def test_array_rests_in_the_steps_before_its_first_gradient(run):
    if run["kind"] != "parameters" or not run["gradients"].startswith("late"):
        return
    for t in range(3):
        assert run["parameters"][t][1] == FILE["starts"][run["start"]][1]
    assert run["parameters"][3][1] != FILE["starts"][run["start"]][1]


@pytest.mark.parametrize("name", list(FILE["gradients"]))
def test_gradients_follow_their_formula(name):
    """The cosine may differ in its last bit between libraries, and two products round: four units are allowed."""
    table = FILE["gradients"][name]
    assert f"{table['scale']} * cos(0.7 * t + 1.3 * i) * (1 + i / 4)" in table["formula"] or "as " in table["formula"]
    assert len(table["steps"]) == FILE["steps"] == STEPS
    for t, (first, second) in enumerate(table["steps"]):
        expected = [table["scale"] * math.cos(0.7 * t + 1.3 * i) * (1 + i / 4) for i in range(11)]
        np.testing.assert_allclose(first, expected[:5], rtol=4 * EPS, atol=0)
        rule = table["second_array_in_steps_0_to_2"] if t < 3 else "formula"
        if rule == "missing":
            assert second is None
        elif rule == "zero":
            assert not np.any(second)
        else:
            assert rule == "formula"
            np.testing.assert_allclose(second, np.reshape(expected[5:], (2, 3)), rtol=4 * EPS, atol=0)


@FIRE
def test_first_velocity_of_fire_follows_the_force_formula(run):
    """Each force is a sum of four terms, of which none is above 10, and a product makes it a velocity: eight units."""
    problem = FILE["fire_problem"]
    x, k, q = (np.array(problem[name]) for name in ("start", "k", "q"))
    gradient = k * x + q * x**3
    gradient[:-1] += problem["c"] * x[1:]
    gradient[1:] += problem["c"] * x[:-1]
    np.testing.assert_allclose(run["v"][0], -run["settings"]["dt"] * gradient, rtol=0, atol=8 * 10 * EPS)


@FIRE
def test_steps_of_fire_start_at_the_last_accepted_position(run):
    """Each step is dt·v, shortened to maxstep. With downhill_check, a position of higher energy is given up first."""
    problem, settings = FILE["fire_problem"], run["settings"]
    k, q = np.array(problem["k"]), np.array(problem["q"])

    def energy(x):
        return np.sum(k * x**2 / 2 + q * x**4 / 4) + problem["c"] * np.sum(x[:-1] * x[1:])

    accepted = position = np.array(problem["start"])
    for t in range(FIRE_STEPS):
        if not settings["downhill_check"] or energy(position) <= energy(accepted):
            accepted = position
        step = run["dt"][t] * np.array(run["v"][t])
        length = np.linalg.norm(step)
        if length > settings["maxstep"]:
            step = step * (settings["maxstep"] / length)
        position = np.array(run["x"][t])
        # The norm, the quotient, two products and the sum round: eight units of the longest vector.
        scale = max(np.linalg.norm(accepted), length)
        np.testing.assert_allclose(position, accepted + step, rtol=0, atol=8 * EPS * scale, err_msg=str(t))
