"""Resolve a rule and the options of step() and Momentum to one composed rule and the values of its hyper-parameters."""

from typing import Any, NamedTuple

from fastmomentum import checks
from fastmomentum.checks import RANGES
from fastmomentum.rules.base import Rule
from fastmomentum.rules.cache import kept_with_rule
from fastmomentum.rules.compose import (
    lr_corrected,
    replace_core,
    with_look_ahead,
    with_options_before,
    without_momentum,
)
from fastmomentum.rules.record import refuse_unknown
from fastmomentum.rules.registry import find
from fastmomentum.rules.stages import (
    clip_global_norm,
    clip_norm,
    clip_value,
    decoupled_weight_decay,
    maximises,
    maximize,
    weight_decay,
)

OPTIONS = (clip_norm, clip_global_norm, clip_value, maximize, weight_decay, decoupled_weight_decay)
"""The stages that options of step() and Momentum add, in torch's order."""

SWITCHES = ("nesterov", "maximize", "lookahead", "correct")
OFF: dict[str, float | None] = {
    "dampening": 0.0,
    "weight_decay": 0.0,
    "decoupled_weight_decay": 0.0,
    "clip_value": None,
    "clip_norm": None,
    "max_norm": None,
}
"""The numeric options beside lr and momentum, each with the value that turns it off."""

NORMS = ("clip_norm", "max_norm")
"""The options whose stages take a factor, which is computed from the norm of the gradients at each step."""


class Options(NamedTuple):
    """Hold the options that a public function takes beside a rule's hyper-parameters, for hints in messages.

    Attributes
    ----------
    names : tuple of str
        Their names.
    function : str
        The function's name; empty if its help does not list them.
    """

    names: tuple[str, ...] = ()
    function: str = ""


MOMENTUM = Options(
    (
        *(name for name in (*OFF, *SWITCHES) if name != "dampening"),
        *("rule", "restart", "skip_nonfinite", "mask", "lr_scale", "backend", "threads", "keep_resets"),
    ),
    "fastmomentum.Momentum",
)
"""The options of optimisers; a rule that takes lr, momentum or dampening has these among its hyper-parameters."""

LINEAR = Options(("weight_decay", "decoupled_weight_decay", "nesterov", "maximize"))
"""The options that keep a rule linear in p, state and g."""


@kept_with_rule
def with_options(
    rule: Rule,
    options: frozenset[str],
    nesterov: bool = False,
    lookahead: bool = False,
    correct: bool = False,
    has_momentum: bool = True,
) -> Rule:
    """Return the rule in another form, with the stages of these options before it.

    Parameters
    ----------
    rule : Rule
        The rule.
    options : frozenset of str
        The names of stages among :data:`OPTIONS`.
    nesterov, lookahead : bool
        Whether to take the folded Nesterov form, or the form with an explicit look-ahead.
    correct : bool
        Whether to rescale the state for the next step's learning rate.
    has_momentum : bool
        Whether momentum is not 0; at 0 some rules have a form that leaves the velocity as it is.

    Raises
    ------
    ValueError
        If the rule has no such form.
    """
    if nesterov and lookahead:
        raise ValueError("lookahead=True: expected nesterov=False, the folded form of the same method; got both")
    if nesterov:
        if rule.nesterov is None:
            raise ValueError(
                f"nesterov=True: rule {rule.core} has no folded Nesterov form{_nesterov_advice(rule.core)}"
            )
        rule = replace_core(rule, find(rule.nesterov))
    if not (has_momentum or lookahead):
        rule = without_momentum(rule)
    if correct:
        rule = lr_corrected(rule)
    if lookahead:
        rule = with_look_ahead(rule)
    stages = [stage for stage in OPTIONS if stage.name in options]
    if maximize in stages and maximises(rule):
        raise ValueError("maximize: expected once, in the chain or as an option; got both, which would minimise")
    return with_options_before(rule, stages) if stages else rule


def _nesterov_advice(rule: Rule) -> str:
    """Return the end of a message: how to have Nesterov's method in place of this rule."""
    if rule.name == "heavy_ball":
        return ". Nesterov's method in positions is the rule nesterov_positions, without nesterov=True"
    if rule.name == "nesterov_positions":
        return ", as it is Nesterov's method already: leave nesterov out"
    return "; pytorch, classical and ema have one"


