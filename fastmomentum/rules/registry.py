"""Find rules by name: the package's own rules, and rules that users register."""

from fastmomentum.advice import did_you_mean
from fastmomentum.rules.adaptive import (
    adadelta,
    adagrad,
    adam,
    adamax,
    adamw,
    ademamix,
    amsgrad,
    radam,
    rmsprop,
    rmsprop_centered,
    rmsprop_centered_momentum,
    rmsprop_momentum,
    yogi,
)
from fastmomentum.rules.base import Rule
from fastmomentum.rules.momentum import (
    classical,
    classical_nesterov,
    ema,
    ema_nesterov,
    heavy_ball,
    nesterov_positions,
    pytorch,
    pytorch_nesterov,
    sgd,
)
from fastmomentum.rules.schedule_free import schedule_free_adamw, schedule_free_sgd
from fastmomentum.rules.summing import clipup, fire, lamb, lars, nadam
from fastmomentum.rules.variants import aggmo, ema_corrected, lion, quasi_hyperbolic, signum

_named: dict[str, Rule] = {
    str(rule.name): rule
    for rule in (
        *(sgd, pytorch, pytorch_nesterov, classical, classical_nesterov),
        *(ema, ema_nesterov, heavy_ball, nesterov_positions),
        *(ema_corrected, quasi_hyperbolic, aggmo, signum, lion),
        *(adam, adamw, amsgrad, radam, adamax, yogi, ademamix),
        *(rmsprop, rmsprop_momentum, rmsprop_centered, rmsprop_centered_momentum, adagrad, adadelta),
        *(nadam, schedule_free_sgd, schedule_free_adamw, lars, lamb, clipup, fire),
    )
}


SYNONYMS = {
    **dict.fromkeys(("torch", "optax", "momentum", "sgdm", "sgd_momentum", "sgd_with_momentum"), "pytorch"),
    **dict.fromkeys(("keras", "tensorflow", "tf"), "classical"),
    **dict.fromkeys(("nesterov", "nag", "nesterov_momentum", "nesterov_accelerated_gradient"), "pytorch_nesterov"),
    **dict.fromkeys(("polyak", "polyak_momentum"), "heavy_ball"),
    **dict.fromkeys(("gd", "gradient_descent"), "sgd"),
    "qhm": "quasi_hyperbolic",
    "signsgd": "signum",
}
"""Names from the literature and of other packages, each with the name of the same rule here."""


def register(rule: Rule) -> None:
    """Register `rule`, so that its name can be passed wherever a rule is expected.

    Raises
    ------
    TypeError
        If `rule` is not a Rule.
    ValueError
        If it has no name, or another rule has that name.

    Examples
    --------
    >>> import numpy as np, fastmomentum as fm
    >>> def signless(p, v, g, lr, mu):
    ...     v = mu * v + np.absolute(g)
    ...     return p - lr * v, v
    >>> fm.rules.register(fm.Rule(signless, name="signless"))
    >>> "signless" in fm.rules.names()
    True
    """
    if not isinstance(rule, Rule):
        raise TypeError(f"rule must be a Rule or a chain; got {type(rule).__name__}")
    if not rule.name:
        raise ValueError("rule must have a name to be registered: Rule(..., name=...)")
    if _named.setdefault(rule.name, rule) is not rule:
        raise ValueError(f"rule: the name {rule.name!r} belongs to another rule already")


def names() -> tuple[str, ...]:
    """Return the names of all rules: the package's own, then the registered ones.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> fm.rules.names()[:3]
    ('sgd', 'pytorch', 'pytorch_nesterov')
    """
    return tuple(_named)


def find(rule: str | Rule) -> Rule:
    """Return the rule of this name; a Rule is returned as it is.

    Raises
    ------
    TypeError
        If `rule` is neither a name nor a Rule.
    ValueError
        If no rule has this name.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> fm.rules.find("classical").formula
    'v ← μv + lr·g; p ← p − v'
    """
    if isinstance(rule, Rule):
        return rule
    if not isinstance(rule, str):
        raise TypeError(
            f"rule must be a name, a Rule or a chain; got {type(rule).__name__}"
            + ". A learning rate is passed by its name: lr=0.1" * isinstance(rule, float)
        )
    if rule not in _named:
        raise ValueError(
            f"rule must be one of {', '.join(_named)}; got {rule!r}{did_you_mean(rule, _named, synonyms=SYNONYMS)}"
        )
    return _named[rule]
