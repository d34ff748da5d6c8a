"""`chain`, which makes one function and so one kernel of stages and a rule.

What other packages compose as passes over memory runs here in the rule's own pass. An absent stage is absent from the
compiled code: no option is a flag inside a kernel.

From a rule's name and the options of step() and Momentum to one update rule and the values it is given.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from fastmomentum import checks
from fastmomentum.checks import RANGES
from fastmomentum.rules.base import Update
from fastmomentum.rules.compose import Chain, _joined, chain, look_ahead, lr_corrected, slots_scaled_by_lr
from fastmomentum.rules.registry import find
from fastmomentum.rules.stages import clip_norm, clip_value, decoupled_weight_decay, maximize, weight_decay

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
        slots_scaled_by_lr(rule)  # refuses what has none to go over
        rule = _in_another_form(rule, lr_corrected)
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


SWITCHES = ("nesterov", "maximize", "lookahead", "correct")
OFF: dict[str, float | None] = {
    "dampening": 0.0,
    "weight_decay": 0.0,
    "decoupled_weight_decay": 0.0,
    "clip_value": None,
    "max_norm": None,
}
"""The numbers that may be set beside lr and momentum, with what says that they are not."""


def resolve_options(rule: str | Update, **chosen: Any) -> tuple[Update, dict[str, Any]]:
    """The rule with its stages, and the hyper-parameters given to it, by name.

    Parameters
    ----------
    rule : str, Rule or chain
        The rule.
    **chosen
        lr, momentum, any of :data:`SWITCHES` and :data:`OFF`, and what the rule declares beyond these. A number that is
        off adds no stage, and leaves a default of the rule's own (a chain's, say) as it is. lr and momentum may be
        functions of the step.

    Raises
    ------
    TypeError, ValueError
        If a switch or number is out of range, or the rule has no form that serves it. The values for the rule are
        checked by :func:`fastmomentum.checks.hyper`.
    """
    chosen = dict.fromkeys(SWITCHES, False) | OFF | chosen
    nesterov, maximize, lookahead, correct = (checks.boolean(name, chosen.pop(name)) for name in SWITCHES)
    update = with_options(find(rule), frozenset(), nesterov, lookahead, correct)
    for name in ("lr_next", "momentum_next"):
        if name in chosen and (lookahead or (correct and name == "lr_next")):
            which = "lookahead" if lookahead else "correct"
            raise ValueError(
                f"{name}: expected to follow from lr and momentum where {which}=True; got {chosen[name]!r}"
            )
    if chosen["max_norm"] is not None and "max_norm" in update.parameters:
        raise ValueError(f"max_norm: expected of a rule that has no hyper-parameter of this name; {update} has one")
    for name, off in OFF.items():
        value = chosen[name]
        if value is not off and checks.number(name, value, RANGES[name]) != off:
            continue
        if name not in update.parameters or name in update.defaults or off is None:
            del chosen[name]
    stages = {str(stage.name) for stage in OPTIONS if stage.name in chosen and stage.name not in update.parameters}
    update = with_options(update, frozenset(stages | {"maximize"} if maximize else stages))
    chosen.pop("max_norm", None)  # the stage takes the factor that it comes to
    for name in ("lr", "momentum"):
        if name not in update.parameters:
            value = chosen.pop(name)
            if not callable(value):
                checks.number(name, value, RANGES[name])
    if "dampening" in chosen and "dampening" not in update.parameters:
        raise ValueError(
            f"dampening: expected 0 with rule {update}, which has no dampened form; got {chosen['dampening']}"
        )
    return update, chosen
