"""Convert schedules to dicts for JSON and back, so that a saved run contains its schedules."""

from collections.abc import Callable, Mapping
from dataclasses import fields

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

Packed = dict[str, "str | int | float | Packed"]
"""A schedule as a dict, as :func:`pack` returns it."""

NAME = "schedule"
"""The key of the class's name in a dict; no field of a schedule has this name."""

# Names in a file are looked up in this fixed table alone, so that a file cannot call other classes.
CLASSES: dict[str, type[Schedule | Chebyshev]] = {
    kind.__name__: kind
    for kind in (
        *(Chebyshev, ChebyshevLR, ChebyshevMomentum, Constant, Cosine, Cycle, Exponential),
        *(Linear, Nesterov, NesterovSimple, Step, Sutskever, Then, WarmRestarts),
    )
}


def is_packable(value: object) -> bool:
    """Return whether :func:`pack` can convert `value`: a schedule built only of the package's own classes.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> fm.schedules.is_packable(fm.schedules.Constant(0.1)), fm.schedules.is_packable(lambda t: 0.1)
    (True, False)
    """
    if not isinstance(value, Schedule | Chebyshev) or CLASSES.get(type(value).__name__) is not type(value):
        return False
    for field in fields(value):
        part = getattr(value, field.name)
        if isinstance(part, Schedule | Chebyshev) and not is_packable(part):
            return False
    return True


def pack(schedule: Schedule | Chebyshev) -> Packed:
    """Return a schedule as a dict of the name of its class and of its fields.

    {"schedule": name, **fields}, where a field that is a schedule becomes such a dict, too

    Parameters
    ----------
    schedule : Schedule or Chebyshev
        A schedule made of the package's own classes.

    Returns
    -------
    dict
        A dict of str, int, float and such dicts. json.dumps takes it, and :func:`unpack` returns an equal schedule.

    Raises
    ------
    TypeError
        If `schedule` is not a schedule of the package, or contains a schedule of another class.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> fm.schedules.pack(fm.schedules.Step(0.1, 0.5, every=30))
    {'schedule': 'Step', 'start': 0.1, 'factor': 0.5, 'every': 30}
    """
    if not is_packable(schedule):
        raise TypeError(f"schedule: expected one made of fastmomentum.schedules alone; got {checks.describe(schedule)}")
    return _to_dict(schedule)


def _to_dict(schedule: Schedule | Chebyshev) -> Packed:
    packed: Packed = {NAME: type(schedule).__name__}
    # Not a comprehension, which is one more call in Python 3.11: long chains of then() nest as deeply as calls can.
    for field in fields(schedule):
        value = getattr(schedule, field.name)
        packed[field.name] = _to_dict(value) if isinstance(value, Schedule | Chebyshev) else value
    return packed


def unpack(packed: Mapping[str, object]) -> Schedule | Chebyshev:
    """Return the schedule that :func:`pack` converted to a dict.

    The class is looked up in a fixed table and called with the fields, so that its checks run. No text is evaluated.

    Parameters
    ----------
    packed : mapping
        The dict that pack() returned, from JSON or not.

    Returns
    -------
    Schedule or Chebyshev
        A schedule equal to the one that was packed.

    Raises
    ------
    ValueError
        If the class is unknown, or a field is missing, unknown, or refused by the class.

    Examples
    --------
    >>> import fastmomentum as fm
    >>> print(fm.schedules.unpack({"schedule": "Linear", "start": 0.5, "end": 0.9, "steps": 100}))
    0.5 + (0.9 − 0.5)·min(t/100, 1)
    """
    name = packed.get(NAME) if isinstance(packed, Mapping) else None
    if not isinstance(name, str) or name not in CLASSES:
        known = ", ".join(CLASSES)
        raise ValueError(f"schedule: expected a dict whose {NAME!r} is one of {known}; got {checks.describe(packed)}")
    given = {key: value for key, value in packed.items() if key != NAME}
    expected = [field.name for field in fields(CLASSES[name])]
    if given.keys() != set(expected):
        raise ValueError(f"{name}: expected the fields ({', '.join(expected)}); got ({', '.join(map(str, given))})")
    for key, value in given.items():
        if isinstance(value, Mapping):
            given[key] = unpack(value)
    make: Callable[..., Schedule | Chebyshev] = CLASSES[name]
    try:
        return make(**given)
    except TypeError as error:
        raise ValueError(f"{name}: {error}") from error
