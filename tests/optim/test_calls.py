"""How many calls a user's call makes inside the package, and how many files a reader visits to follow it.

A change that makes one of these longer should be worth it. Limits are those of the rebuilding after 0.1.0, in which
``opt.lr = 0.2`` made 153 calls in 18 files, and loading 621 calls in 31 files.
"""

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import fastmomentum as fm

PACKAGE = str(Path(fm.__file__).parent)
GRAD = np.ones(8)


def count_calls(action):
    """Return for each file of the package how many calls of its functions `action` makes."""
    calls = Counter()

    def count(frame, event, argument):
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            calls[frame.f_code.co_filename] += 1

    sys.setprofile(count)
    try:
        action()
    finally:
        sys.setprofile(None)
    return calls


def warm(**settings):
    """Return an optimiser of one array after some steps."""
    opt = fm.Momentum(np.ones(8), **{"lr": 0.1, **settings})
    for _ in range(3):
        opt.step(GRAD)
    return opt


def stepping(**settings):
    opt = warm(**settings)
    return lambda folder: opt.step(GRAD)


def assigning():
    opt = warm()
    opt.lr = 0.3
    return lambda folder: setattr(opt, "lr", 0.2)


def resetting():
    opt = warm()
    opt.reset("before")
    return lambda folder: opt.reset("a test")


def loading():
    opt = warm()

    def load(folder):
        return fm.Momentum.load(folder / "run.npz", opt.params)

    return load


CASES = {
    "a step with nothing new": (stepping, 5, 5),
    "a step with a schedule as lr": (lambda: stepping(lr=fm.schedules.Cosine(0.1, 0.0, steps=1000)), 10, 20),
    "a step with a function as lr": (lambda: stepping(lr=lambda t: 0.1 / (1 + t)), 8, 20),
    "lr assigned": (assigning, 8, 20),
    "an optimiser made": (lambda: lambda folder: fm.Momentum(np.ones(8), lr=0.1), 24, 230),
    "a run loaded": (loading, 31, 640),
    "a reset": (resetting, 10, 60),
}


@pytest.mark.parametrize("case", CASES)
def test_user_call_visits_few_files_and_functions(case, tmp_path):
    make, files, calls = CASES[case]
    warm().save(tmp_path / "run.npz")
    action = make()
    action(tmp_path)
    found = count_calls(lambda: action(tmp_path))
    assert len(found) <= files, found
    assert 0 < sum(found.values()) <= calls, found
