"""How scalar functions are put together: a proximal map inside a position rule, stages around a rule.

Every function here returns a closure over its parts and does nothing else; in compiled code the parts are inlined, so
that a chain runs at the speed of one hand-written loop.
"""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import Any

from fastmomentum.parts import Function, Part, Wrap, as_it_is
from fastmomentum.records import Stage, Update


def _descend(p: Any, g: Any, lr: Any) -> Any:
    return p - lr * g


def _then(advance: Function, proximal: Function, taken: int) -> Function:
    """`advance`, which takes so many hyper-parameters, and a proximal map on where it arrives."""

    def composed(p: Any, g: Any, *hyper: Any) -> Any:
        return proximal(advance(p, g, *hyper[:taken]), *hyper[taken:])

    return composed


def _extrapolated(advance: Function, extrapolate: Function) -> Function:
    """The rule's own lr and mu come first, then what the proximal maps inside `advance` take."""

    def composed(p: Any, q: Any, g: Any, *hyper: Any) -> Any:
        return extrapolate(advance(p, g, *hyper[:1], *hyper[2:]), p, q, hyper[1])

    return composed


@dataclass(frozen=True, eq=False)
class PositionRule(Update):
    """x = p − lr·g, then ``extrapolate(x, p, q, mu) -> (p, q)``; its state q is a position, not a velocity.

    Written in two parts because a proximal map belongs between them: behind the gradient step, before momentum.
    """

    extrapolate: Function
    _: KW_ONLY
    state: tuple[tuple[str, str], ...] = (("previous", "param"),)
    hyper: tuple[str, ...] = ("lr", "momentum")

    @property
    def functions(self) -> tuple[Function, ...]:
        """See :class:`Part`."""
        return (self.extrapolate,)

    @property
    def update(self) -> Function:
        """The scalar function ``(p, q, g, lr, mu) -> (p, q)``."""
        return self.build()

    def build(self, wrap: Wrap = as_it_is, proximal: tuple[Stage, ...] = ()) -> Function:
        """See :class:`Update`; the hyper-parameters of the `proximal` maps stand behind lr and momentum."""
        advance, taken = wrap(_descend), 1
        for stage in proximal:
            advance = wrap(_then(advance, wrap(stage.function), taken))
            taken += len(stage.hyper)
        return wrap(_extrapolated(advance, wrap(self.extrapolate)))


def _gradient_before(stage: Function, update: Function, slots: int, taken: int, at: int) -> Function:
    """A gradient stage, which takes so many hyper-parameters, in front of `update`; it sees p, or the point at `at`."""
    grad, first, behind = slots + 1, slots + 2, slots + 2 + taken  # named: Numba takes a tuple apart at constants alone

    def composed(*everything: Any) -> Any:
        g = stage(everything[grad], everything[at], *everything[first:behind])
        return update(*everything[:grad], g, *everything[behind:])

    return composed


def _param_before(stage: Function, update: Function, slots: int, taken: int) -> Function:
    """A parameter stage in front of `update`."""
    first, behind = slots + 1, slots + 1 + taken

    def composed(p: Any, *rest: Any) -> Any:
        return update(stage(p, *rest[first:behind]), *rest[:first], *rest[behind:])

    return composed


def _param_behind(stage: Function, update: Function, slots: int, taken: int) -> Function:
    """A parameter stage behind `update`, which takes so many hyper-parameters."""
    behind = slots + 1 + taken

    def composed(p: Any, *rest: Any) -> Any:
        out = update(p, *rest[:behind])
        return (stage(out[0], *rest[behind:]), *out[1:])

    return composed


@dataclass(frozen=True, eq=False)
class Piece(Part):
    """One function of a composite beside its rule."""

    function: Function

    @property
    def functions(self) -> tuple[Function, ...]:
        """See :class:`Part`."""
        return (self.function,)


@dataclass(frozen=True, eq=False, kw_only=True)
class Composite(Update):
    """An update made of a rule and other parts, whose hyper-parameters stand one behind the other as the parts do."""

    rule: Update

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts, in the order of their hyper-parameters."""
        raise NotImplementedError

    @property
    def leaves(self) -> tuple[Part, ...]:
        """The parts, those of parts that are made of parts themselves in their place."""
        return tuple(leaf for part in self.parts for leaf in (part.leaves if isinstance(part, Composite) else (part,)))

    @property
    def functions(self) -> tuple[Function, ...]:
        """See :class:`Part`."""
        return tuple(function for part in self.parts for function in part.functions)

    @property
    def structure(self) -> tuple[Any, ...]:
        """See :class:`Part`."""
        return tuple(part.structure for part in self.parts)

    @property
    def description(self) -> str:
        """See :class:`Part`."""
        return "; ".join(part.description for part in self.parts)

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        """See :class:`Part`."""
        return tuple(dict.fromkeys(name for part in self.parts for name in part.parameters))

    @property
    def update(self) -> Function:
        """The scalar function ``(p, *state, g, *hyper) -> (p, *state)``."""
        return self.build()

    def arguments(self, given: Mapping[str, float]) -> tuple[float, ...]:
        """See :class:`Part`."""
        return tuple(value for part in self.parts for value in part.arguments(given))


@dataclass(frozen=True, eq=False, kw_only=True)
class Chain(Composite):
    """Stages around a rule, as one scalar function; made by :func:`fastmomentum.chain`.

    Attributes
    ----------
    rule : Update
        The rule itself; its state is the chain's.
    before, proximal, behind : tuple of Stage
        What stands in front of the rule, inside it (position rules alone) and behind it.
    """

    before: tuple[Stage, ...] = ()
    proximal: tuple[Stage, ...] = ()
    behind: tuple[Stage, ...] = ()

    @property
    def parts(self) -> tuple[Part, ...]:
        """The stages and the rule."""
        return (*self.before, self.rule, *self.proximal, *self.behind)

    def build(self, wrap: Wrap = as_it_is) -> Function:
        """See :class:`Update`."""
        slots, taken = len(self.state), len(self.rule.hyper) + sum(len(stage.hyper) for stage in self.proximal)
        within = {"proximal": self.proximal} if self.proximal else {}  # position rules alone have room for them
        update = self.rule.build(wrap, **within)
        for stage in self.behind:
            update = wrap(_param_behind(wrap(stage.function), update, slots, taken))
            taken += len(stage.hyper)
        for stage in reversed(self.before):
            function, own = wrap(stage.function), len(stage.hyper)
            if stage.kind == "gradient":
                update = wrap(_gradient_before(function, update, slots, own, self.gradient_at))
            else:
                update = wrap(_param_before(function, update, slots, own))
        return update
