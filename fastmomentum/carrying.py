"""What a change of the learning rate in mid-run does to a velocity, and what puts it right.

In pytorch, ema and their Nesterov forms a velocity holds gradients alone, and a new lr acts on all of it at once:

    p ← p − lr·v           the whole displacement is that of the new lr

In classical and its Nesterov form v holds lr·g, in heavy_ball and nesterov_positions q − p holds it: what was gathered
goes on at the lr that it was gathered with, and a run in which lr falls tenfold still moves as far as before in its
next 1/(1 − μ) steps. There the trajectory is that of the pytorch form after

    v ← v·lr'/lr           q ← q + (lr'/lr − 1)·(q − p)

with lr' the new one, which ``correct=True`` has done: where lr is a function of the step in the update's own pass,
where it is assigned at once. Which state carries lr is not written down anywhere: the rule's own function tells it.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Any

from fastmomentum import checks
from fastmomentum.compose import Chain, Composite, Piece
from fastmomentum.parts import Function, Part, Wrap, as_it_is
from fastmomentum.ranges import ABOVE_ZERO
from fastmomentum.records import Update


def carry_over(lr: float, lr_next: float) -> float:
    """lr'/lr."""
    return lr_next / lr


def stretch_by(lr: float, lr_next: float) -> float:
    """lr'/lr − 1, in one rounding where they are near each other."""
    return (lr_next - lr) / lr


def _carry_velocity(p: Any, v: Any, carry: Any) -> Any:
    return carry * v


def _stretch_position(p: Any, q: Any, stretch: Any) -> Any:
    return q + stretch * (q - p)


_NEXT, _RANGES = {"lr_next": "lr"}, {"lr": ABOVE_ZERO, "lr_next": ABOVE_ZERO}
_KEPT = {**_RANGES, "carry": ABOVE_ZERO}
"""A carry that the dtype cannot tell from 0 would lose the velocity."""
CARRIES = {
    "zero": Piece(_carry_velocity, hyper=("carry",), derived={"carry": carry_over}, defaults=_NEXT, ranges=_KEPT),
    "param": Piece(
        _stretch_position, hyper=("stretch",), derived={"stretch": stretch_by}, defaults=_NEXT, ranges=_RANGES
    ),
}
"""For each kind of rest what takes a slot over to the next lr: ``function(p, slot, number) -> slot``."""


def _carried(update: Function, carry: Function, at: int, slots: int, taken: int) -> Function:
    """`update`, with so many slots and hyper-parameters, and `carry` on what it returns at the place `at`."""
    first, last, behind = at, slots + 2 + taken, at + 1

    def composed(*everything: Any) -> Any:
        out = update(*everything[:last])
        return (*out[:first], carry(out[0], out[first], *everything[last:]), *out[behind:])

    return composed


@dataclass(frozen=True, eq=False, kw_only=True)
class Carrying(Composite):
    """A rule of which one slot, at this place among (p, *state), goes over to the next lr; made by :func:`carrying`."""

    at: int

    @property
    def piece(self) -> Piece:
        """What the slot goes through."""
        return CARRIES[self.state[self.at - 1][1]]

    @property
    def parts(self) -> tuple[Part, ...]:
        """The rule and what its slot goes through."""
        return self.rule, self.piece

    @property
    def structure(self) -> tuple[Any, ...]:
        """See :class:`Part`."""
        return *super().structure, self.at

    @property
    def ahead(self) -> Function | None:
        """The rule's own, as the velocity that it takes has gone over to the lr that it takes."""
        return getattr(self.rule, "ahead", None)

    def build(self, wrap: Wrap = as_it_is) -> Function:
        """See :class:`Update`."""
        rule = self.rule
        return wrap(_carried(rule.build(wrap), wrap(self.piece.function), self.at, len(rule.state), len(rule.hyper)))


def carrying(rule: Update) -> Update:
    """The `rule`, such that its state goes over to the next step's lr; itself where no state carries one.

    Raises
    ------
    ValueError
        If no change of its state lets it go on as if lr had been the new one from the beginning.
    """
    found = rule
    for slot in carried_slots(rule):
        piece = CARRIES[dict(rule.state)[slot]]
        found = Carrying(
            rule=found,
            at=1 + rule.slots.index(slot),
            name=rule.name,
            state=rule.state,
            first=rule.first,
            gradient_at=rule.gradient_at,
            hyper=(*found.hyper, *piece.hyper),
            defaults={**found.defaults, **piece.defaults},
            ranges={**found.ranges, **piece.ranges},
            formula=f"{found.formula}; {slot} over to the next lr",
        )
    return found


def pieces_of(update: Update) -> list[tuple[int, Piece]]:
    """What takes slots of this rule over to the next lr, each with its place among (p, *state)."""
    found = []
    rule: Any = update
    while rule is not None:
        if isinstance(rule, Carrying):
            found.append((rule.at, rule.piece))
        rule = getattr(rule, "rule", None)  # of a chain, a look-ahead form or another of these
    return found


@lru_cache(maxsize=256)
def carried_slots(rule: Update) -> tuple[str, ...]:
    """The slots of its state that carry lr: the fewest that, doubled together with lr, double where p goes from 0.

    Powers of two change no rounding, so that the paths are compared as they are; the gradients do not depend on p.

    Raises
    ------
    ValueError
        If there are none such.
    """
    if isinstance(rule, Chain) and rule.proximal:
        raise ValueError(f"correct: expected no proximal map, whose step is no multiple of lr; got {rule}")
    if isinstance(rule, Composite):
        return carried_slots(rule.rule)  # what stands around a rule carries none
    if "lr" not in rule.parameters:
        return ()
    expected = [2.0 * p for p in _path(rule, 1.0, ())]
    for count in range(1 + len(rule.slots)):
        for chosen in combinations(rule.slots, count):
            if _path(rule, 2.0, chosen) == expected:
                return chosen
    raise ValueError(f"correct: expected a rule whose displacement is lr times what its state holds; got {rule}")


def _path(rule: Update, factor: float, chosen: tuple[str, ...]) -> list[float]:
    """Where p goes from 0 with `factor` times a learning rate and times what is in the slots `chosen`."""
    given = {name: 0.5 for name in rule.parameters if name not in rule.defaults} | {"lr": 0.125 * factor}
    hyper = rule.arguments(checks.settings(rule, given, lambda name, value, allowed: value))
    update, now, path = rule.build(), [0.0, *(0.75 * (factor if slot in chosen else 1.0) for slot in rule.slots)], []
    for gradient in (0.5, -0.25, 1.0):
        now = update(*now, gradient, *hyper)
        path.append(float(now[0]))
    return path
