"""Elementwise stages around a rule, and `chain`, which makes one function and so one kernel of them.

What other packages compose as passes over memory runs here in the rule's own pass. An absent stage is absent from the
compiled code: no option is a flag inside a kernel.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from fastmomentum.compose import Chain, PositionRule, look_ahead
from fastmomentum.ranges import ANY_BOUND, AT_LEAST_ZERO
from fastmomentum.records import Stage, Update
from fastmomentum.rules import find


def _scale(g: Any, p: Any, factor: Any) -> Any:
    return factor * g


def _clip_value(g: Any, p: Any, low: Any, high: Any) -> Any:
    return np.minimum(np.maximum(g, low), high)


def _maximize(g: Any, p: Any) -> Any:
    return -g


def _weight_decay(g: Any, p: Any, decay: Any) -> Any:
    return g + decay * p


def _decoupled_weight_decay(p: Any, shrink: Any) -> Any:
    return p * shrink


def _box(x: Any, low: Any, high: Any, zero: Any) -> Any:
    return np.minimum(np.maximum(x, low), high) + zero


def _soft_threshold(x: Any, negative: Any, threshold: Any, zero: Any) -> Any:
    return x - np.minimum(np.maximum(x, negative), threshold) + zero


def negative_clip(clip_value: float) -> float:
    """−c."""
    return -clip_value


def shrink_by(lr: float, decoupled_weight_decay: float) -> float:
    """1 − lr·λ."""
    return 1.0 - lr * decoupled_weight_decay


def threshold_of(lr: float, l1: float) -> float:
    """lr·λ₁."""
    return lr * l1


def negative_threshold(lr: float, l1: float) -> float:
    """−lr·λ₁."""
    return -(lr * l1)


def upper_bound(low: float, high: float) -> float:
    """`high`, if it is not below `low`."""
    if high < low:
        raise ValueError(f"high must be >= low = {low}; got {high}")
    return high


def unit_factor() -> float:
    """1, until a norm has been measured."""
    return 1.0


def positive_zero() -> float:
    """+0: added to a result, it leaves every number as it is and makes +0 of −0.

    Which of two equal arguments minimum and maximum return is open in IEEE 754, and NumPy, Numba and the processors
    differ (measured for ±0); behind this sum the bits are the same everywhere.
    """
    return 0.0


scale = Stage(_scale, name="scale", hyper=("scale",))
"""g ← s·g, the inverse of a loss scale or a batch size, say."""

clip_value = Stage(_clip_value, name="clip_value", hyper=("low", "clip_value"), derived={"low": negative_clip})
"""g ← min(max(g, −c), c), torch's clip_grad_value_."""

maximize = Stage(_maximize, name="maximize")
"""g ← −g."""

weight_decay = Stage(_weight_decay, name="weight_decay", hyper=("weight_decay",))
"""g ← g + λp: coupled (L2) decay, as in torch.optim.SGD(weight_decay=λ)."""

decoupled_weight_decay = Stage(
    _decoupled_weight_decay,
    kind="param",
    name="decoupled_weight_decay",
    hyper=("shrink",),
    derived={"shrink": shrink_by},
)
"""p ← p·(1 − lr·λ), AdamW's (Loshchilov and Hutter 2019). In front of a position rule it looks like velocity."""

box = Stage(
    _box,
    kind="prox",
    name="box",
    hyper=("low", "upper", "zero"),
    derived={"upper": upper_bound, "zero": positive_zero},
    ranges={"low": ANY_BOUND, "high": ANY_BOUND},
)
"""x ← min(max(x, low), high): projection on a box, for the position rules.

Momentum is added behind the projection, so that the parameter itself, where gradients are taken, may lie outside the
box until the run has converged; the state of nesterov_positions lies inside at every step."""

soft_threshold = Stage(
    _soft_threshold,
    kind="prox",
    name="soft_threshold",
    hyper=("negative", "threshold", "zero"),
    derived={"negative": negative_threshold, "threshold": threshold_of, "zero": positive_zero},
    ranges={"l1": AT_LEAST_ZERO},
)
"""x ← sign(x)·max(|x| − lr·λ₁, 0): the proximal map of λ₁‖x‖₁, for the position rules.

The zeros are exact in the state of nesterov_positions; in the parameter itself what momentum adds to a zero decays."""


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


clip_norm = Stage(_scale, name="max_norm", hyper=("norm_factor",), derived={"norm_factor": unit_factor})
"""g ← f·g, with the factor f = min(1, max_norm / (‖g‖ + 1e-6)) that Momentum computes at each step, as torch's
clip_grad_norm_ does."""

OPTIONS = (clip_norm, clip_value, maximize, weight_decay, decoupled_weight_decay)
"""The stages that options of step() and Momentum stand for, in torch's order."""


@lru_cache(maxsize=1024)
def with_options(rule: Update, options: frozenset[str], nesterov: bool = False, lookahead: bool = False) -> Update:
    """The `rule`, or its folded Nesterov form or its look-ahead form, behind the stages of the `options` named.

    Raises
    ------
    ValueError
        If a form is asked of a rule that has none.
    """
    if nesterov and lookahead:
        raise ValueError("lookahead=True: expected nesterov=False, the folded form of the same method; got both")
    if nesterov:
        rule = _in_another_form(rule, _nesterov_form)
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
