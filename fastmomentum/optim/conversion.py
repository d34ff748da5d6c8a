"""Convert a run to another rule, which continues on the same parameters and the same trajectory with another state."""

from collections.abc import Mapping
from math import isclose
from typing import Any, NamedTuple

import numpy as np

from fastmomentum import checks
from fastmomentum.backends.interrupts import one_caller
from fastmomentum.checks import RANGES
from fastmomentum.optim import changes
from fastmomentum.optim.checkpoint import load_dict, to_dict
from fastmomentum.optim.engine import Engine
from fastmomentum.optim.groups import SCHEDULED, SHARED, ParamGroup, make_group
from fastmomentum.optim.schema import TORCH
from fastmomentum.rules.averages import is_observer, without_observers
from fastmomentum.rules.base import Rule
from fastmomentum.rules.convert import CONVENTIONS, NESTEROV, NOTHING, convention_of, convert
from fastmomentum.rules.elementwise import LR_SCALE, MASK
from fastmomentum.rules.registry import find


class GroupConversion(NamedTuple):
    """The conversion of one group.

    Attributes
    ----------
    after : ParamGroup
        Its settings under the other rule.
    source, target : str
        The conventions of the old and of the other rule.
    values : dict
        lr, momentum and dampening, as :func:`fastmomentum.convert` takes them.
    """

    after: ParamGroup
    source: str
    target: str
    values: dict[str, float]

    def apply(self, state: Any, param: Any) -> tuple[Any, float, float]:
        """Return state, lr and momentum under the other rule."""
        return convert(state, source=self.source, target=self.target, param=param, **self.values)