def resolve_options(rule: str | Rule, **chosen: Any) -> tuple[Rule, dict[str, Any]]:
    """Return the rule with the stages of its options, and the values of its hyper-parameters by name.

    Parameters
    ----------
    rule : str or Rule
        The rule.
    **chosen
        lr, momentum, any of :data:`SWITCHES` and :data:`OFF`, and the rule's other hyper-parameters. An option with the
        value that turns it off adds no stage; a chain whose stage has a default keeps that default. lr and momentum are
        left out if the rule does not take them.

    Raises
    ------
    TypeError, ValueError
        If an option is out of range, or the rule has no form for it. :func:`fastmomentum.rules.record.hyper_row` checks
        the hyper-parameters of the rule itself.
    """
    return resolve(rule, chosen)


def resolve(
    rule: str | Rule, chosen: dict[str, Any], options: Options = LINEAR, frozen_at_zero: bool = False
) -> tuple[Rule, dict[str, Any]]:
    """Return the rule and values of :func:`resolve_options`.

    If a name is unknown, the message proposes one of the rule's hyper-parameters or of `options`. If `frozen_at_zero`,
    as for optimisers, momentum 0 leaves the velocity as it is, for the rules of torch.
    """
    chosen = {**dict.fromkeys(SWITCHES, False), **OFF, **chosen}
    nesterov, maximize, lookahead, correct = (checks.boolean(name, chosen.pop(name)) for name in SWITCHES)
    form = (nesterov, lookahead, correct)
    update = full = with_options(find(rule), frozenset(), *form)
    for name in ("lr_next", "momentum_next"):
        if name in chosen and (lookahead or (correct and name == "lr_next")):
            option = "lookahead" if lookahead else "correct"
            raise ValueError(f"{name}: expected no value with {option}=True, which computes it; got {chosen[name]!r}")
    if chosen["max_norm"] is not None and "max_norm" in update.core.parameters:
        raise ValueError(f"max_norm: expected None, as {update} has a hyper-parameter of this name")
    for name, off in OFF.items():
        value = chosen[name]
        is_off = value is off or (type(value) is float and value == off)
        if not is_off and checks.number(name, value, RANGES[name]) != off:
            continue
        if name not in update.parameters or name in update.defaults or off is None:
            del chosen[name]  # the rule's default holds, or the rule asks for a value
    stages = {str(stage.name) for stage in OPTIONS if stage.name in chosen and stage.name not in update.parameters}
    has_momentum = not frozen_at_zero or bool(chosen.get("momentum", full.defaults.get("momentum", 1.0)))
    update = with_options(find(rule), frozenset(stages | {"maximize"} if maximize else stages), *form, has_momentum)
    for name in ("lr", "momentum"):
        if name in chosen and name not in update.parameters:
            checks.number(name, chosen.pop(name), RANGES[name])
    if "dampening" in chosen and "dampening" not in full.parameters:
        raise ValueError(
            f"dampening: expected 0 with rule {update}, which has no dampened form; got {chosen['dampening']}"
        )
    if not has_momentum:
        for name in full.parameters:
            if name in chosen and name not in update.parameters:
                checks.number(name, chosen.pop(name), full.allowed[name])
    if not chosen.keys() <= {*update.parameters}:
        refuse_unknown(update, chosen, (*full.parameters, *options.names), options.function)
    return update, chosen


def how_to_compose(rule: Rule, option: str) -> str:
    """Return the end of a message about an option that a function of plain rules does not take: the rule to pass."""
    name = repr(rule.name) if rule.name else "rule"
    if option == "nesterov" and rule.nesterov is not None:
        where = "Make the chain with" if rule.composed_of else "Pass"
        return f". {where} the rule {rule.nesterov!r}, its folded Nesterov form, without this option"
    if option == "maximize":
        return f". Pass the rule fastmomentum.chain(fastmomentum.stages.maximize, {name}), without this option"
    if option in OFF and option not in NORMS and option != "dampening":
        return f". Pass the rule fastmomentum.chain(fastmomentum.stages.{option}, {name}), which takes it"
    return ""
