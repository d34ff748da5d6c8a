"""Read the values of settings: numbers of any library, and what functions of the step return."""

from collections.abc import Callable, Iterable, Sequence
from math import inf
from numbers import Real
from typing import Any

import numpy as np

from fastmomentum import checks
from fastmomentum.backends.cuda import scalars
from fastmomentum.backends.cuda.device_array import is_on_device
from fastmomentum.checks import RANGES
from fastmomentum.rules.options import MOMENTUM, OFF, SWITCHES

PLAIN = (float, int, bool, str, type(None))
"""The types of settings that a group stores, and a checkpoint holds, as they are."""


Values = Callable[[int, str], Any]
"""The function that returns the value of a setting, by the number of a group and the name of the setting."""


def values_at(groups: Sequence[Any], step: int) -> Values:
    """Return the function that returns values for the update with this number."""
    return lambda number, name: groups[number].value(name, step)


def values_in(groups: Sequence[Any], values: Sequence[Sequence[float]]) -> Values:
    """Return the function that returns the values of one step, which all groups have been asked for."""
    return lambda number, name: groups[number].number_in(name, values[number])


def next_values_in(groups: Sequence[Any], values: Sequence[Sequence[float]]) -> Values:
    """Return the function that returns the values of the following step, as far as the rule uses them."""
    return lambda number, name: groups[number].next_number_in(name, values[number])


def live_number(name: str, value: Any) -> float:
    """Return the value of a function of the step as a live value: a float, infinite for an option that is off."""
    number = as_number(name, value)
    return inf if number is None else number


def as_number(name: str, value: Any) -> Any:
    """Return the value of a function of the step as a float, or None for an option that it turns off.

    Raises
    ------
    TypeError
        If it is not one number: a bool, a str, or an array that has dimensions.
    """
    if type(value) is float or (value is None and OFF.get(name, 0.0) is None):
        return value
    is_number = hasattr(value, "__float__") or hasattr(value, "__index__")
    kind, shape = str(getattr(value, "dtype", "float")), tuple(getattr(value, "shape", ()))
    is_real = "float" in kind or "int" in kind
    if not is_number or not is_real or shape or isinstance(value, bool | type | np.ma.MaskedArray):
        raise TypeError(f"{name}: expected {RANGES.get(name, checks.FINITE)}; got {checks.describe(value)}")
    try:
        return float(value)
    except OverflowError:
        return inf


def stored(name: str, value: Any) -> Any:
    """Return a setting as a group stores it.

    The number in a 0-d array is read now, since the array may be written to later. A number in device memory stays
    there, and kernels read it at every step.

    Raises
    ------
    TypeError
        If a function of the step is a class.
    """
    if type(value) in PLAIN or name == "rule":
        return value
    if is_on_device(value):
        return scalars.DeviceScalar(scalars.view(name, value))
    if isinstance(value, type):
        raise TypeError(f"{name}: expected a number or a function of the step; got the class {value.__name__} itself")
    if name in SWITCHES or callable(value) or isinstance(value, scalars.DeviceScalar):
        return value
    value = checks.unwrap_scalar(value)
    has_number = hasattr(type(value), "__float__") and not getattr(value, "shape", ())
    return float(value) if has_number and not isinstance(value, Real | str | np.generic) else value


NOT_HYPER = {"self", "params", *MOMENTUM.names} - OFF.keys()
"""The arguments of optimisers that are no numbers, as which a hyper-parameter of the same name cannot be passed."""


def check_hyper_names(names: Iterable[str], owner: type) -> None:
    """Check that the hyper-parameters of a rule can be passed to this class, and read as attributes of its objects.

    Raises
    ------
    ValueError
        If a name is that of another argument or attribute.
    """
    for name in names:
        attribute = getattr(owner, name, None)
        if name in NOT_HYPER or name.startswith("_") or callable(attribute) or isinstance(attribute, property):
            raise ValueError(
                f"rule: expected hyper-parameters that {owner.__name__} can have as settings; got {name!r}, which is "
                "private or means something else there. Make the rule with another name in its `hyper`"
            )


def skips(value: object) -> bool | int:
    """Return `value`, if it says which updates to skip: True, False, or at most how many in a row, from 1."""
    return bool(value) if isinstance(value, bool | np.bool_) else checks.integer("skip_nonfinite", value, 1)
