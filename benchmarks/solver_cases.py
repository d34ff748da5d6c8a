"""Real problems for ``fm.minimize``, each with whom a user would ask instead.

Both sides of a case are asked for the same: an objective within `gap` of the least. Where the smooth part is m-strongly
convex a prox-gradient G guarantees that by ‖G‖₂² ≤ 2m·gap, so ours, and L-BFGS-B, by gtol = √(2m·gap/n); conjugate
gradients by the residual, scikit-learn by its duality gap; active sets end exactly. All start from zero.
"""

from collections.abc import Callable
from functools import partial
from itertools import count
from math import pi, sin, sqrt
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import Bounds, lsq_linear, minimize, nnls
from scipy.sparse import diags_array, eye_array, kron
from scipy.sparse.linalg import cg
from sklearn.linear_model import ElasticNet, Lasso

import fastmomentum as fm
from benchmarks import solver_data as data
from benchmarks import solver_functions as functions
from benchmarks.solver_data import Array, Pair

Answer = tuple[Array, int | None]

GAP = 1e-12
"""The gap that is asked for, over (a bound of) what the objective can fall by from zero."""

ALPHA, RATIO = 0.01, 0.5
"""scikit-learn's penalties: ‖y − Xw‖²/2n + α‖w‖₁, and with α(ρ‖w‖₁ + (1 − ρ)‖w‖²/2) in the elastic net."""

RIDGE = 1e-3
"""The logistic regression's: ridge·‖w‖²/2 beside the mean loss."""

NONNEGATIVE, BOX, UNIT = (0.0, np.inf), (-0.2, 0.3), (0.0, 1.0)
"""BOX has no room for three of the ten coefficients that least squares finds in the diabetes data."""

SMOOTH = 1e-3
"""The weight of the squared differences of neighbouring pixels."""

GRID = 64
"""Interior points a side of the Poisson problem."""


class Case(NamedTuple):
    """A problem; each side gives its minimiser, and its iterations where it tells them."""

    objective: Callable[[Array], float]
    m: float
    gap: float
    ours: Callable[[], Answer]
    peer: Callable[[], Answer]
    peer_name: str


def solved(result: Any) -> Answer:
    """The answer, if it is one: what gave up has nothing to compare."""
    if not result.success:
        raise RuntimeError(f"not solved: {result.message}")
    return result.x, result.nit


def bound(m: float, gap: float, size: int) -> float:
    """The gtol that guarantees the gap."""
    return sqrt(2.0 * m * gap / size)


def squares(pair: Pair, peer: Callable[[], Answer], peer_name: str, ridge: float = 0.0, **how: Any) -> Case:
    """‖y − Xw‖²/2n + ridge·‖w‖²/2, with an l1 penalty or in bounds; both sides work on X, not on XᵀX."""
    X, y = pair
    n, size = X.shape
    m = float(np.linalg.eigvalsh(X.T @ X / n)[0]) + ridge
    gap = GAP * float(y @ y) / n
    asked = {"args": (X, y, ridge), "jac": functions.squares_slope, "gtol": bound(m, gap, size)} | how

    def objective(w: Array) -> float:
        return float(np.mean((y - X @ w) ** 2) / 2 + ridge * np.sum(w**2) / 2 + how.get("l1", 0.0) * np.sum(np.abs(w)))

    def ours() -> Answer:
        return solved(fm.minimize(functions.squares, np.zeros(size), **asked))

    return Case(objective, m, gap, ours, peer, peer_name)


def coordinates(model: Any, pair: Pair) -> Callable[[], Answer]:
    """scikit-learn's coordinate descent, on columns as it wants them."""
    X, y = np.asfortranarray(pair[0]), pair[1]
    model.set_params(fit_intercept=False, tol=GAP, max_iter=100_000)

    def peer() -> Answer:
        fitted = model.fit(X, y)
        return fitted.coef_, fitted.n_iter_

    return peer


def lasso(pair: Pair) -> Case:
    """An l1 penalty."""
    return squares(pair, coordinates(Lasso(alpha=ALPHA), pair), "sklearn Lasso", l1=ALPHA)


def elastic_net(pair: Pair) -> Case:
    """An l1 penalty and a ridge."""
    peer = coordinates(ElasticNet(alpha=ALPHA, l1_ratio=RATIO), pair)
    return squares(pair, peer, "sklearn ElasticNet", ALPHA * (1.0 - RATIO), l1=ALPHA * RATIO)


def non_negative(pair: Pair) -> Case:
    """No coefficient below zero."""
    return squares(pair, lambda: (nnls(*pair)[0], None), "scipy nnls", bounds=Bounds(*NONNEGATIVE))


