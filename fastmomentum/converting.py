"""A run that goes on under another rule: the same parameters, the same trajectory, another state."""

from collections.abc import Mapping
from math import isclose
from typing import Any, NamedTuple, Self

import numpy as np

from fastmomentum import checkpoint, checks
from fastmomentum.compose import Chain
from fastmomentum.conventions import FORMS, NESTEROV, NOTHING, convert, form_name
from fastmomentum.engine import Engine
from fastmomentum.groups import SCHEDULED, WHOLE, Group
from fastmomentum.ranges import RANGES
from fastmomentum.records import Update
from fastmomentum.rules import find
from fastmomentum.turns import free


class Turn(NamedTuple):
    """What becomes of a group: its settings, the forms of both rules, and the values that it goes over with."""

    after: Group
    source: str
    target: str
    values: dict[str, float]

    def over(self, state: Any, param: Any) -> tuple[Any, float, float]:
        """See :func:`fastmomentum.convert`."""
        return convert(state, source=self.source, target=self.target, param=param, **self.values)


class Convertible:
    """What :class:`fastmomentum.Momentum` has for going on under another rule."""

    _engine: Engine
    _single: bool

    def convert(self, rule: str | Update, **settings: Any) -> Self:
        """An optimiser of the same parameters that continues this one's trajectory under another rule.

        State and learning rate of each group go over as :func:`fastmomentum.convert` has it: the displacement of the
        last step is kept, and the rate that multiplies the gradient in it. Steps, resets, schedules and what else is
        saved of a run go over as they are. This optimiser, and a trace of it, is left as it was; only one of both is to
        go on.

        Parameters
        ----------
        rule : str, Rule or chain
            The other rule, of the same method.
        **settings
            What the other is to have otherwise than this one, for all groups: nesterov and dampening, say; and lr,
            where it is a function of the step that the other rule needs in another scale. What changes the method, a
            decay say, leaves the trajectory.

        Returns
        -------
        Momentum
            The optimiser to go on with.

        Raises
        ------
        TypeError, ValueError
            If there is no exact conversion, now or at later steps: where lr is a function of the step and the old
            rule's state does not follow it (see ``correct``), or momentum is one and the share of the gradient that a
            rule takes depends on it; where an array is still to have a first step undampened; with a look-ahead on one
            side alone; between chains of other stages.

        Notes
        -----
        Where lr may change later on, a rule whose state carries lr gets ``correct=True``, if the old one's followed it.

        Examples
        --------
        >>> import numpy as np, fastmomentum as fm
        >>> p = np.array([4.0, -2.0])
        >>> opt = fm.Momentum(p, lr=0.25, momentum=0.5)
        >>> opt.step(p.copy())
        >>> opt = opt.convert("classical")
        >>> opt.velocity, opt.steps  # lr times what it was
        (array([ 1. , -0.5]), 1)
        """
        engine = self._engine
        for name in ("params", "momentum"):
            if name in settings:
                raise TypeError(f"{name}: expected none, as it goes over as it is; got {checks.shown(settings[name])}")
        shared = {name: settings.pop(name, getattr(engine, name)) for name in ("backend", "threads", "skip_nonfinite")}
        with free(engine.lock):
            saved, params = checkpoint.pack(engine), engine.held.fetch_params()
            turns = [_turned(group, rule, settings, engine) for group in engine.groups]
        for turn, started in ((turns[number], started) for number, started in zip(engine.group_of, engine.started)):
            if turn.values["dampening"] and not started:
                raise ValueError("dampening: expected 0, as an array is still to have its first step, undampened")
        found = self._made_anew([turn.after.settings for turn in turns], shared)
        ours = checkpoint.pack(found._engine)
        for number, param, slots, kept in zip(engine.group_of, params, ours["state"], saved["state"]):
            state, _, _ = turns[number].over(kept[0] if kept else None, param)
            slots[:1] = [] if state is None else [state]
        lasting = {name: saved[name] for name in ("steps", "skipped", "resets", "value", "started")}
        checkpoint.unpack(ours | lasting, found._engine)
        found._engine.look_ahead(range(len(params)))
        return found

    def _made_anew(self, groups: list[dict[str, Any]], shared: dict[str, Any]) -> Self:
        """An optimiser of the same parameters, with these settings for each group, and these for all."""
        engine = self._engine
        whole = {name: value for name, value in groups[0].items() if name in WHOLE} | shared
        own = [{name: value for name, value in group.items() if name not in WHOLE} for group in groups]
        members: list[list[Any]] = [[] for _ in groups]
        for number, param in zip(engine.group_of, engine.held.given):
            members[number].append(param)
        parts = [{"params": mine, **settings} for mine, settings in zip(members, own)]
        given = parts[0] | {"params": members[0][0]} if self._single else {"params": parts, "lr": own[0]["lr"]}
        return type(self)(**given, **whole)


def _turned(group: Group, rule: str | Update, settings: Mapping[str, Any], engine: Engine) -> Turn:
    """What becomes of a group."""
    tau = float(settings.get("dampening", group.settings["dampening"]))
    changed = {**group.settings, "rule": rule, **settings, "dampening": 0.0, "correct": False}
    probe = Group(changed)
    source, target = form_name("source", group.update), form_name("target", probe.update)
    old, new = FORMS[source], FORMS[target]
    values = {name: engine.held.number(group.value(name, engine.time)) for name in SCHEDULED} | {"dampening": tau}
    turn = Turn(probe, source, target, values)
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
    return turn._replace(after=Group(changed | chosen))


def _stages(rule: str | Update) -> list[str]:
    """What stands in front of the rule in a chain."""
    update = find(rule)
    return [stage.description for stage in update.before] if isinstance(update, Chain) else []


def _goes_with_any_momentum(source: str, target: str, tau: float) -> bool:
    """Whether one factor of lr serves whatever the momentum comes to."""
    old, new = FORMS[source], FORMS[target]
    shifted = "nesterov_positions" in (source, target) and old is not new
    factors = [old.share(mu, tau) * new.share(0.5, tau) for mu in (0.25, 0.5)]
    return not shifted and factors[0] * new.share(0.5, tau) == factors[1] * new.share(0.25, tau)


def _rate(group: Group, wanted: float, settings: Mapping[str, Any], time: int) -> Any:
    """The other rule's lr: a number, or a function of the step that comes to it now."""
    given = settings.get("lr", group.settings["lr"])
    if not callable(given) and "lr" not in settings:
        return wanted
    now = given(time) if callable(given) else checks.number("lr", given, RANGES["lr"])
    if not isclose(now, wanted, rel_tol=1e-12):
        raise ValueError(f"lr: expected one that comes to {wanted!r} now, as the trajectory needs; got {now!r}")
    return given
