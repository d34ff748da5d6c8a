"""Aggregated momentum: several velocities, each with a β of its own."""

from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Real
from typing import Any

from fastmomentum import ranges
from fastmomentum.parts import Function, Wrap, as_it_is
from fastmomentum.records import Update


def _first(p: Any, v: Any, g: Any, rate: Any, beta: Any) -> tuple[Any, ...]:
    v = beta * v + g
    return p - rate * v, v


def _with_one_more(update: Function, last: Function, slots: int) -> Function:
    """`update`, which has so many velocities, and `last` behind it with a velocity and a β of its own."""
    mine, grad, rate, behind = slots + 1, slots + 2, slots + 3, 2 * slots + 4

    def composed(*everything: Any) -> Any:
        moved = update(*everything[:mine], *everything[grad:behind])
        p, v = last(moved[0], everything[mine], everything[grad], everything[rate], everything[behind])
        return (p, *moved[1:], v)

    return composed


@dataclass(frozen=True)
class Share:
    """lr / K, as a value, which a function inside another is not: it would keep a rule from being pickled."""

    count: int

    def __call__(self, lr: float) -> float:
        """lr / K."""
        return lr / self.count


def in_unit_interval(name: str, value: object) -> float:
    """`value` as a float, if it is a number in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected {ranges.UNIT_INTERVAL}; got {value!r}")
    if float(value) not in ranges.UNIT_INTERVAL:
        raise ValueError(f"{name}: expected {ranges.UNIT_INTERVAL}; got {value!r}")
    return float(value)


@dataclass(frozen=True, eq=False, kw_only=True)
class Aggregated(Update):
    """Momentum with several velocities; made by :func:`aggregated`."""

    @property
    def functions(self) -> tuple[Function, ...]:
        """See :class:`Part`."""
        return (_first,)

    @property
    def update(self) -> Function:
        """The scalar function ``(p, *velocities, g, rate, *betas) -> (p, *velocities)``."""
        return self.build()

    def build(self, wrap: Wrap = as_it_is) -> Function:
        """See :class:`Update`."""
        last = update = wrap(_first)
        for slots in range(1, len(self.state)):
            update = wrap(_with_one_more(update, last, slots))
        return update


def aggregated(betas: Iterable[float], name: str | None = None) -> Aggregated:
    """v_i ← β_i·v_i + g for each i; p ← p − (lr/K)·v₁ − … − (lr/K)·v_K: aggregated momentum.

    Parameters
    ----------
    betas : iterable of float
        β₁, …, β_K, each in [0, 1]. They are defaults: callers of the rule may give others as beta_1, …, beta_K.
    name : str, optional
        What the rule is called.

    Returns
    -------
    Update
        A rule with K velocities of the parameter's size, at rest at zero. It takes no momentum: the β stand for it.

    Raises
    ------
    TypeError, ValueError
        If there is no β, or one is no number or out of range.

    Notes
    -----
    Lucas, Sun, Zemel and Grosse 2019 (their velocities have the other sign), who advise β_i = 1 − 10^(1−i), K = 3: the
    rule "aggmo". With one β it is the rule "pytorch". It has an equivalent in none of torch, optax and Keras.

    Examples
    --------
    >>> import numpy as np, fastmomentum as fm
    >>> rule = fm.rules.aggregated([0.0, 0.5])
    >>> p, state = np.array([1.0]), (np.zeros(1), np.zeros(1))
    >>> for g in (1.0, 1.0):
    ...     fm.step(p, state, np.array([g]), rule=rule, lr=0.25)
    >>> p, state
    (array([0.4375]), (array([1.]), array([1.5])))
    """
    if not isinstance(betas, Iterable):
        raise TypeError(f"betas: expected numbers in [0, 1], one at least; got {betas!r}")
    held = {f"beta_{i}": in_unit_interval(f"betas[{i - 1}]", beta) for i, beta in enumerate(betas, 1)}
    if not held:
        raise ValueError("betas: expected numbers in [0, 1], one at least; got none")
    return Aggregated(
        name=name,
        state=tuple((f"velocity_{i}", "zero") for i in range(1, len(held) + 1)),
        hyper=("rate", *held),
        derived={"rate": Share(len(held))},
        defaults=held,
        ranges=dict.fromkeys(held, ranges.UNIT_INTERVAL),
        formula="v_i ← β_i·v_i + g; p ← p − (lr/K)·Σv_i",
    )


aggmo = aggregated((0.0, 0.9, 0.99), name="aggmo")
"""Aggregated momentum with the three β that Lucas et al. 2019 advise; :func:`aggregated` makes others."""
