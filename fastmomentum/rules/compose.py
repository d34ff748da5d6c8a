"""Compose rules: stages around a rule, look-ahead, and correction for a changed lr.

Each function here returns a rule whose links say which parts run and in which order. The rule assembles one scalar
function from them, and a backend compiles it into one kernel, so stages need no further pass over memory. A kernel has
no code and no flag for options that are off.
"""

from collections.abc import Sequence
from copy import copy
from itertools import combinations
from typing import Any

from fastmomentum import checks
from fastmomentum.checks import AT_LEAST_ZERO
from fastmomentum.rules.assemble import Function
from fastmomentum.rules.base import Rule
from fastmomentum.rules.cache import kept_with_rule
from fastmomentum.rules.record import merge_ranges, resolve_values
from fastmomentum.rules.registry import find
from fastmomentum.rules.stage import LOOK_AHEAD, LR_CORRECTION, Stage
from fastmomentum.rules.stages import leading_scales


def chain(*links: "Stage | Rule | str", name: str | None = None) -> Rule:
    """Return one update rule, composed of elementwise stages and a rule.

    Stages run in the order given: gradient stages, filters and parameter stages before the rule, parameter stages also
    after it, state stages after it. The state has the rule's slots first. Proximal maps run inside a position rule,
    after its gradient step and before its extrapolation.

    Parameters
    ----------
    *links : Stage, Rule or str
        Exactly one rule (or chain, or name of a rule), and stages. ``stages.clip_value(1.0)`` sets the stage's value;
        with ``stages.clip_value`` the caller of the chain passes it.
    name : str, optional
        The name of the chain.

    Returns
    -------
    Rule
        A rule whose hyper-parameters are those of all its links.

    Raises
    ------
    TypeError
        If there is not exactly one rule, or a link is neither a stage nor a rule.
    ValueError
        If a stage stands in the wrong place: a gradient or state stage on the wrong side of the rule, or a proximal map
        at a rule whose state is not a position (momentum would then repeat the map's own step, and the run would end in
        the minimum of another problem, for lasso the one with λ(1 − μ)). If two links have different defaults for one
        hyper-parameter.

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
    after = [link for link in links[at:] if isinstance(link, Stage) and link.kind != "prox"]
    proximal = [link for link in links if isinstance(link, Stage) and link.kind == "prox"]
    for stage in after:
        if stage.kind in ("gradient", "filter"):
            raise ValueError(
                f"chain: the {stage.kind} stage {stage} must stand before the rule, which uses the gradient"
            )
    for stage in before:
        if stage.kind == "state":
            raise ValueError(f"chain: the state stage {stage} must stand after the rule, whose result it reads")
    if proximal and not inner.takes_prox:
        raise ValueError(
            f"chain: the proximal map {proximal[0]} needs a rule whose state is a position, heavy_ball or "
            f"nesterov_positions; with {inner.core} momentum would repeat the map's own step, and the run would end in "
            "the minimum of another problem. If you want no momentum, use heavy_ball with momentum=0"
        )
    inside = [stage for stage in inner.stages_after if stage.kind == "prox"]
    others = [stage for stage in inner.stages_after if stage.kind != "prox"]
    return compose_links(
        inner, (*before, *inner.stages_before, inner.core, *inside, *proximal, *others, *after), name, inner.nesterov
    )


def compose_links(rule: Rule, links: Sequence[Rule | Stage], name: str | None, nesterov: str | None) -> Rule:
    """Return the rule that is made of these links, in the place of `rule`."""
    # Links are told apart by identity, so a stage that occurs twice is there as itself and as a copy.
    links = [copy(link) if any(link is other for other in links[:i]) else link for i, link in enumerate(links)]
    defaults: dict[str, float | str] = {}
    for link in links:
        for key, value in link.defaults.items():
            if defaults.setdefault(key, value) != value:
                raise ValueError(f"chain: two links have different defaults for {key}: {defaults[key]} and {value}")
    state = tuple(slot for link in sorted(links, key=lambda link: isinstance(link, Stage)) for slot in link.state)
    slots = [slot for slot, _ in state]
    for slot in slots:
        if slots.count(slot) > 1:
            raise ValueError(f"chain: expected state slots with names of their own; got two links that keep {slot!r}")
    return Rule(
        name=name,
        composed_of=tuple(links),
        state=state,
        hyper=tuple(hyper for link in links for hyper in link.hyper),
        defaults=defaults,
        ranges=merge_ranges(links),
        nesterov=nesterov,
        first={key: value for link in links for key, value in link.first.items()},
        gradient_slot="point" if any(isinstance(link, Stage) and link.kind == LOOK_AHEAD for link in links) else "p",
        formula="; ".join(link.formula if isinstance(link, Rule) else str(link.name) for link in links),
    )


def replace_core(rule: Rule, core: Rule) -> Rule:
    """Return `rule` with `core`, which may itself be composed, in the place of its own core."""
    if not rule.composed_of:
        return core
    links = [link for link in core.links if isinstance(link, Rule | Stage)]
    nesterov = rule.nesterov and core.nesterov
    return compose_links(core, (*rule.stages_before, *links, *rule.stages_after), rule.name, nesterov)


def with_options_before(rule: Rule, stages: Sequence[Stage]) -> Rule:
    """Return the rule with the stages of options before its own, but after the scales with which it begins.

    So gradients are unscaled first, then clipped, as the field does it.
    """
    leading = leading_scales(rule)
    rest = [link for link in rule.links[len(leading) :] if isinstance(link, Rule | Stage)]
    return compose_links(rule, (*leading, *stages, *rest), rule.name, rule.nesterov)


def without_momentum(rule: Rule) -> Rule:
    """Return the rule that takes the place of `rule` while momentum is 0: it has the same state, and leaves it alone.

    torch.optim.SGD neither makes nor changes a momentum buffer while momentum is 0.
    """
    core = rule.core
    if core.at_zero_momentum is None:
        return rule
    plain = find(core.at_zero_momentum)
    return replace_core(rule, Rule(name=core.name, state=core.state, hyper=plain.hyper, parts=plain.parts))


def with_look_ahead(rule: Rule) -> Rule:
    """Return the rule with an explicit look-ahead: a slot "point", where the next gradient is to be taken.

    Each update writes the point in its own pass, from the next update's lr and momentum.

    Raises
    ------
    ValueError
        If the rule has no look-ahead form, or a stage after it moves p or adds state.
    """
    core = rule.core
    if core.ahead is None or any(stage.kind == "state" for stage in rule.stages_after):
        refused = core if core.ahead is None else rule
        raise ValueError(f"lookahead=True: rule {refused} has no look-ahead form; pytorch, classical and ema have one")
    if len(core.state) != 1 or not {"lr", "momentum"} <= set(core.parameters):
        raise ValueError(f"lookahead=True: expected a rule with one state slot, lr and momentum; got {core}")
    if any(stage.kind == "param" for stage in rule.stages_after):
        raise ValueError(
            f"lookahead=True: expected no stage after the rule, which would move p away from the point; got {rule}"
        )
    stage = Stage(
        core.ahead,
        kind=LOOK_AHEAD,
        reads=("p", *core.slots),
        writes=("point",),
        state=(("point", "param"),),
        name="point",
        hyper=("lr_next", "momentum_next"),
        defaults={"lr_next": "lr", "momentum_next": "momentum"},
    )
    links = [link for link in (*rule.links, stage) if isinstance(link, Rule | Stage)]
    return compose_links(core, links, rule.name if rule.composed_of else f"{rule.name}_lookahead", nesterov=None)


@kept_with_rule
def point_rule(rule: Rule) -> Rule:
    """Return the rule that computes only the slot "point" of a rule with look-ahead."""
    (stage,) = (stage for stage in rule.stages_after if stage.kind == LOOK_AHEAD)
    (part,) = stage.parts
    core = rule.core
    state = (*core.state, *stage.state)
    return Rule(name=f"{core.name}_point", state=state, hyper=part.hyper, parts=(part,), gradient_slot="point")


# In pytorch, ema and their Nesterov forms a velocity holds gradients alone, and a new lr acts on all of it at once:
#
#     p ← p − lr·v           the whole displacement is that of the new lr
#
# In classical and its Nesterov form v is a sum of lr·g, and so is q − p in heavy_ball and nesterov_positions: past
# gradients keep the lr of their own step. A run in which lr falls tenfold still moves as far as before in its next
# 1/(1 − μ) steps. With correct=True the state is rescaled when lr changes to lr',
#
#     v ← v·lr'/lr           q ← q + (lr'/lr − 1)·(q − p)
#
# and the trajectory is that of the pytorch form: in the update's own pass if lr is a function of the step, at once if
# lr is assigned. Rules do not declare which slots contain lr; slots_scaled_by_lr finds them by running the rule.


def carry_over(lr: float, lr_next: float) -> float:
    """Return lr'/lr; 1 if lr is 0, where the state is at rest."""
    return lr_next / lr if lr else 1.0


