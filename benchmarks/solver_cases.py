"""Define the problems on which ``fm.minimize`` is compared with other solvers.

Both solvers of a case are asked for an objective within `gap` of the minimum, and start from zero. How they are asked
depends on the solver:

- ``fm.minimize`` and L-BFGS-B by gtol = √(2m·gap/n). If the smooth part of the objective is m-strongly convex, the gap
  is guaranteed by a prox-gradient G with ‖G‖₂² ≤ 2m·gap.
- Conjugate gradients by the residual.
- scikit-learn by its duality gap.
- Active-set methods not at all, because they end at the exact minimum.
"""

from collections.abc import Callable
from functools import partial
from itertools import count
from math import pi, sin, sqrt
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import Bounds, OptimizeResult, lsq_linear, minimize, nnls
from scipy.sparse import diags_array, eye_array, kron
from scipy.sparse.linalg import cg
from sklearn.linear_model import ElasticNet, Lasso

import fastmomentum as fm
from benchmarks import solver_data as data
from benchmarks import solver_functions as functions
from benchmarks.solver_data import Array, Pair

Answer = tuple[Array, int | None]
"""A minimiser, and the number of iterations if the solver reports it."""

Objective = Callable[[Array], float]

GAP = 1e-12
"""The gap that is asked for, over the decrease of the objective from zero to the minimum, or over a bound of it."""

ALPHA, RATIO = 0.01, 0.5
"""The penalties α and ρ of scikit-learn.

‖y − Xw‖²/2n + α‖w‖₁ for the lasso, ‖y − Xw‖²/2n + α(ρ‖w‖₁ + (1 − ρ)‖w‖²/2) for the elastic net
"""

RIDGE = 1e-3
"""The weight of ‖w‖²/2 in the logistic regression, beside the mean loss."""

NONNEGATIVE, BOX, UNIT = (0.0, np.inf), (-0.2, 0.3), (0.0, 1.0)
"""Lower and upper bounds; three of the ten least-squares coefficients of the diabetes data lie outside of BOX."""

SMOOTHNESS = 1e-3
"""The weight of the squared differences between neighbouring pixels in the deblurring problem."""

GRID = 64
"""The number of interior points along one side of the Poisson problem."""


class Case(NamedTuple):
    """Hold a problem and its two solvers.

    Attributes
    ----------
    objective : callable
        The objective, computed by NumPy apart from the compiled functions.
    m : float
        The constant of strong convexity.
    gap : float
        The greatest difference from the minimum that both solvers are asked for.
    ours, peer : callable
        Solve the problem by ``fm.minimize``, and by the other solver.
    peer_name : str
        The name of the other solver.
    """

    objective: Objective
    m: float
    gap: float
    ours: Callable[[], Answer]
    peer: Callable[[], Answer]
    peer_name: str


def answer_of(result: OptimizeResult) -> Answer:
    """Return the minimiser and the iterations of a result.

    Raises
    ------
    RuntimeError
        If the solver did not reach the accuracy that it was asked for.
    """
    if not result.success:
        raise RuntimeError(f"expected a solver to reach its tolerance; it ended with: {result.message}")
    return result.x, result.nit


def gtol_for(gap: float, m: float, size: int) -> float:
    """Return the gtol that guarantees the gap for an m-strongly convex objective of `size` variables."""
    return sqrt(2.0 * m * gap / size)


def least_squares(pair: Pair, peer: Callable[[], Answer], peer_name: str, ridge: float = 0.0, **options: Any) -> Case:
    """Return the case of linear least squares, with a penalty or bounds as ``fm.minimize`` takes them in `options`.

    ‖y − Xw‖²/2n + ridge·‖w‖²/2

    Both solvers work on X and not on XᵀX.
    """
    X, y = pair
    n, size = X.shape
    m = float(np.linalg.eigvalsh(X.T @ X / n)[0]) + ridge
    gap = GAP * float(y @ y) / n
    gtol = gtol_for(gap, m, size)
    arguments = {"args": (X, y, ridge), "jac": functions.least_squares_gradient, "gtol": gtol} | options
    l1 = options.get("l1", 0.0)

    def objective(w: Array) -> float:
        return float(np.mean((y - X @ w) ** 2) / 2 + ridge * np.sum(w**2) / 2 + l1 * np.sum(np.abs(w)))

    def ours() -> Answer:
        return answer_of(fm.minimize(functions.least_squares, np.zeros(size), **arguments))

    return Case(objective, m, gap, ours, peer, peer_name)


def coordinate_descent(model: Lasso | ElasticNet, pair: Pair) -> Callable[[], Answer]:
    """Return a function that fits a model of scikit-learn to X in Fortran order, which scikit-learn need not copy."""
    X, y = np.asfortranarray(pair[0]), pair[1]
    model.set_params(fit_intercept=False, tol=GAP, max_iter=100_000)

    def peer() -> Answer:
        fitted = model.fit(X, y)
        return fitted.coef_, fitted.n_iter_

    return peer


def lasso(pair: Pair) -> Case:
    """Return the case of least squares with an l1 penalty."""
    return least_squares(pair, coordinate_descent(Lasso(alpha=ALPHA), pair), "sklearn Lasso", l1=ALPHA)


def elastic_net(pair: Pair) -> Case:
    """Return the case of least squares with an l1 penalty and a ridge penalty."""
    peer = coordinate_descent(ElasticNet(alpha=ALPHA, l1_ratio=RATIO), pair)
    return least_squares(pair, peer, "sklearn ElasticNet", ALPHA * (1.0 - RATIO), l1=ALPHA * RATIO)


