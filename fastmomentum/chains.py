"""`chain`, which makes one function and so one kernel of stages and a rule.

What other packages compose as passes over memory runs here in the rule's own pass. An absent stage is absent from the
compiled code: no option is a flag inside a kernel.
"""

from collections.abc import Callable
from functools import lru_cache

from fastmomentum.carrying import carried_slots, carrying
from fastmomentum.compose import Chain, PositionRule
from fastmomentum.lookahead import look_ahead
from fastmomentum.records import Stage, Update
from fastmomentum.rules import find
from fastmomentum.stages import clip_norm, clip_value, decoupled_weight_decay, maximize, weight_decay


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


OPTIONS = (clip_norm, clip_value, maximize, weight_decay, decoupled_weight_decay)
"""The stages that options of step() and Momentum stand for, in torch's order."""


@lru_cache(maxsize=1024)
def with_options(
    rule: Update,
    options: frozenset[str],
    nesterov: bool = False,
    lookahead: bool = False,
    correct: bool = False,
) -> Update:
    """The `rule`, or its folded Nesterov form or its look-ahead form, behind the stages of the `options` named.

    With `correct` its state goes over to the next step's learning rate.

    Raises
    ------
    ValueError
        If a form is asked of a rule that has none.
    """
    if nesterov and lookahead:
        raise ValueError("lookahead=True: expected nesterov=False, the folded form of the same method; got both")
    if nesterov:
        rule = _in_another_form(rule, _nesterov_form)
    if correct:
        carried_slots(rule)  # refuses what has none to go over
        rule = _in_another_form(rule, carrying)
    if lookahead and isinstance(rule, Chain) and rule.behind:
        raise ValueError(
            f"lookahead=True: expected no stage behind the rule, where the point is left behind; got {rule}"
        )
    if lookahead:
        rule = _in_another_form(rule, look_ahead)
    stages = [stage for stage in OPTIONS if stage.name in options]
    if maximize in stages and isinstance(rule, Chain) and maximize in rule.before:
        raise ValueError("maximize: expected once, in the chain or as an option; got both, which would minimise")
    return chain(*stages, rule, name=rule.name) if stages else rule


def _nesterov_form(rule: Update) -> Update:
    if rule.nesterov is None:
        raise ValueError(f"nesterov=True: rule {rule} has no folded Nesterov form; pytorch, classical and ema have one")
    return find(rule.nesterov)


def _in_another_form(rule: Update, form: Callable[[Update], Update]) -> Update:
    if isinstance(rule, Chain):
        return _joined(form(rule.rule), rule.before, rule.proximal, rule.behind, rule.name)
    return form(rule)