def stretch_by(lr: float, lr_next: float) -> float:
    """Return lr'/lr − 1, with the rounding of the division alone if lr' and lr are close; 0 if lr is 0."""
    return (lr_next - lr) / lr if lr else 0.0


def _carry_velocity(p: Any, v: Any, carry: Any) -> Any:
    return carry * v


def _stretch_position(p: Any, q: Any, stretch: Any) -> Any:
    return q + stretch * (q - p)


def _lr_correction(slot: str, initial: str) -> Stage:
    """Return the stage that rescales a slot for the next lr: a position if it starts as "param", else a velocity."""
    ranges: dict[str, checks.Range] = {}
    function: Function
    if initial == "param":
        function, factor, derive = _stretch_position, "stretch", stretch_by
    else:
        function, factor, derive = _carry_velocity, "carry", carry_over
        ranges["carry"] = AT_LEAST_ZERO  # a factor that the dtype rounds to 0 would lose the velocity
    return Stage(
        function,
        kind=LR_CORRECTION,
        reads=("p", slot),
        writes=(slot,),
        hyper=(factor,),
        derived={factor: derive},
        defaults={"lr_next": "lr"},
        ranges=ranges,
    )


def lr_corrected(rule: Rule) -> Rule:
    """Return the rule with stages that rescale its state for the next lr; the rule itself if no slot contains lr.

    Raises
    ------
    ValueError
        If no rescaling of the slots lets the run continue as if it had always had the new lr.
    """
    core = rule.core
    corrections = [_lr_correction(slot, dict(core.state)[slot]) for slot in slots_scaled_by_lr(rule)]
    if not corrections:
        return rule
    return replace_core(rule, compose_links(core, (core, *corrections), core.name, core.nesterov))


