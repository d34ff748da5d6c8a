"""Converts schedules to plain JSON and back, so that a saved run brings its schedules along."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from fastmomentum import checks
from fastmomentum.schedules.base import Linear, Schedule, Then
from fastmomentum.schedules.curves import Constant, Cosine, Cycle, Exponential, Step, WarmRestarts
from fastmomentum.schedules.sequences import (
    Chebyshev,
    ChebyshevLR,
    ChebyshevMomentum,
    Nesterov,
    NesterovSimple,
    Sutskever,
)

NAME = "schedule"  # no field of a schedule has this name
# A fixed table: the names in a file are looked up here, and nowhere else.
KNOWN: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        *(Chebyshev, ChebyshevLR, ChebyshevMomentum, Constant, Cosine, Cycle, Exponential),
        *(Linear, Nesterov, NesterovSimple, Step, Sutskever, Then, WarmRestarts),
    )
}


def is_packable(value: object) -> bool:
    """Return whether this is a schedule made of the package's own classes alone, as other classes cannot be looked up.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> fm.schedules.is_packable(fm.schedules.Constant(0.1)), fm.schedules.is_packable(lambda t: 0.1)
    (True, False)
    """
    if KNOWN.get(type(value).__name__) is not type(value):
        return False
    for field in fields(value):  # type: ignore[arg-type]
        part = getattr(value, field.name)
        if isinstance(part, Schedule | Chebyshev) and not is_packable(part):
            return False
    return True


def pack(schedule: Schedule | Chebyshev) -> dict[str, Any]:
    """Return a schedule as a dict: {"schedule": the name of its class, **its fields}, and so on for nested schedules.

    Parameters
    ----------
    schedule : Schedule or Chebyshev
        A schedule made of the package's own classes.

    Returns
    -------
    dict
        A dict of str, int, float and such dicts: json.dumps takes it, and :func:`unpack` returns an equal schedule.

    Raises
    ------
    TypeError
        If it is not a schedule, or a part of it is of another class.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> fm.schedules.pack(fm.schedules.Step(0.1, 0.5, every=30))
    {'schedule': 'Step', 'start': 0.1, 'factor': 0.5, 'every': 30}
    """
    if not is_packable(schedule):
        raise TypeError(f"schedule: expected one made of fastmomentum.schedules alone; got {checks.describe(schedule)}")
    return _packed(schedule)


def _packed(schedule: Schedule | Chebyshev) -> dict[str, Any]:
    packed: dict[str, Any] = {NAME: type(schedule).__name__}
    # A comprehension is one more call in Python 3.11; long sequences nest as deeply as calls can.
    for field in fields(schedule):
        value = getattr(schedule, field.name)
        packed[field.name] = _packed(value) if isinstance(value, Schedule | Chebyshev) else value
    return packed


def unpack(packed: Mapping[str, Any]) -> Any:
    """Return the schedule that :func:`pack` converted.

    Its class is looked up in a fixed table and called with the fields, so that its checks run; nothing is evaluated.

    Parameters
    ----------
    packed : mapping
        The dict that pack() returned, from JSON or not.

    Returns
    -------
    Schedule or Chebyshev
        Equal to the one that was packed.

    Raises
    ------
    ValueError
        If its class is unknown, or a field is missing, unknown, or refused by the class.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> print(fm.schedules.unpack({"schedule": "Linear", "start": 0.5, "end": 0.9, "steps": 100}))
    0.5 + (0.9 − 0.5)·min(t/100, 1)
    """
    name = packed.get(NAME) if isinstance(packed, Mapping) else None
    if not isinstance(name, str) or name not in KNOWN:
        known = ", ".join(KNOWN)
        raise ValueError(f"schedule: expected a dict whose {NAME!r} is one of {known}; got {checks.describe(packed)}")
    given = {key: value for key, value in packed.items() if key != NAME}
    expected = [field.name for field in fields(KNOWN[name])]
    if given.keys() != set(expected):
        raise ValueError(f"{name}: expected the fields ({', '.join(expected)}); got ({', '.join(map(str, given))})")
    for key, value in given.items():
        if isinstance(value, Mapping):
            given[key] = unpack(value)
    try:
        return KNOWN[name](**given)
    except TypeError as error:
        raise ValueError(f"{name}: {error}") from error
