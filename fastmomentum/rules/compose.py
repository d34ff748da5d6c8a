"""How scalar functions are put together: a proximal map inside a position rule, stages around a rule.

Every function here returns a closure over its parts and does nothing else; in compiled code the parts are inlined, so
that a chain runs at the speed of one hand-written loop.

`averaged`: any rule with an average of the parameters, written in the same pass.

An average kept beside the optimiser costs a second pass over memory; as a further state slot it costs its own bytes.

Velocity rules with an explicit look-ahead: the update that also writes where to take the next gradient.

What a change of the learning rate in mid-run does to a velocity, and what puts it right.

In pytorch, ema and their Nesterov forms a velocity holds gradients alone, and a new lr acts on all of it at once:

    p ← p − lr·v           the whole displacement is that of the new lr

In classical and its Nesterov form v holds lr·g, in heavy_ball and nesterov_positions q − p holds it: what was gathered
goes on at the lr that it was gathered with, and a run in which lr falls tenfold still moves as far as before in its
next 1/(1 − μ) steps. There the trajectory is that of the pytorch form after

    v ← v·lr'/lr           q ← q + (lr'/lr − 1)·(q − p)

with lr' the new one, which ``correct=True`` has done: where lr is a function of the step in the update's own pass,
where it is assigned at once. Which state carries lr is not written down anywhere: the rule's own function tells it.

`chain`, which makes one function and so one kernel of stages and a rule.

What other packages compose as passes over memory runs here in the rule's own pass. An absent stage is absent from the
compiled code: no option is a flag inside a kernel.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from itertools import combinations
from typing import Any

from fastmomentum import checks
from fastmomentum.checks import ABOVE_ZERO, UNIT_INTERVAL
from fastmomentum.rules.base import Function, Part, PositionRule, Rule, Stage, Update, Wrap, identity, resolve_values
from fastmomentum.rules.registry import find
from fastmomentum.rules.variants import one


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

    def build(self, wrap: Wrap = identity) -> Function:
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


def keep_average(average_decay: float) -> float:
    """1 − d."""
    return 1.0 - average_decay


def _mean(p: Any, average: Any, count: Any, one: Any) -> tuple[Any, ...]:
    count = count + one
    return average + (p - average) / count, count


def _exponential(p: Any, average: Any, keep: Any) -> tuple[Any, ...]:
    return (average + keep * (p - average),)


@dataclass(frozen=True, eq=False)
class Follower(Part):
    """State slots that follow the parameter: ``function(p, *slots, *hyper) -> slots``."""

    function: Function
    slots: tuple[tuple[str, str], ...]

    @property
    def functions(self) -> tuple[Function, ...]:
        """See :class:`Part`."""
        return (self.function,)


# At rest at zero, so that the first mean is p itself to the bit; from p₀ it would be p₀ + (p − p₀).
MEAN = Follower(_mean, (("average", "zero"), ("count", "zero")), name="mean of p", hyper=("one",), derived={"one": one})
EXPONENTIAL = Follower(
    _exponential,
    (("average", "param"),),
    name="exponential average of p",
    hyper=("keep_average",),
    derived={"keep_average": keep_average},
    ranges={"average_decay": UNIT_INTERVAL},
)


def _followed(update: Function, follow: Function, slots: int, own: int, taken: int) -> Function:
    """`update`, with so many slots and hyper-parameters, and `follow` with slots of its `own` behind it."""
    inner, grad, first, behind = slots + 1, slots + own + 1, slots + own + 2, slots + own + 2 + taken

    def composed(*everything: Any) -> Any:
        out = update(*everything[:inner], everything[grad], *everything[first:behind])
        return (*out, *follow(out[0], *everything[inner:grad], *everything[behind:]))

    return composed


@dataclass(frozen=True, eq=False, kw_only=True)
class Averaged(Composite):
    """A rule, or a chain, and slots that follow the parameter; made by :func:`averaged`."""

    follower: Follower

    @property
    def parts(self) -> tuple[Part, ...]:
        """The rule and what follows the parameter."""
        return self.rule, self.follower

    def build(self, wrap: Wrap = identity) -> Function:
        """See :class:`Update`."""
        rule, own = self.rule, len(self.follower.slots)
        follow = wrap(self.follower.function)
        return wrap(_followed(rule.build(wrap), follow, len(rule.state), own, len(rule.hyper)))


def averaged(rule: str | Update, decay: float | None = None, *, name: str | None = None) -> Averaged:
    """a ← a + (p − a)/n, the mean of all p so far, or a ← a + (1 − d)(p − a), in the rule's own pass.

    Parameters
    ----------
    rule : str, Rule or chain
        What updates p. Its Nesterov form by name, ``averaged("pytorch_nesterov")``. Stages that shall act on p before
        it is averaged belong inside: ``averaged(chain("sgd", stage))``.
    decay : float, optional
        d in [0, 1] of an exponential average, the rule's default for ``average_decay``. Without it the average is the
        mean of the parameters after every update (Polyak and Ruppert).
    name : str, optional
        What it is called.

    Returns
    -------
    Update
        `rule` with state slots behind its own: "average", and for the mean "count".

    Raises
    ------
    TypeError, ValueError
        If there is no such rule, or `decay` is out of range.

    Notes
    -----
    Ruppert 1988; Polyak and Juditsky 1992. In torch it is torch.optim.swa_utils.AveragedModel, the exponential one with
    get_ema_multi_avg_fn(d) (which starts at the first p that it sees, not at p₀); in Keras use_ema=True.

    Memory: the exponential average costs one array, 8 bytes of traffic an element in float32. The mean costs two, as
    elements count their own updates (an array that starts later is averaged from its own start); its average is zero
    before the first update, and in float32 a count stays at 2²⁴, from where on it is an exponential average over as
    many steps. The exponential one is linear, and has a theory; the mean has none, as 1/n changes with the step.

    Examples
    --------
    >>> import numpy as np, fastmomentum as fm
    >>> p = np.array([1.0])
    >>> opt = fm.Momentum(p, rule=fm.averaged("sgd"), lr=0.5)
    >>> for _ in range(3):
    ...     opt.step(np.array([1.0]))
    >>> average, count = opt.state
    >>> p, average, count
    (array([-0.5]), array([0.]), array([3.]))
    """
    inner = find(rule)
    follower = MEAN
    if decay is not None:
        follower = replace(EXPONENTIAL, defaults={"average_decay": checks.number("decay", decay, UNIT_INTERVAL)})
    return Averaged(
        rule=inner,
        follower=follower,
        name=name,
        state=(*inner.state, *follower.slots),
        first=inner.first,
        hyper=(*inner.hyper, *follower.hyper),
        defaults={**inner.defaults, **follower.defaults},
        ranges={**inner.ranges, **follower.ranges},
        formula=f"{inner.formula}; a ← {'mean of p' if decay is None else 'd·a + (1−d)p'}",
    )


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

    def build(self, wrap: Wrap = identity) -> Function:
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
CORRECTIONS = {
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
        return CORRECTIONS[self.state[self.at - 1][1]]

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

    def build(self, wrap: Wrap = identity) -> Function:
        """See :class:`Update`."""
        rule = self.rule
        return wrap(_carried(rule.build(wrap), wrap(self.piece.function), self.at, len(rule.state), len(rule.hyper)))


def lr_corrected(rule: Update) -> Update:
    """The `rule`, such that its state goes over to the next step's lr; itself where no state carries one.

    Raises
    ------
    ValueError
        If no change of its state lets it go on as if lr had been the new one from the beginning.
    """
    found = rule
    for slot in slots_scaled_by_lr(rule):
        piece = CORRECTIONS[dict(rule.state)[slot]]
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


def corrections_of(update: Update) -> list[tuple[int, Piece]]:
    """What takes slots of this rule over to the next lr, each with its place among (p, *state)."""
    found = []
    rule: Any = update
    while rule is not None:
        if isinstance(rule, Carrying):
            found.append((rule.at, rule.piece))
        rule = getattr(rule, "rule", None)  # of a chain, a look-ahead form or another of these
    return found


@lru_cache(maxsize=256)
def slots_scaled_by_lr(rule: Update) -> tuple[str, ...]:
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
        return slots_scaled_by_lr(rule.rule)  # what stands around a rule carries none
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
    hyper = rule.arguments(resolve_values(rule, given, lambda name, value, allowed: value))
    update, now, path = rule.build(), [0.0, *(0.75 * (factor if slot in chosen else 1.0) for slot in rule.slots)], []
    for gradient in (0.5, -0.25, 1.0):
        now = update(*now, gradient, *hyper)
        path.append(float(now[0]))
    return path


def chain(*links: "Stage | Update | str", name: str | None = None) -> Update:
    """One update rule from elementwise stages and a rule.

    Stages run in the order given: gradient and parameter stages in front of the rule, parameter stages also behind
    it. Proximal maps run inside a position rule, behind its gradient step and in front of its extrapolation.

    Parameters
    ----------
    *links : Stage, Rule, chain or str
        Exactly one rule (or chain, or name of a rule), and stages: ``stages.clip_value`` leaves its value to the
        caller of the chain, ``stages.clip_value(1.0)`` sets it.
    name : str, optional
        What the chain is called.

    Returns
    -------
    Update
        A rule whose hyper-parameters are those of all its links.

    Raises
    ------
    TypeError
        If there is not exactly one rule, or a link is neither a stage nor a rule.
    ValueError
        If a stage stands where it cannot: a gradient stage behind the rule, a proximal map at a rule whose state is
        not a position (there the momentum would carry the map's step along and another problem would be solved:
        for lasso the one with λ(1 − μ)), or two links with different defaults for one hyper-parameter.

    Examples
    --------
    >>> import numpy as np, fastmomentum as fm
    >>> rule = fm.chain(fm.stages.clip_value(1.0), fm.stages.weight_decay(0.1), "pytorch")
    >>> p, v = np.array([10.0]), np.array([0.0])
    >>> fm.step(p, v, np.array([500.0]), rule=rule, lr=0.5)
    >>> p, v
    (array([9.]), array([2.]))
    """
    rules = [link for link in links if not isinstance(link, Stage)]
    if len(rules) != 1:
        raise TypeError(f"chain takes stages and exactly one rule; got {len(rules)} rules")
    at = links.index(rules[0])
    inner = find(rules[0])
    before = [link for link in links[:at] if isinstance(link, Stage) and link.kind != "prox"]
    behind = [link for link in links[at:] if isinstance(link, Stage) and link.kind != "prox"]
    proximal = [link for link in links if isinstance(link, Stage) and link.kind == "prox"]
    if isinstance(inner, Chain):
        before, behind = [*before, *inner.before], [*inner.behind, *behind]
        proximal, inner = [*inner.proximal, *proximal], inner.rule
    for stage in behind:
        if stage.kind != "param":
            raise ValueError(
                f"chain: the gradient stage {stage} must stand in front of the rule, which uses the gradient up"
            )
    if proximal and not isinstance(inner, PositionRule):
        raise ValueError(
            f"chain: the proximal map {proximal[0]} needs a rule whose state is a position, heavy_ball or "
            f"nesterov_positions; behind {inner} momentum would carry the map's own step along, and the minimum of "
            "another problem would be found. Without momentum: heavy_ball with momentum=0."
        )
    return _joined(inner, tuple(before), tuple(proximal), tuple(behind), name)


def _joined(
    rule: Update, before: tuple[Stage, ...], proximal: tuple[Stage, ...], behind: tuple[Stage, ...], name: str | None
) -> Chain:
    parts = (*before, rule, *proximal, *behind)
    defaults: dict[str, float | str] = {}
    for part in parts:
        for key, value in part.defaults.items():
            if defaults.setdefault(key, value) != value:
                raise ValueError(f"chain: two links have different defaults for {key}: {defaults[key]} and {value}")
    return Chain(
        rule=rule,
        before=before,
        proximal=proximal,
        behind=behind,
        name=name,
        state=rule.state,
        first=rule.first,
        nesterov=rule.nesterov,
        gradient_at=rule.gradient_at,
        hyper=tuple(hyper for part in parts for hyper in part.hyper),
        defaults=defaults,
        ranges={key: value for part in parts for key, value in part.ranges.items()},
        formula="; ".join(str(part.name) if isinstance(part, Stage) else rule.formula for part in parts),
    )
