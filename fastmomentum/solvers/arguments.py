"""Check the arguments of a minimiser, and bring its start and its bounds into the form in which a run uses them."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds

from fastmomentum import checks
from fastmomentum.advice import SYNONYMS, did_you_mean
from fastmomentum.checks import FINITE
from fastmomentum.solvers.passes import Floats, Limits
from fastmomentum.solvers.step_sizes import SETTINGS

MEANT = {
    **SYNONYMS,
    **dict.fromkeys(("fprime", "grad", "gradient", "jacobian"), "jac"),
    **dict.fromkeys(("hessian", "fhess"), "hess"),
    **dict.fromkeys(
        ("max_iter", "maxiters", "niter", "n_iter", "num_iter", "maxfun", "maxfev", "max_steps"), "maxiter"
    ),
    **dict.fromkeys(("method", "optimizer"), "rule"),
    **dict.fromkeys(("verbose", "iprint"), "disp"),
    **dict.fromkeys(("beta", "mu", "nesterov"), "momentum"),
    **dict.fromkeys(("l1_weight", "l1_reg", "lasso"), "l1"),
    **dict.fromkeys(("box", "limits", "lb", "ub"), "bounds"),
}
"""Names of options of other minimisers, each with the name of the option here that comes nearest."""

ADVICE = {
    "prox": "The proximal maps that minimize has are those of l1= and of bounds=",
    "options": "Pass each option by its own name, as in maxiter=100",
}
"""What to do instead, for options that no other option replaces alone."""

NOT_COMPATIBLE = "The number of bounds is not compatible with the length of `x0`."
CROSSED = "An upper bound is less than the corresponding lower bound."
"""SciPy's own sentences, as programs and tests look for them."""


def check_options(given: Mapping[str, object], method: str, arguments: Iterable[str]) -> None:
    """Check that all these options are settings of the method.

    Parameters
    ----------
    given : mapping
        The options that are no arguments of minimize.
    method : str
        The name of the method.
    arguments : iterable of str
        The names of the arguments of minimize, for the message.

    Raises
    ------
    TypeError
        If one is not; the message says which options the method takes, and which may have been meant.

    Examples
    --------
    >>> check_options({"bound": 1}, "sgd", ["bounds", "lr", "settings"])
    Traceback (most recent call last):
    TypeError: bound: expected no option but bounds, lr with rule 'sgd'; got an unknown one. Did you mean bounds?
    """
    own = SETTINGS.get(method, ())
    unknown = [name for name in given if name not in own]
    if not unknown:
        return
    taken = [*(name for name in arguments if name != "settings"), *own]
    others = {name: other for other, names in SETTINGS.items() for name in names}
    advice = ""
    for name in unknown:
        if name in others:
            advice += f". {name} is a setting of rule {others[name]!r}"
        elif name in ADVICE:
            advice += f". {ADVICE[name]}"
        else:
            advice += did_you_mean(name, taken, synonyms=MEANT)
    got = "an unknown one" if len(unknown) == 1 else "unknown ones"
    raise TypeError(
        f"{', '.join(unknown)}: expected no option but {', '.join(taken)} with rule {method!r}; got {got}{advice}"
    )


def make_start(x0: npt.ArrayLike, any_shape: bool) -> Floats:
    """Return x0 as a new array of one dimension, or of more if `any_shape`, float32 or float64."""
    checks.numbers("x0", x0, FINITE)
    start = np.atleast_1d(np.array(x0))
    if (start.ndim != 1 and not any_shape) or not start.size:
        kind = "an array" if any_shape else "a one-dimensional array"
        raise ValueError(f"x0: expected {kind} of at least one number; got shape {start.shape}")
    return start.astype(np.float32 if start.dtype == np.float32 else np.float64)


def make_limits(bounds: Any, start: Floats) -> Limits:
    """Return the bounds as two arrays like `start`, or () if no parameter has a bound.

    Raises
    ------
    TypeError, ValueError
        If `bounds` is neither a Bounds nor a sequence of pairs, has another length than `start`, holds a NaN, or if a
        lower bound exceeds an upper one.
    """
    if bounds is None:
        return ()
    if isinstance(bounds, Bounds):
        low, high = bounds.lb, bounds.ub
    else:
        if not isinstance(bounds, Iterable):
            raise TypeError(f"bounds: expected Bounds, or pairs (low, high); got {checks.describe(bounds)}")
        pairs = list(bounds)
        if len(pairs) != start.size:
            raise ValueError(f"bounds: expected a sequence of {start.size}; got one of {len(pairs)}. {NOT_COMPATIBLE}")
        try:
            low, high = [low for low, _ in pairs], [high for _, high in pairs]
        except (TypeError, ValueError):
            raise ValueError(f"bounds: expected Bounds, or pairs (low, high); got {checks.describe(bounds)}") from None
        low, high = [-np.inf if x is None else x for x in low], [np.inf if x is None else x for x in high]
    try:
        with np.errstate(over="ignore"):
            low, high = (np.array(np.broadcast_to(each, start.shape), start.dtype) for each in (low, high))
    except (TypeError, ValueError):
        counts = {np.size(low), np.size(high)} - {1, start.size}
        got = f"{counts.pop()}. {NOT_COMPATIBLE}" if counts else checks.describe(bounds)
        raise ValueError(
            f"bounds: expected a number, or one number for each of {start.size} parameters; got {got}"
        ) from None
    crossing = ~((low <= high) & (low < np.inf) & (high > -np.inf))
    if crossing.any():
        k = int(np.argmax(crossing))
        reason = f". {CROSSED}" if low[k] > high[k] else ""
        raise ValueError(f"bounds: expected low <= high; got {low[k]} and {high[k]} for parameter {k}{reason}")
    return (low, high) if np.isfinite(low).any() or np.isfinite(high).any() else ()
