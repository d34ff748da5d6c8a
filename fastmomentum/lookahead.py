"""Velocity rules with an explicit look-ahead: the update that also writes where to take the next gradient."""

from dataclasses import dataclass
from functools import cache
from typing import Any

from fastmomentum.compose import Composite, Piece
from fastmomentum.parts import Function, Part, Wrap, as_it_is
from fastmomentum.records import Rule, Update


def _looking_ahead(update: Function, ahead: Function, taken: int) -> Function:
    """`update`, which keeps a velocity and takes so many hyper-parameters, and the next point at which to look."""

    def composed(p: Any, v: Any, point: Any, g: Any, *hyper: Any) -> Any:
        p, v = update(p, v, g, *hyper[:taken])
        return p, v, ahead(p, v, *hyper[taken:])

    return composed


@dataclass(frozen=True, eq=False, kw_only=True)
class LookAhead(Composite):
    """A velocity rule whose gradient is taken where momentum will carry the parameter; made by :func:`look_ahead`.

    Its second state slot is that point, which each update writes in the same pass, for the next one's lr and momentum.
    """

    piece: Piece

    @property
    def parts(self) -> tuple[Part, ...]:
        """The rule and what finds the point."""
        return self.rule, self.piece

    @property
    def ahead(self) -> Function:
        """``ahead(p, velocity, lr, mu)``, the point."""
        return self.piece.function

    @property
    def description(self) -> str:
        """See :class:`Part`."""
        return self.rule.description

    def build(self, wrap: Wrap = as_it_is) -> Function:
        """See :class:`Update`."""
        return wrap(_looking_ahead(self.rule.build(wrap), wrap(self.ahead), len(self.rule.hyper)))


@cache
def pointing(rule: LookAhead) -> Rule:
    """The rule that moves nothing but the point."""
    ahead = rule.ahead

    def point(p: Any, v: Any, point: Any, g: Any, lr: Any, mu: Any) -> Any:
        return p, v, ahead(p, v, lr, mu)

    return Rule(point, name=f"{rule.name}_point", state=rule.state)


def look_ahead(rule: Update) -> LookAhead:
    """The `rule` with an explicit look-ahead.

    Raises
    ------
    ValueError
        If the rule has no such form.
    """
    ahead: Function | None = getattr(rule, "ahead", None)
    if ahead is None:
        raise ValueError(f"lookahead=True: rule {rule} has no look-ahead form; pytorch, classical and ema have one")
    if len(rule.state) != 1 or not {"lr", "momentum"} <= set(rule.parameters):
        raise ValueError(f"lookahead=True: expected a rule with one state slot, lr and momentum; got {rule}")
    piece = Piece(ahead, hyper=("lr_next", "momentum_next"), defaults={"lr_next": "lr", "momentum_next": "momentum"})
    return LookAhead(
        rule=rule,
        piece=piece,
        name=f"{rule.name}_lookahead",
        state=(*rule.state, ("point", "param")),
        hyper=(*rule.hyper, *piece.hyper),
        defaults={**rule.defaults, **piece.defaults},
        ranges=rule.ranges,
        first=rule.first,
        formula=f"{rule.formula}, g taken at the point",
        gradient_at=2,
    )
