"""A run that goes on under another rule: the same parameters, the same trajectory, another state."""

from collections.abc import Mapping
from math import isclose
from typing import Any, NamedTuple

import numpy as np

from fastmomentum import checks
from fastmomentum.checks import RANGES
from fastmomentum.optim.engine import Engine
from fastmomentum.optim.groups import SCHEDULED, ParamGroup
from fastmomentum.rules.base import Rule
from fastmomentum.rules.convert import CONVENTIONS, NESTEROV, NOTHING, convention_of, convert
from fastmomentum.rules.registry import find


class GroupConversion(NamedTuple):
    """What becomes of a group: its settings, the forms of both rules, and the values that it goes over with."""

    after: ParamGroup
    source: str
    target: str
    values: dict[str, float]

    def over(self, state: Any, param: Any) -> tuple[Any, float, float]:
        """See :func:`fastmomentum.convert`."""
        return convert(state, source=self.source, target=self.target, param=param, **self.values)


def plan_conversion(
    group: ParamGroup, rule: str | Rule, settings: Mapping[str, Any], engine: Engine
) -> GroupConversion:
    """What becomes of a group."""
    tau = float(settings.get("dampening", group.settings["dampening"]))
    changed = {**group.settings, "rule": rule, **settings, "dampening": 0.0, "correct": False}
    probe = ParamGroup(changed)
    source, target = convention_of("source", group.update), convention_of("target", probe.update)
    old, new = CONVENTIONS[source], CONVENTIONS[target]
    values = {name: engine.held.number(group.value(name, engine.time)) for name in SCHEDULED} | {"dampening": tau}
    turn = GroupConversion(probe, source, target, values)
    nothing = np.zeros(0)
    _, rate, momentum = turn.over(None if old.keeps == NOTHING else nothing, nothing)
    if _stages(group.settings["rule"]) != _stages(rule):
        raise ValueError(f"rule: expected {find(rule)} in a chain of the same stages as {find(group.settings['rule'])}")
    if {old.method, new.method} == {NESTEROV} and source.endswith("_lookahead") != target.endswith("_lookahead"):
        raise ValueError(
            f"lookahead: expected as it was, as the parameters of {source!r} and {target!r} are not the same: those of "
            "the one are the points of the other"
        )
    follows = old.divides or old.keeps == NOTHING or group.correct
    mu = momentum if old.keeps == NOTHING else group.settings["momentum"]
    if callable(mu) and not _goes_with_any_momentum(source, target, tau):
        raise ValueError(
            f"momentum: expected a number between {source!r} and {target!r}, whose gradients' share "
            "or extrapolation depends on it; got a function of the step"
        )
    lr = _rate(group, rate, settings, engine.time)
    if callable(lr) and new.divides and not follows:
        raise ValueError(
            f"lr: expected a number, or correct=True, as the state of {source!r} carries lr and that of "
            f"{target!r} does not; got a function of the step"
        )
    chosen = {
        "lr": lr,
        "momentum": mu,
        "dampening": tau if "dampening" in probe.update.parameters else 0.0,
        "correct": settings.get("correct", not new.divides and new.keeps != NOTHING and follows),
    }
    return turn._replace(after=ParamGroup(changed | chosen))


def _stages(rule: str | Rule) -> list[str]:
    """What stands in front of the rule in a chain."""
    update = find(rule)
    return [stage.description for stage in update.stages_before]


def _goes_with_any_momentum(source: str, target: str, tau: float) -> bool:
    """Whether one factor of lr serves whatever the momentum comes to."""
    old, new = CONVENTIONS[source], CONVENTIONS[target]
    shifted = "nesterov_positions" in (source, target) and old is not new
    factors = [old.share(mu, tau) * new.share(0.5, tau) for mu in (0.25, 0.5)]
    return not shifted and factors[0] * new.share(0.5, tau) == factors[1] * new.share(0.25, tau)


def _rate(group: ParamGroup, wanted: float, settings: Mapping[str, Any], time: int) -> Any:
    """The other rule's lr: a number, or a function of the step that comes to it now."""
    given = settings.get("lr", group.settings["lr"])
    if not callable(given) and "lr" not in settings:
        return wanted
    now = given(time) if callable(given) else checks.number("lr", given, RANGES["lr"])
    if not isclose(now, wanted, rel_tol=1e-12):
        raise ValueError(f"lr: expected one that comes to {wanted!r} now, as the trajectory needs; got {now!r}")
    return given
