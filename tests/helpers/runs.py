"""Optimisers with schedules, and runs on quadratics."""

import numpy as np

import fastmomentum as fm
from tests.helpers.functions import annealed, falling

SHAPES = ((3, 4), (17,), ())
"""The shapes of the three arrays of `scheduled_run`."""


def scheduled_run(rule, params, **settings):
    """Return an optimiser of three arrays in two groups, whose lr and momentum are functions of the step."""
    groups = [{"params": params[:2]}, {"params": params[2:], "weight_decay": 0.1}]
    return fm.Momentum(groups, rule=rule, lr=falling, momentum=annealed, **settings)


def descend(opt, steps, curvatures, at=lambda opt: opt.params):
    """Step down the quadratic ½·Σ h·p² from where the optimiser is, and return the parameters after each step."""
    path = []
    for _ in range(steps):
        opt.step(curvatures * at(opt))
        path.append(opt.params.copy())
    return np.array(path)


def steps_taken(hessian, pull, tol, **settings):
    """Return how many steps from 0 bring the error on ½·xᵀHx − cᵀx to tol times its start."""
    goal = np.linalg.solve(hessian, pull)
    opt = fm.Momentum(p := np.zeros(len(pull)), **settings)
    while np.linalg.norm(p - goal) > tol * np.linalg.norm(goal):
        opt.step(hessian @ p - pull)
        assert opt.steps < 20_000, "it does not converge"
    return opt.steps
