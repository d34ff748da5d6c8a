"""The update rules, each written once, as a plain function of scalars, with its record.

The same function object is the NumPy reference (on whole arrays), an exact oracle (on ``fractions.Fraction``), the
CPU kernels (compiled) and the theory (on unit vectors). The order of its operations is part of a rule's definition:
it fixes the bits.

Names: p parameter, g gradient, v velocity, q previous position, lr learning rate, mu momentum μ (beta β in the
averaging forms), keep 1 − τ or 1 − β, mu_next the next step's momentum. All rules written here are linear in p, state
and g; :mod:`fastmomentum.variants` has more.
"""

from fastmomentum.rules.base import Update
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
from fastmomentum.rules.variants import aggmo, ema_corrected, lion, quasi_hyperbolic, signum

_named: dict[str, Update] = {
    str(rule.name): rule
    for rule in (
        *(sgd, pytorch, pytorch_nesterov, classical, classical_nesterov),
        *(ema, ema_nesterov, heavy_ball, nesterov_positions),
        *(ema_corrected, quasi_hyperbolic, aggmo, signum, lion),
    )
}


def register(rule: Update) -> None:
    """Make `rule` known by its name wherever a rule's name is taken.

    Raises
    ------
    TypeError
        If it is no rule or chain.
    ValueError
        If it has no name, or another rule has it.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> def signless(p, v, g, lr, mu):
    ...     v = mu * v + np.absolute(g)
    ...     return p - lr * v, v
    >>> import numpy as np
    >>> fm.rules.register(fm.Rule(signless, name="signless"))
    >>> "signless" in fm.rules.names()
    True
    """
    if not isinstance(rule, Update):
        raise TypeError(f"rule must be a Rule or a chain; got {type(rule).__name__}")
    if not rule.name:
        raise ValueError("rule must have a name to be registered: Rule(..., name=...)")
    if _named.setdefault(rule.name, rule) is not rule:
        raise ValueError(f"rule: the name {rule.name!r} belongs to another rule already")


def names() -> tuple[str, ...]:
    """The names of all rules, the package's own and the registered.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> fm.rules.names()[:3]
    ('sgd', 'pytorch', 'pytorch_nesterov')
    """
    return tuple(_named)


def find(rule: "str | Update") -> Update:
    """The rule of that name, or the rule or chain itself.

    Raises
    ------
    TypeError
        If it is neither a name nor a rule.
    ValueError
        If no rule has this name.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> fm.rules.find("classical").formula
    'v ← μv + lr·g; p ← p − v'
    """
    if isinstance(rule, Update):
        return rule
    if not isinstance(rule, str):
        raise TypeError(f"rule must be a name, a Rule or a chain; got {type(rule).__name__}")
    if rule not in _named:
        raise ValueError(f"rule must be one of {', '.join(_named)}; got {rule!r}")
    return _named[rule]