def convert_run(
    engine: Engine, single: bool, rule: str | Rule, settings: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arguments and the saved state of an optimiser that continues under another rule.

    Parameters
    ----------
    engine : Engine
        The engine of the optimiser to convert.
    single : bool
        Whether it was given one array.
    rule : str or Rule
        The other rule.
    settings : dict
        Settings that replace its own.

    Returns
    -------
    arguments : dict
        For the constructor.
    saved : dict
        For :func:`load_converted`.

    Raises
    ------
    TypeError, ValueError
        If there is no exact conversion.
    """
    for name in ("params", "momentum"):
        if name in settings:
            raise TypeError(f"{name}: expected none, as it stays as it is; got {checks.describe(settings[name])}")
    if any(LR_SCALE in given.names for given in engine.state.elements):
        raise ValueError("lr_scale: expected None, as the state is converted with one lr for a group")
    settings = dict(settings)
    shared = {name: settings.pop(name, getattr(engine, name)) for name in ("backend", "threads", "skip_nonfinite")}
    with one_caller(engine.lock):
        engine.check_arrays()
        saved, params = to_dict(engine), engine.state.fetch_params()
        plans = [plan_conversion(group, rule, settings, engine) for group in engine.groups]
    for number, started in zip(engine.group_of, engine.state.started):
        if plans[number].values["dampening"] and not started:
            raise ValueError("dampening: expected 0, as an array is still to have its first, undampened step")
    states = []
    for number, param, slots in zip(engine.group_of, params, saved["state"]):
        state, _, _ = plans[number].apply(slots[0] if engine.update.core.slots else None, param)
        own = {} if state is None else {plans[number].after.update.core.slots[0]: state}
        states.append(own | _observed(plans[number].after.update, dict(zip(engine.update.slots, slots))))
    arguments = _arguments([plan.after.settings for plan in plans], engine, single)
    counts = ("steps", "skipped", "skipped_in_a_row", "resets", "last_reset", "value", "updates", TORCH)
    unchanged = {name: saved[name] for name in counts if name in saved}
    return arguments | shared, unchanged | {"state": states}


def load_converted(engine: Engine, saved: Mapping[str, Any]) -> None:
    """Let the new optimiser continue from the saved state that :func:`convert_run` returned."""
    own = to_dict(engine)
    for slots, converted in zip(own["state"], saved["state"]):
        slots[:] = [converted.get(name, slot) for name, slot in zip(engine.update.slots, slots)]
    load_dict(own | {name: value for name, value in saved.items() if name != "state"}, engine)
    changes.write_points(engine)


def _observed(rule: Rule, before: Mapping[str, Any]) -> dict[str, Any]:
    """Return the slots, among those of before, of the stages of `rule` that have all their slots there.

    The slots of other stages keep their initial values, from which an average starts.
    """
    found: dict[str, Any] = {}
    for stage in rule.stages_after:
        slots = [slot for slot, _ in stage.state]
        if is_observer(stage) and before.keys() >= {*slots}:
            found |= {slot: before[slot] for slot in slots}
    return found


def _arguments(groups: list[Mapping[str, Any]], engine: Engine, single: bool) -> dict[str, Any]:
    """Return the arguments of the constructor for the same parameters, with these settings of the groups."""
    shared = {name: value for name, value in groups[0].items() if name in SHARED}
    own = [{name: value for name, value in group.items() if name not in SHARED} for group in groups]
    state = engine.state
    shared["keep_resets"] = state.resets.maxlen
    masks = [given.given(MASK) for given in state.elements]
    if single:
        return {"params": state.given[0], MASK: masks[0], **own[0], **shared}
    members: list[list[Any]] = [[] for _ in groups]
    masks_of: list[list[Any]] = [[] for _ in groups]
    names = state.array_names if state.names is None else state.names
    for number, name, param, mask in zip(engine.group_of, names, state.given, masks):
        members[number].append((name, param))
        masks_of[number].append(mask)
    parts = [
        {"params": [param for _, param in pairs] if state.names is None else dict(pairs), MASK: own_masks, **settings}
        for pairs, own_masks, settings in zip(members, masks_of, own)
    ]
    return {"params": parts, "lr": own[0]["lr"], **shared}


def plan_conversion(
    group: ParamGroup, rule: str | Rule, settings: Mapping[str, Any], engine: Engine
) -> GroupConversion:
    """Return the conversion of one group.

    Raises
    ------
    TypeError, ValueError
        If there is no exact conversion, now or at later steps.
    """
    tau = settings.get("dampening", group.number("dampening") or 0.0)
    if callable(tau) or callable(group.settings.get("dampening")):
        raise ValueError("dampening: expected a number, as the conversion depends on it; got a function of the step")
    tau = float(tau)
    step = engine.schedule_step
    dropped = {name for link in find(group.settings["rule"]).links if is_observer(link) for name in link.parameters}
    kept = {name: value for name, value in group.settings.items() if name not in dropped - {*find(rule).parameters}}
    changed = {**kept, "rule": rule, **settings, "dampening": 0.0, "correct": False}
    probe = make_group(changed, step)
    source = convention_of("source", without_observers(group.method))
    target = convention_of("target", without_observers(probe.method))
    old, new = CONVENTIONS[source], CONVENTIONS[target]
    values = {name: engine.state.number(group.value(name, step)) or 0.0 for name in SCHEDULED}
    values["dampening"] = tau
    plan = GroupConversion(probe, source, target, values)
    empty = np.zeros(0)
    _, lr_now, momentum = plan.apply(None if old.keeps == NOTHING else empty, empty)
    if _stages(group.settings["rule"]) != _stages(rule):
        raise ValueError(f"rule: expected {find(rule)} in a chain of the same stages as {find(group.settings['rule'])}")
    if {old.method, new.method} == {NESTEROV} and source.endswith("_lookahead") != target.endswith("_lookahead"):
        raise ValueError(
            f"lookahead: expected as it was, as the parameters of {source!r} and {target!r} differ: one of these rules "
            "stores the look-ahead points as its parameters"
        )
    follows = old.divides or old.keeps == NOTHING or group.correct
    mu = momentum if old.keeps == NOTHING else group.settings.get("momentum", group.number("momentum"))
    if callable(mu) and not _goes_with_any_momentum(source, target, tau):
        raise ValueError(
            f"momentum: expected a number, as the conversion from {source!r} to {target!r} depends on it; got a "
            "function of the step"
        )
    lr = _converted_lr(group, lr_now, settings, engine.schedule_step)
    if callable(lr) and new.divides and not follows:
        raise ValueError(
            f"lr: expected a number, or correct=True, as the state of {source!r} carries lr and that of "
            f"{target!r} does not; got a function of the step"
        )
    if lr_now == 0 and not new.divides and new.keeps != NOTHING:
        raise ValueError(f"lr: expected a finite number > 0, as the state of {target!r} holds lr; got {lr_now}")
    chosen = {
        "lr": lr,
        "momentum": mu,
        "dampening": tau if "dampening" in probe.update.parameters else 0.0,
        "correct": settings.get("correct", not new.divides and new.keeps != NOTHING and follows),
    }
    return plan._replace(after=make_group(changed | chosen, step))


def _stages(rule: str | Rule) -> list[str]:
    """Return the descriptions of the stages before the rule in a chain."""
    update = find(rule)
    return [stage.description for stage in update.stages_before]


def _goes_with_any_momentum(source: str, target: str, tau: float) -> bool:
    """Return whether one factor of lr is right for every value of the momentum."""
    old, new = CONVENTIONS[source], CONVENTIONS[target]
    shifted = "nesterov_positions" in (source, target) and old is not new
    factors = [old.lr_factor(mu, tau) * new.lr_factor(0.5, tau) for mu in (0.25, 0.5)]
    return not shifted and factors[0] * new.lr_factor(0.5, tau) == factors[1] * new.lr_factor(0.25, tau)


def _converted_lr(group: ParamGroup, wanted: float, settings: Mapping[str, Any], step: int) -> Any:
    """Return the other rule's lr: the wanted number, or a function of the step that has this value at `step`."""
    given = settings.get("lr", group.settings["lr"])
    if not callable(given) and "lr" not in settings:
        return wanted
    now = given(step) if callable(given) else checks.number("lr", given, RANGES["lr"])
    if not isclose(now, wanted, rel_tol=1e-12):
        raise ValueError(f"lr: expected a value of {wanted!r} now, as the trajectory needs; got {now!r}")
    return given
