"""Convert learning rate, momentum and state between rules, so that a run continues on its trajectory.

Rules of one method differ in their state. Each state can be computed from the displacement w of the last step (the
velocity of `classical`) and the learning rate α that multiplies the gradient in it:

    heavy ball   p ← p − w⁺ with w⁺ = μw + αg                classical, pytorch, ema, heavy_ball; sgd if μ = 0
    Nesterov     the same, with g taken at the point p − μw

    classical    w = v              α = lr
    pytorch      w = lr·v           α = lr(1 − τ)
    ema          w = lr·v           α = lr(1 − β)
    heavy_ball   w = q − p          α = lr
    nesterov_positions   w = (q − p)/μ, α = lr; p is the look-ahead point, and q the parameter

A folded Nesterov form, and the form with an explicit look-ahead (here named pytorch_lookahead and so on), have the
velocity of the rule that they are forms of. The two forms differ in their parameter, not in their state: p of the
folded form is ``opt.point`` of the explicit form. The state q of nesterov_positions is p of the explicit form.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastmomentum import checks
from fastmomentum.checks import RANGES
from fastmomentum.rules.averages import is_observer
from fastmomentum.rules.base import Rule
from fastmomentum.rules.registry import find
from fastmomentum.rules.stage import LOOK_AHEAD, LR_CORRECTION


class Convention(NamedTuple):
    """Hold the relations between a rule's state and the displacement w of the last step.

    Attributes
    ----------
    method : str
        The author of the method that the rule is a form of.
    displacement : callable
        ``displacement(state, p, lr, mu)`` returns w.
    state : callable
        ``state(w, p, lr, mu)`` returns the state.
    lr_factor : callable
        ``lr_factor(mu, tau)`` returns α/lr.
    keeps : str
        The name of the state in messages.
    divides : bool
        Whether the state is w/lr.
    """

    method: str
    displacement: Callable[..., Any]
    state: Callable[..., Any]
    lr_factor: Callable[[float, float], float]
    keeps: str = "velocity"
    divides: bool = False


BALL, NESTEROV = "Polyak", "Nesterov"
NOTHING, POSITION = "nothing", "the previous position"


def _plain(method: str) -> Convention:
    """Return the convention of rules with v = w."""
    return Convention(method, lambda v, p, lr, mu: v, lambda w, p, lr, mu: w, lambda mu, tau: 1.0)


def _scaled(method: str, lr_factor: Callable[[float, float], float]) -> Convention:
    """Return the convention of rules with v = w/lr."""
    return Convention(method, lambda v, p, lr, mu: lr * v, lambda w, p, lr, mu: w / lr, lr_factor, divides=True)


CONVENTIONS = {
    "sgd": Convention(
        BALL, lambda s, p, lr, mu: np.zeros_like(p), lambda w, p, lr, mu: None, lambda mu, tau: 1.0, NOTHING
    ),
    "classical": _plain(BALL),
    "pytorch": _scaled(BALL, lambda mu, tau: 1.0 - tau),
    "ema": _scaled(BALL, lambda mu, tau: 1.0 - mu),
    "heavy_ball": Convention(
        BALL, lambda q, p, lr, mu: q - p, lambda w, p, lr, mu: p + w, lambda mu, tau: 1.0, POSITION
    ),
    "nesterov_positions": Convention(
        NESTEROV,
        lambda q, p, lr, mu: (q - p) / mu if mu else np.zeros_like(p),
        lambda w, p, lr, mu: p + mu * w,
        lambda mu, tau: 1.0,
        POSITION,
    ),
    **{f"classical_{form}": _plain(NESTEROV) for form in ("nesterov", "lookahead")},
    **{f"ema_{form}": _scaled(NESTEROV, lambda mu, tau: 1.0 - mu) for form in ("nesterov", "lookahead")},
    "pytorch_nesterov": _scaled(NESTEROV, lambda mu, tau: 1.0),
    "pytorch_lookahead": _scaled(NESTEROV, lambda mu, tau: 1.0 - tau),
}


def convert(
    state: Any,
    *,
    source: str | Rule,
    target: str | Rule,
    lr: float,
    momentum: float,
    dampening: float = 0.0,
    param: Any = None,
) -> tuple[Any, float, float]:
    """Return state, lr and momentum with which a run of the rule `source` continues on its trajectory under `target`.

    Both rules have the same displacement w of the last step, and the same learning rate α that multiplies the gradient:
    α = lr(1 − τ) in pytorch, lr(1 − β) in ema, else lr. From w the state of the target is
    v = w (classical), v = w/lr (pytorch, ema), q = p + w (heavy_ball), q = p + μw (nesterov_positions).

    Parameters
    ----------
    state : ndarray, None, or list of these
        The state of `source`, as ``opt.state`` has it: real or complex, of any dense layout. It is not changed.
    source, target : str or Rule
        The rules; the look-ahead forms are named "classical_lookahead", "pytorch_lookahead", "ema_lookahead".
    lr, momentum, dampening : float
        The settings of the source; dampening is τ of pytorch, whether it is the source or the target.
    param : ndarray, or list of ndarray, optional
        The parameter, needed if the state of one rule is a position or None. If the source is a look-ahead form and the
        target nesterov_positions, pass ``opt.point``, which becomes the target's parameter.

    Returns
    -------
    state : ndarray, None, or list of these
        New arrays, computed in double precision, with the dtype and strides of the given ones.
    lr, momentum : float
        The settings of the target.

    Raises
    ------
    TypeError, ValueError
        If an argument is refused, or there is no exact conversion: between heavy ball and Nesterov's method; with
        lr = 0 to pytorch or ema; to ema with β = 1, or to pytorch with τ = 1; to sgd with momentum.

    Examples
    --------
    >>> import numpy as np, fastmomentum as fm
    >>> fm.convert(np.array([0.5]), source="classical", target="pytorch", lr=0.25, momentum=0.9)
    (array([2.]), 0.25, 0.9)
    >>> fm.convert(np.array([2.0]), source="pytorch", target="ema", lr=0.25, momentum=0.5)
    (array([1.]), 0.5, 0.5)
    """
    names = [convention_of(side, rule) for side, rule in (("source", source), ("target", target))]
    old, new = (CONVENTIONS[name] for name in names)
    lr, mu = checks.number("lr", lr, RANGES["lr"]), checks.number("momentum", momentum, RANGES["momentum"])
    tau = checks.number("dampening", dampening, RANGES["dampening"])
    if tau and not {"pytorch", "pytorch_lookahead"} & set(names):
        raise ValueError(f"dampening: expected 0, as {names[0]} and {names[1]} have none; got {dampening}")
    if tau and (mu == 0.0 or "sgd" in names):
        raise ValueError(f"dampening: expected 0 without momentum, as Momentum then ignores it; got {dampening}")
    if old.method != new.method:
        raise ValueError(
            f"target: expected a rule of {old.method}'s method, as {names[0]!r} is; got {names[1]!r}, {new.method}'s, "
            "which takes its gradients elsewhere: no state makes it continue the same trajectory"
        )
    mu = 0.0 if names[0] == "sgd" else mu
    if names[1] == "sgd" and mu:
        raise ValueError(f"target: expected a rule that has momentum, as it is {mu}; got 'sgd'")
    if names[0] == names[1]:
        return (
            _for_each(lambda s, p: s if s is None else _copy(s), state, param),
            lr,
            mu,
        )
    if new.lr_factor(mu, tau) == 0.0:
        raise ValueError(f"target: expected a rule that takes some of the gradient; {names[1]!r} takes 0 of it")
    alpha = lr * old.lr_factor(mu, tau)
    new_lr = alpha / new.lr_factor(mu, tau)
    if new.divides and alpha == 0.0:
        raise ValueError(f"lr: expected > 0, as the velocity of {names[1]!r} is the displacement over lr; got {lr}")
    if not np.isfinite(new_lr) or (new_lr == 0.0) != (lr == 0.0 or old.lr_factor(mu, tau) == 0.0):
        raise ValueError(
            f"lr: expected a number that gives {names[1]!r} an lr which a double can hold; got {lr}, for {new_lr}"
        )

    def convert_one(slot: Any, p: Any) -> Any:
        if old.keeps != NOTHING:
            slot = checks.array("state", slot, write=False, dense=True)
        if {old.keeps, new.keeps} == {"velocity"}:
            p = slot  # only shape and dtype of p are used
        elif p is None:
            keeps = new.keeps if old.keeps == "velocity" else old.keeps
            raise TypeError(f"param: expected the parameter, as the state of one of the two rules is {keeps}; got None")
        p = checks.array("param", p, write=False, dense=True)
        if old.keeps == NOTHING:
            slot = p  # the displacement does not depend on it
        checks.array("state", slot, like=p, write=False, dense=True)
        found = None if new.keeps == NOTHING else checks.empty_like(p)
        for values, one, other in zip(_parts(found), _parts(slot), _parts(p)):
            wide = other.astype(np.float64)
            with np.errstate(all="ignore"):
                values[...] = new.state(old.displacement(one.astype(np.float64), wide, lr, mu), wide, new_lr, mu)
        if found is not None and not np.isfinite(found).all() and np.isfinite(slot).all() and np.isfinite(p).all():
            raise ValueError(f"state: expected one that {p.dtype} can hold for {names[1]!r}; it became infinite")
        return found

    return _for_each(convert_one, state, param), new_lr, mu


def _copy(state: Any) -> Any:
    found = checks.empty_like(checks.array("state", state, write=False, dense=True))
    found[...] = state
    return found


def _parts(values: Any) -> tuple[Any, ...]:
    """Return the real and imaginary parts of complex numbers, real numbers themselves, and nothing for None."""
    if values is None:
        return ()
    return (values.real, values.imag) if values.dtype.kind == "c" else (values,)


def _for_each(function: Callable[[Any, Any], Any], state: Any, param: Any) -> Any:
    """Return the function's result for a state and its parameter, or a list of results for lists of both."""
    if not isinstance(state, list):
        return function(state, param)
    params = [None] * len(state) if param is None else param
    checks.sequence("param", params, len(state))
    return [function(s, p) for s, p in zip(state, params)]


