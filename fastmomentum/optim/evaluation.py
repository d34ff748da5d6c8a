"""Find the points at which to evaluate a model, where they are not the parameters."""

from inspect import signature
from typing import Any

from fastmomentum.optim.engine import Engine


def evaluation_points(engine: Engine) -> list[Any]:
    """Return for each parameter the point at which to evaluate the model, as a new array on the host."""
    params, slots = engine.state.fetch_params(), engine.state.fetch_slots()
    names, evaluation = engine.update.slots, engine.update.core.evaluation
    if evaluation is None:
        return [own[names.index("average")] for own in slots] if "average" in names else params
    taken, found = signature(evaluation).parameters, []
    for number, p, own in zip(engine.group_of, params, slots):
        known, group = {"p": p, **dict(zip(names, own))}, engine.groups[number]
        found.append(evaluation(**{name: known[name] if name in known else group.number(name) for name in taken}))
    return found