def corrections_of(rule: Rule) -> list[tuple[int, Stage]]:
    """Return the stages that rescale slots of this rule for the next lr, each with the index of its slot."""
    stages = [stage for stage in rule.stages_after if stage.kind == LR_CORRECTION]
    return [(rule.slots.index(stage.writes[0]), stage) for stage in stages]


@kept_with_rule
def slots_scaled_by_lr(rule: Rule) -> tuple[str, ...]:
    """Return the slots of the rule's state that contain lr as a factor.

    They are the smallest set of slots that, if doubled together with lr, doubles the path of p from 0 under gradients
    that do not depend on p. Doubling changes no rounding, so the paths are compared exactly.

    Raises
    ------
    ValueError
        If there is no such set.
    """
    if any(stage.kind == "prox" for stage in rule.stages_after):
        raise ValueError(f"correct: expected no proximal map, whose step is not proportional to lr; got {rule}")
    if rule.composed_of:
        return slots_scaled_by_lr(rule.core)  # the slots of stages do not contain lr
    if "lr" not in rule.parameters:
        return ()
    if rule.late:
        kind = "a rule that needs no sums and keeps no numbers from step to step"
        raise ValueError(f"correct: expected {kind}; got {rule}")
    expected = [2.0 * p for p in _path(rule, 1.0, ())]
    for count in range(1 + len(rule.slots)):
        for chosen in combinations(rule.slots, count):
            if _path(rule, 2.0, chosen) == expected:
                return chosen
    raise ValueError(
        f"correct: expected a rule whose displacement is proportional to lr with a rescaled state; got {rule}"
    )


def _path(rule: Rule, factor: float, chosen: tuple[str, ...]) -> list[float]:
    """Return p after each of three updates from 0, with lr and the slots `chosen` multiplied by `factor`."""
    given = {name: 0.5 for name in rule.parameters if name not in rule.defaults} | {"lr": 0.125 * factor}
    hyper = rule.arguments(resolve_values(rule, given, lambda name, value, allowed: value))
    values = [0.0, *(0.75 * (factor if slot in chosen else 1.0) for slot in rule.slots)]
    path = []
    for gradient in (0.5, -0.25, 1.0):
        values = rule.update(*values, gradient, *hyper)
        path.append(float(values[0]))
    return path
