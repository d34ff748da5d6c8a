"""From a rule's name and the options of step() and Momentum to one update rule and the values it is given."""

from typing import Any

from fastmomentum import checks
from fastmomentum.chains import OPTIONS, with_options
from fastmomentum.ranges import RANGES
from fastmomentum.records import Update
from fastmomentum.rules import find

SWITCHES = ("nesterov", "maximize", "lookahead", "correct")
OFF: dict[str, float | None] = {
    "dampening": 0.0,
    "weight_decay": 0.0,
    "decoupled_weight_decay": 0.0,
    "clip_value": None,
    "max_norm": None,
}
"""The numbers that may be set beside lr and momentum, with what says that they are not."""


def settle(rule: str | Update, **chosen: Any) -> tuple[Update, dict[str, Any]]:
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
    nesterov, maximize, lookahead, correct = (checks.switch(name, chosen.pop(name)) for name in SWITCHES)
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