def convention_of(side: str, rule: str | Rule) -> str:
    """Return the key of a rule in :data:`CONVENTIONS`; `side` is the name of the argument in messages.

    Raises
    ------
    ValueError
        If the rule, or a stage around it, is not supported.
    """
    if isinstance(rule, str) and rule in CONVENTIONS:
        return rule
    update = find(rule)
    if any(map(is_observer, update.links)):
        raise ValueError(
            f"{side}: expected a rule without an average, as the state is one array; got {update}. Pass the velocity, "
            "and the rule inside; opt.convert takes averages along"
        )
    if any(stage.kind != "gradient" for stage in update.stages_before) or any(
        stage.kind not in (LOOK_AHEAD, LR_CORRECTION) for stage in update.stages_after
    ):
        raise ValueError(
            f"{side}: expected at most gradient stages around the rule; got {update}, which moves p itself"
        )
    core = update.core
    if core.name not in CONVENTIONS or find(core.name).functions != core.functions:
        raise ValueError(f"{side}: expected one of {', '.join(CONVENTIONS)}; got {update}")
    return core.name + ("_lookahead" if update.gradient_slot == "point" else "")


def same_method(rule: Rule, names: Sequence[str]) -> str | None:
    """Return the first of these names of conventions to which a rule can be converted; None if it is none."""
    try:
        method = CONVENTIONS[convention_of("rule", rule)].method
    except ValueError:
        return None
    return next((name for name in names if CONVENTIONS[name].method == method), None)


def can_convert(source: str, target: str) -> bool:
    """Return whether runs of the rule `source` can go on under the rule `target`, both given by name."""
    known = source in CONVENTIONS and target in CONVENTIONS
    return known and CONVENTIONS[source].method == CONVENTIONS[target].method