def non_negative(pair: Pair) -> Case:
    """Return the case of least squares with coefficients ≥ 0."""
    return least_squares(pair, lambda: (nnls(*pair)[0], None), "scipy nnls", bounds=Bounds(*NONNEGATIVE))


def bounded(pair: Pair) -> Case:
    """Return the case of least squares with coefficients in BOX."""
    peer = partial(lsq_linear, *pair, BOX, method="bvls")
    return least_squares(pair, lambda: answer_of(peer()), "scipy lsq_linear", bounds=Bounds(*BOX))


def smooth_case(
    objective: Objective,
    fun: Callable[..., float],
    jac: Callable[..., Array],
    args: tuple[Any, ...],
    size: int,
    m: float,
    bounds: Bounds | None,
) -> Case:
    """Return the case of a smooth objective against L-BFGS-B; both use the same functions, and stop by the gradient."""
    gap = GAP * objective(np.zeros(size))
    gtol = gtol_for(gap, m, size)
    options = {"gtol": gtol, "ftol": 0.0, "maxiter": 10_000, "maxfun": 100_000}

    def ours() -> Answer:
        return answer_of(fm.minimize(fun, np.zeros(size), args, jac=jac, bounds=bounds, gtol=gtol))

    def peer() -> Answer:
        return answer_of(minimize(fun, np.zeros(size), args, "L-BFGS-B", jac, bounds=bounds, options=options))

    return Case(objective, m, gap, ours, peer, "scipy L-BFGS-B")


def logistic() -> Case:
    """Return the case of a logistic regression with a ridge penalty."""
    X, y = data.tumours()

    def objective(w: Array) -> float:
        return float(np.mean(np.logaddexp(0.0, -y * (X @ w))) + RIDGE * np.sum(w**2) / 2)

    return smooth_case(
        objective, functions.logistic, functions.logistic_gradient, (X, y, RIDGE), X.shape[1], RIDGE, None
    )


def deblurring() -> Case:
    """Return the case of deblurring: find the picture in [0, 1] whose blur is nearest to the observed picture.

    A penalty on the squared differences between neighbouring pixels makes the problem well-conditioned.
    """
    observed, blur = data.picture()

    def objective(x: Array) -> float:
        X = x.reshape(observed.shape)
        differences = sum(np.sum(np.diff(X, axis=axis) ** 2) for axis in (0, 1))
        return float(np.sum((blur @ X @ blur.T - observed) ** 2) / 2 + SMOOTHNESS * differences / 2)

    along_one_axis = np.linalg.eigvalsh(data.squared_differences())
    eigenvalues = np.add.outer(along_one_axis, along_one_axis)
    m = float(np.min(np.exp(-(data.BLUR**2) * eigenvalues) + SMOOTHNESS * eigenvalues))
    args = (observed, blur, SMOOTHNESS)
    fun, jac = functions.deblurring, functions.deblurring_gradient
    return smooth_case(objective, fun, jac, args, observed.size, m, Bounds(*UNIT))


def poisson(rule: str, spectrum_known: bool) -> Case:
    """Return the case of Poisson's equation: the potential of two opposite charges in a square with zero boundary.

    If `spectrum_known`, ``fm.minimize`` gets the smallest and the largest eigenvalue; else it estimates them.
    """
    line = diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(GRID, GRID))
    A = (kron(line, eye_array(GRID)) + kron(eye_array(GRID), line)).tocsr()
    charges = np.zeros((GRID, GRID))
    charges[20, 20], charges[40, 50] = 1.0, -1.0
    b = charges.ravel()
    m, L = (8.0 * sin(wave * pi / (2 * GRID + 2)) ** 2 for wave in (1, GRID))
    gap = GAP * float(b @ b) / (2.0 * m)
    arguments: dict[str, Any] = {
        "args": (charges,),
        "jac": functions.poisson_gradient,
        "rule": rule,
        "spectrum": (m, L) if spectrum_known else None,
        "gtol": gtol_for(gap, m, b.size),
    }

    def ours() -> Answer:
        return answer_of(fm.minimize(functions.poisson, np.zeros(b.size), **arguments))

    def peer() -> Answer:
        iterations = count()
        x, status = cg(A, b, rtol=sqrt(GAP), callback=lambda _: next(iterations))
        if status:
            raise RuntimeError(f"expected conjugate gradients to reach rtol; scipy's cg ended with status {status}")
        return x, next(iterations)

    return Case(lambda x: float(x @ (A @ x) / 2 - b @ x), m, gap, ours, peer, "scipy cg")


CASES: dict[str, Callable[[], Case]] = {
    "lasso, diabetes": lambda: lasso(data.diabetes()),
    "lasso, digits": lambda: lasso(data.zeros()),
    "elastic net, diabetes": lambda: elastic_net(data.diabetes()),
    "non-negative least squares, digits": lambda: non_negative(data.mixture()),
    "bounded least squares, diabetes": lambda: bounded(data.diabetes()),
    "ridge-logistic regression, tumours": logistic,
    "deblurring in [0, 1], china.jpg": deblurring,
    "Poisson, Chebyshev": lambda: poisson("chebyshev", spectrum_known=True),
    "Poisson, heavy ball": lambda: poisson("heavy_ball", spectrum_known=True),
    "Poisson, Chebyshev, spectrum found": lambda: poisson("chebyshev", spectrum_known=False),
}