def bounded(pair: Pair) -> Case:
    """Coefficients in a box."""
    peer = partial(lsq_linear, *pair, BOX, method="bvls")
    return squares(pair, lambda: solved(peer()), "scipy lsq_linear", bounds=Bounds(*BOX))


def smooth(
    objective: Callable[[Array], float], fun: Any, jac: Any, args: tuple[Any, ...], size: int, m: float, bounds: Any
) -> Case:
    """Against L-BFGS-B with the same functions, stopped by the gradient alone, as ours."""
    gap = GAP * objective(np.zeros(size))
    gtol = bound(m, gap, size)
    options = {"gtol": gtol, "ftol": 0.0, "maxiter": 10_000, "maxfun": 100_000}

    def ours() -> Answer:
        return solved(fm.minimize(fun, np.zeros(size), args, jac=jac, bounds=bounds, gtol=gtol))

    def peer() -> Answer:
        return solved(minimize(fun, np.zeros(size), args, "L-BFGS-B", jac, bounds=bounds, options=options))

    return Case(objective, m, gap, ours, peer, "scipy L-BFGS-B")


def logistic() -> Case:
    """A ridge-logistic regression."""
    X, y = data.tumours()

    def objective(w: Array) -> float:
        return float(np.mean(np.logaddexp(0.0, -y * (X @ w))) + RIDGE * np.sum(w**2) / 2)

    return smooth(objective, functions.logistic, functions.logistic_slope, (X, y, RIDGE), X.shape[1], RIDGE, None)


def deblurring() -> Case:
    """The picture in [0, 1] that, blurred, is what was seen, its squared differences held down."""
    seen, blur = data.picture()

    def objective(x: Array) -> float:
        X = x.reshape(seen.shape)
        steps = sum(np.sum(np.diff(X, axis=axis) ** 2) for axis in (0, 1))
        return float(np.sum((blur @ X @ blur.T - seen) ** 2) / 2 + SMOOTH * steps / 2)

    waves = np.linalg.eigvalsh(data.neighbours())
    both = np.add.outer(waves, waves)
    m = float(np.min(np.exp(-(data.BLUR**2) * both) + SMOOTH * both))
    args = (seen, blur, SMOOTH)
    return smooth(objective, functions.deblurring, functions.deblurring_slope, args, seen.size, m, Bounds(*UNIT))


def poisson(rule: str, known: bool) -> Case:
    """The potential of two opposite charges in an earthed square; the ends of the spectrum known, or to be found."""
    line = diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(GRID, GRID))
    A = (kron(line, eye_array(GRID)) + kron(eye_array(GRID), line)).tocsr()
    charges = np.zeros((GRID, GRID))
    charges[20, 20], charges[40, 50] = 1.0, -1.0
    b = charges.ravel()
    m, L = (8.0 * sin(wave * pi / (2 * GRID + 2)) ** 2 for wave in (1, GRID))
    gap = GAP * float(b @ b) / (2.0 * m)
    slope, gtol = functions.poisson_slope, bound(m, gap, b.size)
    asked = {"args": (charges,), "jac": slope, "rule": rule, "spectrum": (m, L) if known else None, "gtol": gtol}

    def ours() -> Answer:
        return solved(fm.minimize(functions.poisson, np.zeros(b.size), **asked))

    def peer() -> Answer:
        taken = count()
        x, failed = cg(A, b, rtol=sqrt(GAP), callback=lambda _: next(taken))
        if failed:
            raise RuntimeError("not solved by conjugate gradients")
        return x, next(taken)

    return Case(lambda x: float(x @ (A @ x) / 2 - b @ x), m, gap, ours, peer, "scipy cg")


CASES: dict[str, Callable[[], Case]] = {
    "lasso, diabetes": lambda: lasso(data.diabetes()),
    "lasso, digits": lambda: lasso(data.zeros()),
    "elastic net, diabetes": lambda: elastic_net(data.diabetes()),
    "non-negative least squares, digits": lambda: non_negative(data.mixture()),
    "bounded least squares, diabetes": lambda: bounded(data.diabetes()),
    "ridge-logistic regression, tumours": logistic,
    "deblurring in [0, 1], china.jpg": deblurring,
    "Poisson, Chebyshev": lambda: poisson("chebyshev", known=True),
    "Poisson, heavy ball": lambda: poisson("heavy_ball", known=True),
    "Poisson, Chebyshev, spectrum found": lambda: poisson("chebyshev", known=False),
}
