"""One fused update, without an object."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from fastmomentum import backends, checks
from fastmomentum.backends import threads as guards
from fastmomentum.records import Update
from fastmomentum.settings import settle


def step(
    param: Any,
    state: Any,
    grad: Any,
    *,
    rule: str | Update = "pytorch",
    lr: float,
    momentum: float = 0.9,
    dampening: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    decoupled_weight_decay: float = 0.0,
    maximize: bool = False,
    clip_value: float | None = None,
    backend: str | None = None,
    threads: int | None = None,
    **hyper: float,
) -> None:
    """One update of `param` and `state` in place, in one pass over memory: the raw formula, no first-step case.

    With the rule "pytorch": v ← μv + (1−τ)g; p ← p − lr·v. Options act on the gradient first, in torch's order:
    clip by value, negate (maximize), add weight_decay·p; then p ← p·(1 − lr·decoupled_weight_decay), then the rule.

    Parameters
    ----------
    param : ndarray
        float32 or float64, C-contiguous, of any shape; written.
    state : ndarray, tuple of ndarray, or None
        As the rule declares, like `param` in dtype and shape; written. For most rules it is the velocity, zero
        before the first step; for heavy_ball and nesterov_positions the previous position, at first a copy of
        `param`; None for sgd.
    grad : ndarray
        Like `param`; only read. NaN and infinities in it propagate as in NumPy.
    rule : str, Rule or chain
        The update rule; :func:`fastmomentum.rules.names` lists the names.
    lr : float
        Learning rate, ≥ 0.
    momentum : float
        μ (β in the ema forms), in [0, 1]; has no part in rules that do not declare it (sgd).
    dampening : float
        τ in [0, 1], for the rule "pytorch".
    nesterov : bool
        Take the rule's folded Nesterov form.
    weight_decay, decoupled_weight_decay : float
        Coupled (L2) and decoupled (AdamW's) decay, ≥ 0.
    maximize : bool
        Ascend instead of descend.
    clip_value : float, optional
        Clip every element of the gradient to [−clip_value, clip_value]; > 0.
    backend : {None, "numpy", "cpu"}
        None is the compiled kernel; "numpy" is the reference, with the same bits.
    threads : int
        How many threads may work, −1 for all; None for what :func:`fastmomentum.set_threads` says, 1 at first. Fewer
        work where more would be slower or unsafe; the bits are the same.
    **hyper : float
        What else the rule declares (momentum_next, the values of a chain's stages, a user rule's own).

    Raises
    ------
    TypeError, ValueError
        If an argument cannot be served; nothing has been written then.

    Examples
    --------
    >>> import numpy as np, fastmomentum as fm
    >>> p, v = np.array([1.0, 2.0]), np.zeros(2)
    >>> for g in ([0.5, -0.25], [0.5, 0.25]):
    ...     fm.step(p, v, np.array(g), lr=0.5, momentum=0.5)
    >>> p, v
    (array([0.375 , 2.0625]), array([0.75 , 0.125]))
    """
    param = checks.array("param", param)
    # fmt: off
    settings = (rule, param.dtype, backend, threads, lr, momentum, dampening, nesterov, weight_decay,
                decoupled_weight_decay, maximize, clip_value)
    # fmt: on
    try:
        update, kernel, row = _plan(*settings, **hyper)
    except (TypeError, ValueError):  # of what cannot be hashed, a 0-d array say, or is refused: both come out here
        update, kernel, row = _plan.__wrapped__(*settings, **hyper)
    arrays = (param, *checks.state(update, state, param))
    grad = checks.array("grad", grad, like=param, write=False)
    if param.ndim != 1:
        arrays, grad = tuple(array.reshape(-1) for array in arrays), grad.reshape(-1)
    done = None if threads == 1 or backend == "numpy" else _in_threads(update, arrays, grad, row, threads)
    if not (kernel(arrays, grad, row) if done is None else done):
        checks.refuse_shared(("param", *update.slots, "grad"), (*arrays, grad))


def _in_threads(update: Update, arrays: Any, grad: Any, row: Any, threads: int | None) -> bool | None:
    """What the threaded kernel answers; None where it does not serve."""
    count = guards.worthwhile(grad.size, threads)
    if count == 1:
        return None
    kernel = backends.kernel(update, grad.dtype, "cpu", parallel=True)
    ours = guards.region()
    if ours is None:
        return None
    with ours:
        return kernel(arrays, grad, row, count)


@lru_cache(maxsize=1024, typed=True)
def _plan(
    rule: str | Update,
    dtype: np.dtype[Any],
    backend: str | None,
    threads: int | None,
    lr: float,
    momentum: float,
    dampening: float,
    nesterov: bool,
    weight_decay: float,
    decoupled_weight_decay: float,
    maximize: bool,
    clip_value: float | None,
    /,
    **hyper: float,
) -> tuple[Update, Callable[..., bool], tuple[Any, ...]]:
    """All that a step needs and that does not depend on the arrays' contents, once for each set of settings."""
    name = backends.choose(backend)
    checks.threads(threads)
    for option in ("max_norm", "lookahead", "skip_nonfinite"):
        if option in hyper:
            raise TypeError(f"{option}: expected of Momentum alone, which knows all gradients; got {hyper[option]!r}")
    update, given = settle(
        rule,
        lr=lr,
        momentum=momentum,
        dampening=dampening,
        nesterov=nesterov,
        weight_decay=weight_decay,
        decoupled_weight_decay=decoupled_weight_decay,
        maximize=maximize,
        clip_value=clip_value,
        **hyper,
    )
    row = checks.hyper(update, given, dtype)
    return update, backends.kernel(update, dtype, name), row
