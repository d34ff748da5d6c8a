"""Oracles on quadratics: the rules' matrices, runs as loops, real data. Nothing here imports the package.

The matrices act on (p, state) with the gradient g = h·p.
"""

from functools import cache
from math import sqrt

import numpy as np

from tests.helpers.ids import label
from tests.helpers.reference import POSITIONS, update

CURVATURES = np.array([1.0, 10.0, 3.0])
"""The quadratic ½·Σ h·p² on which runs by hand descend, and their start."""
START = np.array([10.0, 1.0, -4.0])

FORMS = [
    *(("sgd", {}), ("pytorch", {}), ("pytorch", {"dampening": 0.3}), ("pytorch_nesterov", {})),
    *(("classical", {}), ("classical_nesterov", {}), ("ema", {}), ("ema_nesterov", {})),
    *(("heavy_ball", {}), ("nesterov_positions", {})),
    *((rule, {"nesterov": True}) for rule in ("pytorch", "classical", "ema")),
    *((rule, {"lookahead": True}) for rule in ("pytorch", "classical", "ema")),
    *(("pytorch", {"lookahead": True, "dampening": 0.3}), ("classical", {"weight_decay": 0.25})),
    *(("heavy_ball", {"weight_decay": 0.25}), ("ema", {"nesterov": True, "weight_decay": 0.25})),
    *(("pytorch", {"lookahead": True, "weight_decay": 0.25}), ("sgd", {"weight_decay": 0.25})),
]
"""Every rule, and the options that leave it linear."""

PLAIN = [form for form in FORMS if "weight_decay" not in form[1]]
"""The forms without weight decay, which have closed forms."""


def form_id(value):
    """Return the id of a form in pytest."""
    return label(value) or "plain"


def ahead(rule, options):
    """Return whether the form is Nesterov's method."""
    return "nesterov" in rule or options.get("nesterov", False) or options.get("lookahead", False)


def share(rule, mu, options):
    """Return the factor of a gradient in the velocity, in units of lr."""
    return 1 - mu if rule.startswith("ema") else 1 - options.get("dampening", 0.0) + 0.0 * mu


def matrix(rule, lr, mu, h, *, dampening=0.0, weight_decay=0.0, nesterov=False, lookahead=False):
    """Return the iteration matrix, of shape (..., 1 + s, 1 + s) with s state slots."""
    a, mu, h = np.broadcast_arrays(*(np.asarray(x, float) for x in (lr, mu, np.asarray(h) + weight_decay)))
    rule = f"{rule}_nesterov" if nesterov else rule
    k = 1 - mu if rule.startswith("ema") else 1 - dampening
    if lookahead:
        damped = mu * (1 - a * k * h)
        rows = {
            "classical": [[1 - a * h, -damped], [a * h, damped]],
            "pytorch": [[1 - a * k * h, -a * damped], [k * h, damped]],
            "ema": [[1 - a * k * h, -a * damped], [k * h, damped]],
        }[rule]
    else:
        rows = {
            "sgd": [[1 - a * h]],
            "pytorch": [[1 - a * k * h, -a * mu], [k * h, mu]],
            "pytorch_nesterov": [[1 - a * h * (1 + mu), -a * mu**2], [h, mu]],
            "classical": [[1 - a * h, -mu], [a * h, mu]],
            "classical_nesterov": [[1 - a * h * (1 + mu), -(mu**2)], [a * h, mu]],
            "ema": [[1 - a * k * h, -a * mu], [k * h, mu]],
            "ema_nesterov": [[1 - a * k * h * (1 + mu), -a * mu**2], [k * h, mu]],
            "heavy_ball": [[1 + mu - a * h, -mu], [1.0, 0.0]],
            "nesterov_positions": [[(1 + mu) * (1 - a * h), -mu], [1 - a * h, 0.0]],
        }[rule]
    return np.stack([np.stack([np.broadcast_to(x, a.shape) for x in row], axis=-1) for row in rows], axis=-2)


def _qhm(p, v, g, lr, beta, keep, nu, direct):
    v = beta * v + keep * g
    return p - lr * (direct * g + nu * v), v


def _aggmo(p, u, v, g, lr, mu, mu2, half):
    u = mu * u + g
    v = mu2 * v + g
    return p - lr * half * (u + v), u, v


def _straight(nu):
    """Return 1 − ν by a branch, which fails for arrays."""
    return 1.0 - nu if nu < 1.0 else 0.0


