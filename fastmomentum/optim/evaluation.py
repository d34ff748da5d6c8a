"""Find the points at which to evaluate a model, where they are not the parameters."""

from collections.abc import Mapping
from inspect import signature
from typing import Any

import numpy as np

from fastmomentum.optim.engine import Engine


def evaluation_points(engine: Engine) -> list[Any]:
    """Return for each parameter the point at which to evaluate the model, as a new array on the host."""
    params, slots = engine.state.fetch_params(), engine.state.fetch_slots()
    names, evaluation = engine.update.slots, engine.update.core.evaluation
    if evaluation is None:
        return [_average(p, dict(zip(names, own))) for p, own in zip(params, slots)] if "average" in names else params
    taken, found, kept = signature(evaluation).parameters, [], [*engine.update.core.memory]
    for number, p, own, memory in zip(engine.group_of, params, slots, engine.state.memory):
        known, group = {"p": p, **dict(zip(names, own)), **dict(zip(kept, memory))}, engine.groups[number]
        point = evaluation(**{name: known[name] if name in known else group.number(name) for name in taken})
        found.append(np.asarray(point))  # arithmetic on arrays without dimensions gives numbers
    return found


def _average(p: Any, slots: Mapping[str, Any]) -> Any:
    """Return the average of one parameter; the mean of no updates is p itself."""
    return np.where(slots["count"] == 0, p, slots["average"]) if "count" in slots else slots["average"]
