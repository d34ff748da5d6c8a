"""Converts learning rate, momentum and state between rules, so that a run continues on its trajectory.

Rules of one method differ in what they keep. Both families can be described by the displacement w of the last step
(the velocity of `classical`) and the learning rate α that multiplies the gradient in it:

    heavy ball   p ← p − w⁺ with w⁺ = μw + αg                classical, pytorch, ema, heavy_ball; sgd if μ = 0
    Nesterov     the same, with g taken at the point p − μw

    classical    w = v              α = lr
    pytorch      w = lr·v           α = lr(1 − τ)
    ema          w = lr·v           α = lr(1 − β)
    heavy_ball   w = q − p          α = lr
    nesterov_positions   w = (q − p)/μ; p is the point and q the parameter

The folded Nesterov forms, and those with an explicit look-ahead (named pytorch_lookahead and so on here), keep the
velocity of the rule that they are a form of. Between these two the parameters differ, not the state: the folded form
holds the point, which is ``opt.point`` of the other, and the state of nesterov_positions is the other's parameter.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fastmomentum import checks
from fastmomentum.checks import RANGES
from fastmomentum.rules.base import LOOK_AHEAD, LR_CORRECTION, Rule
from fastmomentum.rules.registry import find


class Convention(NamedTuple):
    """How a rule keeps the displacement of the last step.

    Attributes
    ----------
    method : str
        The method that the rule is a form of.
    displacement : callable
        ``displacement(state, p, lr, mu)``: w.
    state : callable
        ``state(w, p, lr, mu)``: the state.
    lr_factor : callable
        ``lr_factor(mu, tau)``: α/lr.
    keeps : str
        What the state holds, for messages.
    divides : bool
        Whether the state is w over lr, and so carries no lr.
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
    return Convention(method, lambda v, p, lr, mu: v, lambda w, p, lr, mu: w, lambda mu, tau: 1.0)


def _scaled(method: str, lr_factor: Callable[[float, float], float]) -> Convention:
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
    """Return state, lr and momentum with which a run of the rule `source` continues under `target` on its trajectory.

    With w the displacement and α the learning rate that multiplies the gradient in it: lr of the target is α over the
    share of the gradient that it takes (1 − τ in pytorch, 1 − β in ema, else 1), and its state keeps the same w:
    v = w (classical), v = w/lr (pytorch, ema), q = p + w (heavy_ball), q = p + μw (nesterov_positions).

    Parameters
    ----------
    state : ndarray, None, or list of these
        The state of `source`, as ``opt.state`` has it; float32 or float64. It is not changed.
    source, target : str or Rule
        The rules; the look-ahead forms are named "classical_lookahead", "pytorch_lookahead", "ema_lookahead".
    lr, momentum, dampening : float
        The settings of the source; dampening is that of pytorch, on either side.
    param : ndarray, or list of ndarray, optional
        The parameter, needed if one side keeps positions, or nothing; from a look-ahead form to nesterov_positions its
        point, which is that rule's parameter.

    Returns
    -------
    state : ndarray, None, or list of these
        New arrays, computed in double precision, in the dtype of the given ones.
    lr, momentum : float
        The settings to go on with.

    Raises
    ------
    TypeError, ValueError
        If an argument is refused, or there is no exact conversion: between the two methods; with lr = 0 to a
        rule that divides by it; with β = 1 or τ = 1 to the rule that then takes no gradient; to sgd with momentum.

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
        raise ValueError(f"dampening: expected 0 without momentum, where Momentum leaves it out; got {dampening}")
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
            _each(lambda s, p: s if s is None else checks.array("state", s, write=False).copy(), state, param),
            lr,
            mu,
        )
    if new.lr_factor(mu, tau) == 0.0:
        raise ValueError(f"target: expected a rule that takes some of the gradient; {names[1]!r} takes 0 of it")
    alpha = lr * old.lr_factor(mu, tau)
    rate = alpha / new.lr_factor(mu, tau)
    if new.divides and alpha == 0.0:
        raise ValueError(f"lr: expected > 0, as the velocity of {names[1]!r} is the displacement over lr; got {lr}")
    if not np.isfinite(rate) or (rate == 0.0) != (lr == 0.0 or old.lr_factor(mu, tau) == 0.0):
        raise ValueError(
            f"lr: expected a rate that a double can hold for {names[1]!r}; got {lr}, which comes to {rate}"
        )

    def one(kept: Any, at: Any) -> Any:
        if old.keeps != NOTHING:
            kept = checks.array("state", kept, write=False)
        if {old.keeps, new.keeps} == {"velocity"}:
            at = kept
        elif at is None:
            keeps = new.keeps if old.keeps == "velocity" else old.keeps
            raise TypeError(f"param: expected the parameter, as one of the two rules keeps {keeps}; got None")
        at = checks.array("param", at, write=False)
        if old.keeps == NOTHING:
            kept = at
        checks.array("state", kept, like=at, write=False)
        with np.errstate(all="ignore"):
            p = at.astype(np.float64)
            found = new.state(old.displacement(kept.astype(np.float64), p, lr, mu), p, rate, mu)
            found = None if found is None else found.astype(at.dtype)
        if found is not None and not np.isfinite(found).all() and np.isfinite(kept).all() and np.isfinite(at).all():
            raise ValueError(f"state: expected one that {at.dtype} can hold for {names[1]!r}; it came to an infinity")
        return found

    return _each(one, state, param), rate, mu


def _each(one: Callable[[Any, Any], Any], state: Any, param: Any) -> Any:
    if not isinstance(state, list):
        return one(state, param)
    params = [None] * len(state) if param is None else param
    checks.sequence("param", params, len(state))
    return [one(s, p) for s, p in zip(state, params)]


def convention_of(side: str, rule: str | Rule) -> str:
    """Return the name of a rule among :data:`CONVENTIONS`; messages call the rule `side`.

    Raises
    ------
    ValueError
        If the rule is not among them.
    """
    if isinstance(rule, str) and rule in CONVENTIONS:
        return rule
    update = find(rule)
    if any(stage.kind != "gradient" for stage in update.stages_before) or any(
        stage.kind not in (LOOK_AHEAD, LR_CORRECTION) for stage in update.stages_after
    ):
        raise ValueError(
            f"{side}: expected at most gradient stages around the rule; got {update}, which moves p itself"
        )
    core = update.core
    if core.name not in CONVENTIONS or find(core.name).structure != core.structure:
        raise ValueError(f"{side}: expected one of {', '.join(CONVENTIONS)}; got {update}, whose method is not known")
    return core.name + ("_lookahead" if update.gradient_slot == "point" else "")