QUASI_HYPERBOLIC = {
    "update": _qhm,
    "hyper": ("lr", "momentum", "keep", "nu", "direct"),
    "derived": {"keep": lambda momentum: sqrt((1.0 - momentum) ** 2), "direct": _straight},
    "defaults": {"nu": 0.7},
    "ranges": {"nu": (0.0, 1.0)},
    "name": "qhm",
}
"""A user's rule as arguments of fastmomentum.Rule, whose derived functions take numbers and no arrays."""

AGGREGATED = {
    "update": _aggmo,
    "state": (("slow", "zero"), ("fast", "zero")),
    "hyper": ("lr", "momentum", "beta2", "half"),
    "derived": {"half": lambda: 0.5},
    "defaults": {"beta2": 0.5},
    "ranges": {"beta2": (0.0, 1.0)},
    "name": "aggregated",
}
"""A user's rule with two state slots."""


def quasi_hyperbolic(lr, mu, h, nu):
    """Return the matrix of QHM (Ma and Yarats 2019).

    v ← μv + (1−μ)g; p ← p − lr((1−ν)g + νv).
    """
    return np.array([[1 - lr * h * (1 - nu + nu * (1 - mu)), -lr * nu * mu], [(1 - mu) * h, mu]])


def quasi_hyperbolic_limit(mu, h, nu):
    """Return the largest stable lr of QHM, where λ = −1, so that 1 + trace + determinant = 0."""
    return 2 * (1 + mu) / (h * ((1 - nu) * (1 + mu) + nu * (1 - mu)))


def aggregated(lr, mu, mu2, h):
    """Return the matrix of AggMo (Lucas et al. 2019) with two velocities.

    u ← μu + g, v ← μ₂v + g; p ← p − lr(u + v)/2.
    """
    return np.array([[1 - lr * h, -lr * mu / 2, -lr * mu2 / 2], [h, mu, 0.0], [h, 0.0, mu2]])


def polynomial(rule, ah, mu, options):
    """Return the coefficients (1, c₁, c₀) of the characteristic polynomial at effective lr times curvature `ah`."""
    if ahead(rule, options):
        return np.array([1.0, -(1 + mu) * (1 - ah), mu * (1 - ah)])
    return np.array([1.0, -(1 + mu - ah), mu])


def rest(rule, h):
    """Return (p, state) before the first step, with p = 1 at each curvature."""
    return np.ones_like(h), np.ones_like(h) if rule in POSITIONS else np.zeros_like(h)


def responses(rule, lr, mu, h, steps, *, dampening=0.0, weight_decay=0.0, nesterov=False, lookahead=False):
    """Return the errors e_0 = 1, …, e_steps of a run by hand at every curvature, of shape (steps + 1, n).

    A run with an explicit look-ahead is the velocity form whose gradient is taken at p − (α/lr)μv.
    """
    h = np.atleast_1d(np.asarray(h, float))
    rule = f"{rule}_nesterov" if nesterov else rule
    p, s = rest(rule, h)
    path = [p]
    for _ in range(steps):
        at = p - (1.0 if rule == "classical" else lr) * mu * s if lookahead else p
        p, s = update(rule, p, s, (h + weight_decay) * at, np.float64, lr=lr, momentum=mu, dampening=dampening)
        path.append(p)
    return np.stack(path)


def first_below(sizes, tol):
    """Return the first t at which sizes ≤ tol."""
    small = np.flatnonzero(np.asarray(sizes) <= tol)
    assert small.size, "the scan is too short"
    return int(small[0])


def last_crossing(sizes, tol):
    """Return the t after which sizes stay ≤ tol to the end of the scan."""
    above = np.flatnonzero(np.asarray(sizes) > tol)
    assert above[-1] < len(sizes) - 1, "the scan is too short"
    return int(above[-1]) + 1


def polyak(m, L):
    """Return Polyak's (lr, momentum, ρ) for heavy ball."""
    rate = (sqrt(L) - sqrt(m)) / (sqrt(L) + sqrt(m))
    return (2 / (sqrt(L) + sqrt(m))) ** 2, rate**2, rate


@cache
def real(name):
    """Return (H, c, eigenvalues, e_0 in the eigenbasis) of ridge regression on data of scikit-learn, from x₀ = 0."""
    from sklearn import datasets

    X, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    X = X[:, X.std(axis=0) > 0]
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    y = (y - y.mean()) / y.std()
    H = X.T @ X / len(X) + 1e-3 * np.eye(X.shape[1])
    c = X.T @ y / len(X)
    h, Q = np.linalg.eigh(H)
    return H, c, h, -(Q.T @ c) / h


REAL = ["diabetes", "digits", "breast_cancer"]
